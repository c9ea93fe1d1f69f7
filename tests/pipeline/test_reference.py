"""What the gate compares with has seen no more of the events that judge than the candidate has."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.names import EventColumn
from contracts.store_layout import Store
from pipeline.retraining import reference, retrain_stages
from pipeline.retraining.plan import GATE
from pipeline.retraining.records import read_record, write_record
from pipeline.retraining.reference import compared_version, knows_holdout
from pipeline.retraining.retrain import verdict_on
from pipeline.stage import fingerprints
from tests.pipeline.small_store import CONFIG, plan_of, push


def test_a_version_that_has_learnt_the_holdout_is_compared_as_it_was_before(tmp_path: Path) -> None:
    """As where the newest span was mended after its version was pushed: the candidate has not seen what judges it."""
    store = Store(tmp_path / "store")
    push(store, 2, None)  # of span 2, which `plan_of` has for its holdout
    judged = run_exported(store, "run-2")
    served = store.servable("dnc") / "2"
    assert compared_version(CONFIG, store, plan_of(2)) == (served, "version 2")
    record = read_record(store, "run-2")
    assert record is not None
    write_record(store, replace(record, catch_up={"is_pushed": True, "why_not": None}))
    assert compared_version(CONFIG, store, plan_of(2)) == (judged, "version 2 as it was judged")
    for key, time in (("2", 49), ("3", 50)):
        write_events(store, key, [time])
    next_day = replace(plan_of(2), spans=["1", "2", "3"], holdout_start=50)
    assert compared_version(CONFIG, store, next_day) == (served, "version 2")
    assert compared_version(CONFIG, store, plan_of(None)) == (None, "popularity")


@pytest.mark.parametrize(("num_late", "as_judged"), [(1, False), (2, True)])
def test_a_version_that_has_learnt_late_events_of_the_holdout_is_compared_as_it_was_before(
    tmp_path: Path, num_late: int, as_judged: bool
) -> None:
    """Of spans by arrival. The holdout's 99 events begin at 50; of 100 in all one may lie in span 2, of 101 not two."""
    store = Store(tmp_path / "store")
    push(store, 2, None)
    judged = run_exported(store, "run-2")
    record = read_record(store, "run-2")
    assert record is not None
    write_record(store, replace(record, catch_up={"is_pushed": True, "why_not": None}))
    write_events(store, "2", [0] * 7 + [49] + [50] * num_late)
    write_events(store, "3", [3] + [50] * 49 + [60] * 50)
    plan = replace(plan_of(2), spans=["1", "2", "3"], holdout_start=50)
    compared, name = compared_version(CONFIG, store, plan)
    assert (compared == judged, "as it was judged" in name) == (as_judged, as_judged)
    assert not knows_holdout(store, plan)
    without = replace(plan, spans=["1", "3"])  # where its span is left out, nothing of it judges
    assert compared_version(CONFIG, store, without)[1] == "version 2"


def test_an_index_refresh_of_what_has_learnt_the_holdout_has_learnt_it_too(tmp_path: Path) -> None:
    """Version 3, of `dnc index`, has no record; its weights are those of version 2, which has caught up with span 2."""
    store = Store(tmp_path / "store")
    push(store, 2, None)
    judged = run_exported(store, "run-2")
    (store.servable("dnc") / "3").mkdir()
    plan = replace(plan_of(3), parent_run="run-2")
    assert compared_version(CONFIG, store, plan) == (store.servable("dnc") / "3", "version 3")
    record = read_record(store, "run-2")
    assert record is not None
    write_record(store, replace(record, catch_up={"is_pushed": True, "why_not": None}))
    assert compared_version(CONFIG, store, plan) == (judged, "version 2 as it was judged")
    passed, not_caught_up = {"blessed": True, "reasons": []}, {"is_pushed": False, "why_not": "no epoch was better"}
    refused = verdict_on(store, plan, passed, not_caught_up)
    assert not refused["blessed"] and "version 3 has learnt span 2" in refused["reasons"][0]


def test_what_a_run_is_compared_with_is_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large log it takes long, as the times of two spans are read."""
    store, read, verdicts = Store(tmp_path / "store"), list[str](), list[object]()
    push(store, 2, None)
    judged = run_exported(store, "run-2")
    record = read_record(store, "run-2")
    assert record is not None
    write_record(store, replace(record, catch_up={"is_pushed": True, "why_not": None}))

    def events_since(store: Store, key: str, start: int) -> int:
        read.append(key)
        return 50

    monkeypatch.setattr(reference, "_events_since", events_since)
    monkeypatch.setattr(retrain_stages, "require_signatures", lambda *_: None)
    monkeypatch.setattr(retrain_stages, "holdout_events_in_training", lambda *_: 7)
    monkeypatch.setattr(retrain_stages, "write_verdict", lambda *arguments: verdicts.extend(arguments[3:]))
    stages = retrain_stages.retrain_stages(store, replace(plan_of(2), spans=["1", "2", "3"]))
    for key in ("1", "2", "3"):
        write_events(store, key, [50])
    for _ in range(2):
        fingerprints(stages, CONFIG)
    next(stage for stage in stages if stage.name == GATE).run(CONFIG, store.run("new"), "f")
    assert (read, verdicts) == (["2", "3"], [judged, "version 2 as it was judged", 7])


def test_no_model_that_has_not_caught_up_takes_the_place_of_one_that_has(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    push(store, 2, None)
    passed = {"blessed": True, "reasons": []}
    not_caught_up = {"is_pushed": False, "why_not": "no epoch was better"}
    assert verdict_on(store, plan_of(2), passed, not_caught_up) == passed
    record = read_record(store, "run-2")
    assert record is not None
    write_record(store, replace(record, catch_up={"is_pushed": True, "why_not": None}))
    refused = verdict_on(store, plan_of(2), passed, not_caught_up)
    assert not refused["blessed"] and "version 2 has learnt span 2" in refused["reasons"][0]
    assert verdict_on(store, plan_of(2), passed, {"is_pushed": True, "why_not": None}) == passed
    assert verdict_on(store, replace(plan_of(2), spans=["2", "3"]), passed, not_caught_up) == passed


def write_events(store: Store, key: str, times: list[int]) -> None:
    with artifact.writing(store.span(key).events.path, "events", "f") as writer:
        pq.write_table(pa.table({EventColumn.TIMESTAMP: times}), writer.path / "events-0.parquet")
        writer.files.append("events-0.parquet")


def run_exported(store: Store, run_id: str) -> Path:
    with artifact.writing(store.run(run_id).export, "export", "f") as writer:
        writer.details.update(model_name="dnc", version=1)
    return store.run(run_id).servable("dnc") / "1"
