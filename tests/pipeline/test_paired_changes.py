from pathlib import Path

import numpy as np
import pytest

from pipeline.benchmark_config import BenchmarkConfig
from pipeline.benchmark_table import write_tables
from pipeline.paired_changes import paired_changes, read_per_user, write_per_user

USERS = 2_000


def run_of(folder: Path, model: str, seed: int, recall: np.ndarray) -> dict:
    fingerprint = f"{model}-{seed}"
    write_per_user(folder, fingerprint, {"score 1": {"recall_at_10": recall, "ndcg_at_10": np.zeros(len(recall))}})
    cell = {"value": float(recall.mean()), "low": 0.0, "high": 0.0}
    return {
        "dataset": "a", "model": model, "seed": seed, "best_epoch": 1, "seconds": 1.0,
        "lists": {"score 1": {"recall_at_10": cell}}, "fingerprint": fingerprint,
    }  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> list[dict]:
    """Users differ much, a third get nothing, and the model serves each a tenth better than the reference."""
    rng = np.random.default_rng(0)
    base = rng.random(USERS) ** 4 * (rng.random(USERS) > 1 / 3)
    noise = 0.01 * rng.standard_normal((2, USERS))
    reference = [run_of(tmp_path, "reference", seed, base) for seed in range(2)]
    return reference + [run_of(tmp_path, "better", seed, 1.1 * base + noise[seed]) for seed in range(2)]


def test_the_interval_is_that_of_the_users_differences(results: list[dict], tmp_path: Path) -> None:
    [(lists, changes)] = paired_changes("reference", results, tmp_path).items()
    assert lists == ("a", "better", "score 1")
    assert list(changes) == ["recall_at_10"]  # of NDCG the reference has nothing: no ratio
    found = changes["recall_at_10"]
    ours, theirs = (
        np.mean([read_per_user(tmp_path, f"{model}-{seed}")["score 1"]["recall_at_10"] for seed in range(2)], axis=0)
        for model in ("better", "reference")
    )
    assert found["value"] == pytest.approx(ours.mean() / theirs.mean() - 1)
    # Delta method: the standard error of a ratio of means of pairs.
    ratio = ours.mean() / theirs.mean()
    error = (ours - ratio * theirs).std() / np.sqrt(USERS) / theirs.mean()
    assert found["low"] == pytest.approx(ratio - 1 - 1.96 * error, abs=error / 4)
    assert found["high"] == pytest.approx(ratio - 1 + 1.96 * error, abs=error / 4)
    unpaired = 1.96 * np.hypot(ours.std(), theirs.std()) / np.sqrt(USERS) / theirs.mean()
    assert found["high"] - found["low"] < unpaired / 10


def test_changes_are_against_the_references_first_lists_in_resamples_of_whom_it_serves_somebody(tmp_path: Path) -> None:
    """Whoever is drawn, the model serves twice as well as those lists, or neither of both serves anybody."""
    of_reference = {"quota 0.5": {"recall_at_10": np.array([0.5, 0, 0])}, "score 1": {"recall_at_10": np.ones(3)}}
    write_per_user(tmp_path, "r", of_reference)
    write_per_user(tmp_path, "o", {"score 1": {"recall_at_10": np.array([1.0, 0, 0])}})
    results = [{"dataset": "a", "model": name, "fingerprint": name[0]} for name in ("reference", "other")]
    [(lists, changes)] = paired_changes("reference", results, tmp_path).items()
    assert lists == ("a", "other", "score 1")
    assert changes == {"recall_at_10": {"value": 1, "low": 1, "high": 1}}


def test_a_metric_that_was_not_measured_of_the_reference_has_no_change(tmp_path: Path) -> None:
    """As where one model of the table asks for other `evaluation.ks` than the reference."""
    write_per_user(tmp_path, "r", {"score 1": {"recall_at_10": np.ones(3)}})
    write_per_user(tmp_path, "o", {"score 1": {"recall_at_10": np.ones(3), "recall_at_20": np.ones(3)}})
    results = [{"dataset": "a", "model": name, "fingerprint": name[0]} for name in ("reference", "other")]
    [changes] = paired_changes("reference", results, tmp_path).values()
    assert list(changes) == ["recall_at_10"]


def test_the_table_shows_changes_against_the_reference(results: list[dict], tmp_path: Path) -> None:
    tree = {"title": "t", "datasets": {"a": {"path": "x"}}, "models": {"reference": {}, "better": {}}}
    benchmark = BenchmarkConfig.model_validate({**tree, "reference": "reference"})
    changes = {("a", "better", "score 1"): {"recall_at_10": {"value": 0.1, "low": -0.02, "high": 0.2}}}
    text = write_tables(benchmark, results, changes, tmp_path / "t.json", "dnc benchmark").read_text()
    assert "against *reference*" in text
    assert "| better | score 1 | +10.0% [-2.0%, +20.0%] |" in text
    assert benchmark.restricted_to([], ["better"], []).reference is None
    assert benchmark.restricted_to([], [], []).reference == "reference"


def test_a_reference_that_is_no_model_is_refused() -> None:
    with pytest.raises(ValueError, match="reference names 'other', which is not one of the models: one"):
        BenchmarkConfig.model_validate(
            {"title": "t", "datasets": {"a": {"path": "x"}}, "models": {"one": {}}, "reference": "other"}
        )
