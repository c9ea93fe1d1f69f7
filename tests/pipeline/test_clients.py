"""Clients of the served version: whatever the new one was trained from, it must answer what they ask."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import SAVED_MODEL, Workdir
from contracts.names import EventColumn
from contracts.store_layout import Store
from pipeline.retraining import clients, retrain_stages
from pipeline.retraining.clients import (
    compared_version,
    knows_holdout,
    require_inputs,
    require_long_lists,
    require_signatures,
)
from pipeline.retraining.plan import GATE, Plan
from pipeline.retraining.records import read_record, write_record
from pipeline.retraining.retrain import verdict_on
from pipeline.stage import fingerprints
from serving import signatures
from serving.export import MANIFEST_FILE
from tests.pipeline.small_store import push

TABLE = "data.user_features={path: users.csv, id: user_id, features: [{name: country, kind: categorical}]}"
CONFIG = load_config(None, ["serving.indexes=[scann, exact]"])
WITH_COUNTRY = load_config(None, ["serving.indexes=[scann, exact]", TABLE])
STRING, FLOAT, BOOL = 7, 1, 10


def write_version(version: Path, inputs: dict[str, int]) -> None:
    """A graph of no more than a signature, input -> dtype, and what an export says of its user features."""
    saved = saved_model_pb2.SavedModel()
    signature = saved.meta_graphs.add().signature_def["serving_default"]
    for name, dtype in inputs.items():
        signature.inputs[name].dtype = dtype
    (version / MANIFEST_FILE).parent.mkdir(parents=True)
    (version / SAVED_MODEL).write_bytes(saved.SerializeToString())
    details = {"user_features": [name for name in inputs if not name.startswith("history")]}
    (version / MANIFEST_FILE).write_text(json.dumps({"kind": "servable", "fingerprint": "f", "details": details}))


def plan_of(parent: int | None) -> Plan:
    run = None if parent is None else f"run-{parent}"
    return Plan("run", ["1", "2"], {}, 0, None, None, parent, run, False, False, 5, [])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Version 4 of both servables takes a country."""
    store = Store(tmp_path / "store")
    for name in ("dnc", "dnc_exact"):
        write_version(store.servable(name) / "4", {"history": STRING, "country": STRING})
    return store


def run_of(store: Store, inputs: dict[str, int], exact: dict[str, int]) -> Workdir:
    """A run that has exported a servable of these inputs, and beside it the exact one."""
    workdir = store.run("run")
    for name, takes in (("dnc", inputs), ("dnc_exact", exact)):
        write_version(workdir.servable(name) / "1", takes)
    with artifact.writing(workdir.export, "export", "f") as writer:
        writer.details.update(model_name="dnc", version=1)
    return workdir


def test_a_user_feature_that_is_served_is_missed_before_anything_is_trained(store: Store) -> None:
    with pytest.raises(ValueError, match=r"version 4, which is served, takes the user features \['country'\]"):
        require_inputs(CONFIG, store, plan_of(4))
    require_inputs(WITH_COUNTRY, store, plan_of(4))
    require_inputs(CONFIG, store, plan_of(None))
    (store.servable("dnc") / "4" / MANIFEST_FILE).unlink()  # of a version that no export of ours has written
    require_inputs(CONFIG, store, plan_of(4))


def test_a_vector_of_another_length_than_is_served_is_told_before_anything_is_trained(store: Store) -> None:
    """Requests that carry one of the old length would all be INVALID_ARGUMENT."""
    version = store.servable("dnc") / "6"
    write_version(version, {"history": STRING, "face": FLOAT})
    saved = saved_model_pb2.SavedModel.FromString((version / SAVED_MODEL).read_bytes())
    shape = saved.meta_graphs[0].signature_def["serving_default"].inputs["face"].tensor_shape
    shape.dim.add(size=-1)
    shape.dim.add(size=8)
    (version / SAVED_MODEL).write_bytes(saved.SerializeToString())
    table = "data.user_features={path: users.csv, id: user_id, features: [{name: face, kind: vector, dim: %d}]}"
    require_inputs(load_config(None, [table % 8]), store, plan_of(6))
    with pytest.raises(ValueError, match=r"takes the user features \['face'\], .* with another length"):
        require_inputs(load_config(None, [table % 16]), store, plan_of(6))


def test_marks_of_context_that_are_served_are_missed_before_anything_is_trained(store: Store) -> None:
    write_version(store.servable("dnc") / "5", {"history": STRING, "history_is_context": BOOL})
    levels = ["data.feedback.levels=[seen, clicked]", "data.columns.event=event", "data.feedback.target_level=clicked"]
    with pytest.raises(ValueError, match=r"target_level=clicked and history_level=clicked histories hold no context"):
        require_inputs(load_config(None, [*levels, "data.feedback.history_level=clicked"]), store, plan_of(5))
    require_inputs(load_config(None, levels), store, plan_of(5))


def test_request_features_that_are_served_are_missed_before_anything_is_trained(store: Store) -> None:
    version = store.servable("dnc") / "5"
    write_version(version, {"history": STRING, "page": STRING})
    manifest = json.loads((version / MANIFEST_FILE).read_text())
    manifest["details"] = {"user_features": [], "request_features": ["page"]}
    (version / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"takes the request features \['page'\], but data.request_features no"):
        require_inputs(load_config(None, ["data.request_features=[{name: device, values: [web]}]"]), store, plan_of(5))
    require_inputs(load_config(None, ["data.request_features=[{name: page, values: [home]}]"]), store, plan_of(5))


def test_a_longer_list_than_the_served_version_gives_is_no_comparison(store: Store) -> None:
    """Its recall at 100 stood for that at 500, so that a model that finds less passed."""
    push(store, 1, None, config=load_config(None, ["serving.max_candidates=200", "evaluation.ks=[200]"]))
    plan = replace(plan_of(1), parent_run="run-1")
    with pytest.raises(ValueError, match=r"retrain\.gate\.k=500 is more than serving\.max_candidates=200 of version 1"):
        require_long_lists(load_config(None, ["retrain.gate.k=500"]), store, plan)
    require_long_lists(load_config(None, ["retrain.gate.k=200"]), store, plan)
    require_long_lists(load_config(None, ["retrain.gate.k=500"]), store, plan_of(None))


@pytest.mark.parametrize(
    ("inputs", "exact", "problem"),
    [
        ({"history": STRING}, {"history": STRING, "country": STRING}, "input 'country' is gone"),
        ({"history": STRING, "country": STRING}, {"history": STRING}, "input 'country' is gone"),
        (
            {"history": STRING, "country": FLOAT},
            {"history": STRING, "country": STRING},
            "is float32 of rank 0, was str",
        ),
    ],
)
def test_a_model_from_scratch_that_breaks_clients_passes_no_gate(
    store: Store, inputs: dict[str, int], exact: dict[str, int], problem: str
) -> None:
    workdir = run_of(store, inputs, exact)
    with pytest.raises(ValueError, match=problem):
        require_signatures(CONFIG, store, plan_of(4), workdir)
    require_signatures(CONFIG, store, plan_of(None), workdir)
    require_signatures(CONFIG, store, plan_of(3), workdir)  # which is of another base path, now gone


def test_a_model_that_answers_what_clients_ask_passes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    takes = {"history": STRING, "country": STRING}
    workdir = run_of(store, takes, takes)
    compared: list[tuple[Path, Path]] = []
    compatible = signatures.require_compatible

    def require_compatible(served: Path, exported: Path, name: str) -> None:
        compatible(served, exported, name)
        compared.append((served, exported))

    monkeypatch.setattr(signatures, "require_compatible", require_compatible)
    require_signatures(CONFIG, store, plan_of(4), workdir)
    assert compared == [(store.servable(name) / "4", workdir.servable(name) / "1") for name in ("dnc", "dnc_exact")]


@pytest.mark.parametrize("content", [b"", b"half a graph"])
def test_a_served_version_whose_graph_is_damaged_is_named_with_what_to_do(store: Store, content: bytes) -> None:
    (store.servable("dnc") / "4" / SAVED_MODEL).write_bytes(content)
    takes = {"history": STRING, "country": STRING}
    with pytest.raises(ValueError, match=r"dnc/4/saved_model.pb is not a SavedModel .*dnc rollback"):
        require_signatures(CONFIG, store, plan_of(4), run_of(store, takes, takes))


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
    assert compared_version(CONFIG, store, plan_of(None))[0] is None


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

    monkeypatch.setattr(clients, "_events_since", events_since)
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
