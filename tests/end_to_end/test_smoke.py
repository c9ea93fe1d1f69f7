"""The main job on the smoke data, through the command line, as a user runs it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, SERVED_MODEL, Workdir
from pipeline.retraining.evidence import measure
from pipeline.retraining.holdout import HoldoutUsers, index_recall
from pipeline.stages import exported_servable
from tests.end_to_end.conftest import ROOT, SmokeRun, invoke, run_dnc

FIELD = r"([a-z_]+) ([0-9 ]+)(?: |$)"
METRICS = ["recall_at_10", "recall_at_50", "recall_at_100", "recall_at_200", "recall_at_500", "ndcg_at_10"]


@pytest.fixture(scope="module")
def metrics(smoke: SmokeRun) -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(Workdir(smoke.workdir).metrics.read_text())


def test_every_model_has_every_metric_with_its_interval(metrics: dict) -> None:
    assert {MAIN_MODEL, SERVED_MODEL, "single_vector", "popularity"} <= set(metrics)
    for model in metrics:
        for metric in [*METRICS, "catalog_coverage_at_100"]:
            cell = metrics[model][metric]
            assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1, (model, metric)


def test_the_model_learns_what_popularity_cannot(metrics: dict) -> None:
    # The log's next item is the ring successor of an earlier one in 60% of events: see datasets/synthetic.py.
    assert metrics[MAIN_MODEL]["recall_at_10"]["low"] > 2 * metrics["popularity"]["recall_at_10"]["high"]


def test_the_servable_is_as_good_as_the_exact_ranking(metrics: dict) -> None:
    for metric in METRICS:
        exact = metrics[MAIN_MODEL][metric]["value"]
        assert metrics[SERVED_MODEL][metric]["value"] == pytest.approx(exact, abs=0.02), metric


def test_groups_are_the_logs_topics(smoke: SmokeRun) -> None:
    """Groups come from co-occurrence alone; the generator's topics are the truth they should find."""
    from sklearn.metrics import adjusted_rand_score

    groups = pq.read_table(Workdir(smoke.workdir).item_groups.groups)
    items = pa_csv.read_csv(smoke.data / "items.csv")
    topic_of = dict(zip(items["item_id"].to_pylist(), items["category"].to_pylist(), strict=True))
    topics = [topic_of[item] for item in groups["item_id"].cast("string").to_pylist()]
    assert adjusted_rand_score(topics, groups["group_id"].to_pylist()) > 0.5
    assert set(groups["group_id"].to_pylist()) == set(range(6))


def test_the_servables_row_is_the_validations_own(smoke: SmokeRun, metrics: dict) -> None:
    workdir = Workdir(smoke.workdir)
    assert {SERVED_MODEL: metrics[SERVED_MODEL]} == json.loads(workdir.served_metrics.read_text())
    assert workdir.served_metrics.name in artifact.read_manifest(workdir.validation).files


def test_the_gate_sees_what_the_evaluation_saw(smoke: SmokeRun, metrics: dict) -> None:
    workdir = Workdir(smoke.workdir)
    users = HoldoutUsers(workdir)
    [answers] = users.ask([exported_servable(workdir)], 100)
    measured = measure(users.holdout(), answers)
    served = metrics[SERVED_MODEL]
    assert measured.recall.mean() == pytest.approx(served["recall_at_100"]["value"], abs=0.02)
    assert measured.coverage == pytest.approx(served["catalog_coverage_at_100"]["value"], abs=0.02)
    assert measured.filled == pytest.approx(1.0, abs=0.01)
    assert measured.milliseconds is not None
    assert measure(users.holdout(), users.popularity(100)).recall.mean() < measured.recall.mean()


def test_the_gate_reads_the_indexes_recall(smoke: SmokeRun) -> None:
    config = load_config(Workdir(smoke.workdir).config)
    recall = index_recall(config, Workdir(smoke.workdir))
    assert recall is not None
    assert config.serving.recall_target <= recall <= 1


def test_the_docs_show_the_records_of_a_user(smoke: SmokeRun) -> None:
    """But for what is drawn, and the groups' numbers, which another processor may change."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    log = re.search(r"^(\"u1203\".*\n)+", page, re.MULTILINE)
    assert log is not None
    lines = [line for file in sorted(smoke.data.glob("events-*.csv")) for line in file.read_text().splitlines()]
    assert log.group().splitlines() == [line for line in lines if line.startswith('"u1203"')]
    for split in ("train", "validation", "test"):
        shown = re.search(rf"^{split} +(user_index .*)$", page, re.MULTILINE)
        assert shown is not None
        fields = {name: [int(value) for value in values.split()] for name, values in re.findall(FIELD, shown[1])}
        [record] = [found for found in records(smoke, split) if found["user_index"] == fields["user_index"]]
        assert {name: record[name] for name in fields} == fields


def records(smoke: SmokeRun, split: str) -> Iterator[dict[str, list[int]]]:
    files = [str(path) for path in Workdir(smoke.workdir).windows.path.glob(f"{split}-*.tfrecord.gz")]
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        yield {name: list(feature.int64_list.value) for name, feature in features.items()}


def test_the_report_names_what_a_reader_looks_for(smoke: SmokeRun) -> None:
    for words in ["R@10", "popularity", SERVED_MODEL, "Item groups", "Stages", "servable:", "candidates, by group"]:
        assert words in smoke.output


def test_a_second_run_skips_every_stage_and_says_so(smoke: SmokeRun) -> None:
    before = artifact.read_manifest(Workdir(smoke.workdir).export)
    again = run_dnc(*smoke.command)
    assert again.returncode == 0, again.stderr[-4000:]
    assert again.stderr.count("up to date, skipped") == 9
    assert artifact.read_manifest(Workdir(smoke.workdir).export) == before


def test_query_answers_from_the_servable(smoke: SmokeRun) -> None:
    history = ["i3", "i4", "i5", "no such item"]
    options = ["--history", ",".join(history), "-m", "20", "--merge", "quota", "--alpha", "0.5", "--json"]
    asked = run_dnc("query", "-w", str(smoke.workdir), *options)
    assert asked.returncode == 0, asked.stderr
    assert "catalogue, so treated as absent: no such item\n" in asked.stderr
    rows = [json.loads(line) for line in asked.stdout.splitlines()]
    groups = pq.read_table(Workdir(smoke.workdir).item_groups.groups)
    group_of = dict(zip(groups["item_id"].cast("string").to_pylist(), groups["group_id"].to_pylist(), strict=True))
    assert len({row["item_id"] for row in rows}) == 20
    assert not {row["item_id"] for row in rows} & set(history)
    assert [row["group_id"] for row in rows] == [group_of[row["item_id"]] for row in rows]
    scores = [row["score"] for row in rows]
    assert scores == sorted(scores, reverse=True)


def test_query_steers_as_a_request_does(smoke: SmokeRun) -> None:
    plain, said = query(smoke, "--user", "u1", "-m", "600", "--groups", "4,1")
    assert "catalogue" not in said
    assert {row["group_id"] for row in plain} == {1, 4}
    gone = [row["item_id"] for row in plain[:2]]
    left_out = ",".join([*gone, "no such item"])
    fewer, said = query(smoke, "--user", "u1", "-m", "600", "--groups", "4,1", "--exclude", left_out)
    assert fewer == plain[2:]
    assert "catalogue, so never returned anyway: no such item\n" in said
    one, _ = query(smoke, "--user", "u1", "-m", "600", "--groups", "4,1", "--max-groups", "1")
    assert len({row["group_id"] for row in one}) == 1
    dealt, _ = query(smoke, "--user", "u1", "-m", "8", "--groups", "4,1", "--merge", "round_robin")
    assert [row["group_id"] for row in dealt[::2]] == [dealt[0]["group_id"]] * 4
    assert [row["group_id"] for row in dealt[1::2]] == [5 - dealt[0]["group_id"]] * 4


def query(smoke: SmokeRun, *options: str) -> tuple[list[dict[str, Any]], str]:
    """The rows of `dnc query`, and what it said beside them."""
    asked = invoke("query", "-w", str(smoke.workdir), *options, "--json")
    assert asked.exit_code == 0, asked.output
    return [json.loads(line) for line in asked.stdout.splitlines()], asked.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["query", "-w", "{workdir}"], "exactly one of --user ID and --history"),
        (["query", "-w", "{workdir}", "--user", "nobody"], "'nobody'"),
        (["query", "-w", "nowhere", "--user", "u1"], "nowhere holds no finished run: name the workdir of a finished"),
        (["query", "-w", "{workdir}", "--user", "u1", "--alpha", "2"], "add --merge quota"),
        (["query", "-w", "{workdir}", "--user", "u1", "--merge", "quota", "--alpha", "inf"], "inf is no exponent"),
        (["query", "-w", "{workdir}", "--user", "u1", "--groups", "Drama"], "give comma-separated numbers from 0 to 5"),
        (["query", "-w", "{workdir}", "--user", "u1", "--groups", "1,6"], "give comma-separated numbers from 0 to 5"),
        (
            ["query", "-w", "{workdir}", "--user", "u1", "--groups", "[1]"],
            "--groups '[1]': give comma-separated numbers from 0 to 5",
        ),
    ],
    ids=[
        "neither user nor history",
        "unknown user",
        "no run",
        "alpha of a merge without it",
        "an endless alpha",
        "groups by name",
        "a group that there is not",
        "groups as a JSON list, which ids may be",
    ],
)
def test_a_wrong_query_is_explained(smoke: SmokeRun, arguments: list[str], said: str) -> None:
    done = invoke(*(argument.format(workdir=smoke.workdir) for argument in arguments))
    assert (done.exit_code, said in done.stderr) == (2, True), done.output
    assert isinstance(done.exception, SystemExit)  # and no other, which would be a traceback
