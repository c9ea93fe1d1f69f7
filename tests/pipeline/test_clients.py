"""Clients of the served version: whatever the new one was trained from, it must answer what they ask."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tensorflow.core.protobuf import saved_model_pb2

from contracts import artifact
from contracts.config_io import load_config
from contracts.layout import SAVED_MODEL, Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.clients import require_inputs, require_long_lists, require_signatures
from serving import signatures
from serving.export import MANIFEST_FILE
from tests.pipeline.small_store import plan_of, push

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
    record = RetrainRun(store.run("run-1")).record
    tree = json.loads(record.read_text())
    del tree["config"]["serving"]["max_candidates"]  # as of version 0.1.0, which had no such limit
    record.write_text(json.dumps(tree))
    require_long_lists(load_config(None, ["retrain.gate.k=500"]), store, plan)


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
