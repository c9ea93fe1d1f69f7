"""The retrain gate's measurements on a real servable agree with the pipeline's own."""

import json

import pytest

from contracts.config_io import load_config
from contracts.layout import SERVED_MODEL, Workdir
from pipeline.retraining.evidence import measure
from pipeline.retraining.holdout import HoldoutUsers, index_recall
from pipeline.stages import exported_servable
from tests.end_to_end.conftest import SmokeRun

K = 100


def test_the_gate_sees_what_the_evaluation_saw(smoke: SmokeRun) -> None:
    workdir = Workdir(smoke.workdir)
    users = HoldoutUsers(workdir)
    [answers] = users.ask([exported_servable(workdir)], K)
    measured = measure(users.holdout(), answers)
    metrics = json.loads(workdir.served_metrics.read_text())[SERVED_MODEL]
    assert measured.recall.mean() == pytest.approx(metrics[f"recall_at_{K}"]["value"], abs=0.02)
    assert measured.coverage == pytest.approx(metrics["catalog_coverage_at_100"]["value"], abs=0.02)
    assert measured.filled == pytest.approx(1.0, abs=0.01)
    assert measured.milliseconds is not None
    assert measure(users.holdout(), users.popularity(K)).recall.mean() < measured.recall.mean()


def test_the_gate_reads_the_indexes_recall(smoke: SmokeRun) -> None:
    config = load_config(Workdir(smoke.workdir).config)
    recall = index_recall(config, Workdir(smoke.workdir))
    assert recall is not None
    assert config.serving.recall_target <= recall <= 1
