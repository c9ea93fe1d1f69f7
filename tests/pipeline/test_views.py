"""What people read of a store that has been retrained daily for long."""

import io
import re
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from contracts.artifact import writing
from contracts.config import Config
from contracts.layout import Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import views
from pipeline.retraining.housekeeping import _keep_only_record
from pipeline.retraining.records import Record, write_record
from pipeline.retraining.views import difference, lineage_tree, versions_json, versions_table

DAYS = 100


def record(version: int) -> Record:
    day = f"day-{version:03d}"
    return Record(
        run_id=f"run-{version}",
        outcome="pushed",
        version=version,
        label="stable",
        created=day,
        seconds=1.0,
        spans=[{"key": day, "order": version, "events": version}],
        left_out={},
        parents={"version": version - 1 or None, "run_id": f"run-{version - 1}", "warm_start": None},
        gate={"reference": "popularity", "checks": []},
        metrics={},
        config={"seed": 0},
        stages={"train": {"seconds": 1.0}},
        code={"dnc-retrieval": "0.1.0"},
        machine={"host": "host", "platform": "Linux", "cpus": 2},
    )


def test_the_lineage_of_many_days_can_be_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for version in range(1, DAYS + 1):
        store.run(f"run-{version}").path.mkdir(parents=True)
        write_record(store, record(version))
    text = io.StringIO()
    Console(file=text, width=160).print(lineage_tree(store, record(DAYS)))
    parents = [
        (int(child), int(parent)) for child, parent in re.findall(r"parent of (\d+): version (\d+)", text.getvalue())
    ]
    assert parents == [(version, version - 1) for version in range(DAYS, 1, -1)]
    assert re.findall(r"spans: (day-\d+) \.\. \1, 1, (\d+) events\n", text.getvalue()) == [
        (f"day-{version:03d}", str(version)) for version in range(DAYS, 0, -1)
    ]


def test_the_lineage_says_which_weights_begin_anew(tmp_path: Path) -> None:
    """As where a feature is of another kind since today; the log of the day's run is gone soon."""
    warm = {"kept_items": 9, "kept_groups": 4, "fresh": ["candidate_tower/feature/price", "query_tower/positions"]}
    changed = replace(record(1), parents={"run_id": None, "warm_start": warm})
    text = io.StringIO()
    Console(file=text, width=160).print(lineage_tree(Store(tmp_path), changed))
    assert "4 groups of the parent; begun anew: candidate_tower/feature/price, query_tower/pos" in text.getvalue()


@pytest.mark.parametrize("reason", ["log/[ab]*.csv cannot be read", "a row is [/INST]"])
def test_the_lineage_says_a_reason_as_it_is(reason: str, tmp_path: Path) -> None:
    """Brackets are no markup."""
    first = replace(record(1), parents={"run_id": None, "warm_start": None}, left_out={"day-000": reason})
    text = io.StringIO()
    Console(file=text, width=160).print(lineage_tree(Store(tmp_path), first))
    assert f"left out: day-000: {reason}\n" in text.getvalue()


def test_the_lineage_says_why_groups_were_fitted_anew(tmp_path: Path) -> None:
    groups = {"kept": False, "drift": None, "new_items": 3, "changed": ["groups.restarts"]}
    fitted = replace(record(1), parents={"run_id": None, "warm_start": None, "groups": groups})
    text = io.StringIO()
    Console(file=text, width=160).print(lineage_tree(Store(tmp_path), fitted))
    assert "groups: fitted anew, as groups.restarts changed, co-occurrence within them not measured" in text.getvalue()


def test_the_lineage_of_a_record_by_older_code_says_what_that_knew(tmp_path: Path) -> None:
    """Whose weights begin anew (fresh), and which settings of the groups have changed, were not written down once."""
    warm = {"source": "runs/run-0", "kept_items": 9, "kept_groups": 4}
    groups = {"kept": False, "drift": 0.2, "new_items": 3}
    older = replace(record(1), parents={"run_id": None, "warm_start": warm, "groups": groups})
    text = io.StringIO()
    Console(file=text, width=160).print(lineage_tree(Store(tmp_path), older))
    assert "weights: 9 items and 4 groups of the parent; seed 0" in text.getvalue()
    assert "groups: fitted anew, co-occurrence within them fell by 20.0%; 3 items new" in text.getvalue()


def test_the_list_of_versions_leads_to_why_a_run_was_refused(tmp_path: Path) -> None:
    """Its output is gone; its id is shown whole, as that of the directory that has its record."""
    store, reason = Store(tmp_path), "recall_at_50 change, low end -0.05058 is below -0.05"
    gate = {"reference": "version 1 as it was judged", "checks": [], "reasons": [reason]}
    metrics = {name: {"recall_at_50": 0.5} for name in ("candidate", "reference")}
    refused = {"run_id": "2024-01-02-f6d8a4d6", "outcome": "not_blessed", "version": None, "gate": gate}
    config, catch_up = Config().model_dump(mode="json"), {"is_pushed": True}
    pushed = replace(record(1), metrics=metrics, run_id="2024-01-01-30807c5b", config=config, catch_up=catch_up)
    for one in (pushed, replace(record(2), metrics=metrics, **refused)):
        store.run(one.run_id).path.mkdir(parents=True)
        write_record(store, one)
    text = io.StringIO()
    Console(file=text, width=160).print(versions_table(store))
    for run_id in ("2024-01-01-30807c5b", "2024-01-02-f6d8a4d6"):
        assert len([line for line in text.getvalue().splitlines() if line.rstrip().endswith(f" {run_id}")]) == 1
    assert [(row["run_id"], row["reasons"]) for row in versions_json(store)] == [
        ("2024-01-01-30807c5b", []),
        ("2024-01-02-f6d8a4d6", [reason]),
    ]


def test_a_difference_names_the_settings_that_were_changed_and_not_what_each_day_has_of_its_own(tmp_path: Path) -> None:
    of_day = [
        {
            "data": {"events": "log/*.csv"},
            "groups": {"previous": f"runs/{day}/item_groups", "since": day},
            "training": {"warm_start": f"runs/{day}", "batch_size": 64},
            "windows": {"since": day},
        }
        for day in (1, 2)
    ]
    first, second = (
        replace(record(day), config=config, metrics={"candidate": {}})
        for day, config in zip((1, 2), of_day, strict=True)
    )
    for section, key, value, said in (
        ("training", "batch_size", 64, ["config: the same"]),
        ("training", "batch_size", 32, ["config:", "  training.batch_size: 64 -> 32"]),
        ("training", "batch_size", 64, ["config: the same"]),
        ("data", "events", "more/*.csv", ["config:", '  data.events: "log/*.csv" -> "more/*.csv"']),
    ):
        of_day[1][section][key] = value
        text = io.StringIO()
        Console(file=text, width=160).print(difference(Store(tmp_path), first, second))
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        assert [line for line in lines if line.startswith("config:") or " -> " in line] == said


def test_a_difference_says_which_artifacts_a_run_has_lost(tmp_path: Path) -> None:
    """As where a disk was full and somebody made room: metrics and settings can be compared all the same."""
    store = Store(tmp_path)
    metrics: dict[str, object] = {"candidate": {"recall_at_50": 0.5}}
    pair = [replace(record(version), metrics=metrics) for version in (1, 2)]
    runs = [_finished(store, one) for one in pair]
    lost = [runs[0].item_groups.path, runs[1].windows.path]
    for path in lost:
        shutil.rmtree(path)
    text = io.StringIO()
    Console(file=text, width=1000).print(difference(store, *pair))
    said = text.getvalue()
    assert "recall_at_50" in said and "config: the same" in said
    (line,) = [line for line in said.splitlines() if line.startswith("groups and lists:")]
    named = {path for run in runs for path in _artifacts(run) if re.search(rf"{re.escape(str(path))}[, ]", line)}
    assert named == set(lost)


@pytest.mark.parametrize("is_past", [True, False])
def test_a_run_that_is_past_its_time_is_told_from_one_whose_artifacts_somebody_has_deleted(
    is_past: bool, tmp_path: Path
) -> None:
    """What version 1 was pushed from, the model that has caught up, is gone: with all else of its run, or alone."""
    store = Store(tmp_path)
    pair = [replace(record(version), metrics={"candidate": {}}) for version in (1, 2)]
    pair[0] = replace(pair[0], catch_up={"is_pushed": True})
    caught_up = RetrainRun(_finished(store, pair[0])).caught_up
    _finished(store, pair[1])
    if is_past:
        _keep_only_record(store, pair[0].run_id)
    text = io.StringIO()
    Console(file=text, width=1000).print(difference(store, *pair))
    (line,) = [line.rstrip() for line in text.getvalue().splitlines() if line.startswith("groups and lists:")]
    past = "versions [1] are past retrain.keep_versions, so only their records are left"
    lost = f"without {caught_up.export}, {caught_up.item_groups.path}, they cannot be compared; restore it, if you can"
    assert line == f"groups and lists: {past if is_past else lost}"


def test_places_without_an_item_are_not_in_both_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a small catalogue, of which a user has seen nearly all."""
    answers = {
        "run-1": np.array([["a", "b", "", ""], ["a", "", "", ""]]),
        "run-2": np.array([["b", "c", "a", ""], ["b", "", "", ""]]),
    }

    class Requests:
        user_ids = ("u1", "u2")

        def ask(self, session: Any, rows: slice, num_candidates: int) -> Any:
            return SimpleNamespace(item_ids=answers[session])

    monkeypatch.setattr(views, "exported_servable", lambda run: run.path.name)
    monkeypatch.setattr("serving.servable_session.ServableSession", nullcontext)
    monkeypatch.setattr("serving.user_requests.user_requests", lambda *_: Requests())
    monkeypatch.setattr("trainer.input.evaluation_users.EvaluationUsers.load", lambda *_: None)
    monkeypatch.setattr("trainer.catalogue.Catalogue.load", lambda *_: None)
    table = views._lists_difference(Store(tmp_path), record(1), record(2))
    assert list(table.columns[-1].cells) == ["2 of 10", "0 of 10"]


def _finished(store: Store, record: Record) -> Workdir:
    """The workdir of a run with its plan, its record, and what is compared of it, but of what has caught up nothing."""
    run = store.run(record.run_id)
    for path in _artifacts(run):
        with writing(path, path.name, "made"):
            pass
    RetrainRun(run).plan.touch()
    write_record(store, record)
    return run


def _artifacts(run: Workdir) -> list[Path]:
    return [run.export, run.item_groups.path, run.item_statistics.path, run.transform.path, run.windows.path]
