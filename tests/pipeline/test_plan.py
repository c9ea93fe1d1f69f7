"""The plan of a run: parent, version number, warm or not; and that a second attempt keeps it."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import contracts
from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Model
from contracts.patterns import identities
from contracts.serving_labels import ServingLabels, write_labels
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.plan import GATE, Plan, SpanStart, make_plan, run_config, run_id_of
from pipeline.retraining.records import Record, read_record, write_record
from pipeline.retraining.reference import compared_version
from pipeline.retraining.retrain import _nothing_new
from pipeline.retraining.retrain_stages import retrain_stages
from pipeline.retraining.spans import Span
from pipeline.stage import fingerprints

KEYS = ["retrain.epochs=3"]
CONFIG = load_config(None, KEYS)


def with_key(assignment: str) -> Config:
    return load_config(None, [*KEYS, assignment])


SPANS = [SpanStart(str(number), number * 10, f"files of {number}") for number in range(1, 7)]
"""Six spans of a file each, that begin at 10, 20, ..., 60."""


def pushed(
    store: Store,
    version: int,
    config: Config = CONFIG,
    spans: Sequence[SpanStart] = SPANS[:1],
    parents: dict[str, object] | None = None,
) -> None:
    """A version on disk, with its record and its model."""
    servable = store.servable("dnc") / str(version)
    servable.mkdir(parents=True)
    (servable / "saved_model.pb").touch()
    run = store.run(f"run-{version}")
    with artifact.writing(run.model(MAIN_MODEL).path, Model.KIND, "x") as writer:
        Model(writer.path).config.write_text(config.model_dump_json())
    for part in (run.item_statistics, run.item_groups, run.transform):
        with artifact.writing(part.path, part.KIND, "x") as writer:
            writer.files.append("part")
            (writer.path / "part").touch()
    empty: dict[str, object] = {}
    of_spans = [{"key": span.key, "order": int(span.key), "files": span.files} for span in spans]
    record = Record(
        f"run-{version}",
        "pushed",
        version,
        "stable",
        "",
        1.0,
        of_spans,
        {},
        parents or empty,
        empty,
        empty,
        config.model_dump(mode="json"),
        empty,
    )
    write_record(store, record)


def plan_of(store: Store, config: Config = CONFIG, run_id: str = "new") -> Plan:
    return make_plan(config, store, run_id, [SpanStart("1", 1, "a"), SpanStart("2", 5, "b")], {})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_without_a_served_version_training_starts_from_scratch(store: Store) -> None:
    plan = plan_of(store)
    assert (plan.parent, plan.warm, plan.version, plan.held, plan.notes) == (None, False, 1, False, [])
    assert run_config(CONFIG, store, plan, []).training == CONFIG.training


def test_the_stable_version_is_the_parent(store: Store) -> None:
    pushed(store, 1)
    pushed(store, 2)
    plan = plan_of(store)
    assert (plan.parent, plan.parent_run, plan.warm, plan.version, plan.held) == (2, "run-2", True, 3, False)
    config = run_config(with_key("training={early_stopping_patience: 9, learning_rate: 0.5}"), store, plan, [])
    training = config.training
    assert (training.warm_start, training.epochs) == (str(store.run("run-2").path), 3)
    assert training.learning_rate == CONFIG.retrain.learning_rate
    assert (training.early_stopping_patience, training.learning_rate_drops) == (CONFIG.retrain.patience, 0)
    assert (config.split.protocol, config.evaluation.baselines) == ("time", ())
    assert config.groups.previous == str(store.run("run-2").item_groups.path)
    assert run_config(with_key("retrain.stable_groups=false"), store, plan, []).groups == CONFIG.groups


def test_after_a_rollback_the_older_one_is_the_parent_and_the_number_still_grows(store: Store) -> None:
    pushed(store, 1)
    pushed(store, 2)
    write_labels(store.servable("dnc"), ServingLabels(stable=1))
    plan = plan_of(store)
    assert (plan.parent, plan.version, plan.held) == (1, 3, True)
    assert "version 1 is held, as version 2 is newer" in plan.notes[0]


@pytest.mark.parametrize(("on_disk", "then"), [([], None), ([1], 1)])
def test_a_stable_version_that_is_gone_is_told_before_anything_is_trained(
    store: Store, on_disk: list[int], then: int | None
) -> None:
    """The label outlives its version; the remedy that the message names works."""
    for version in (1, 2):
        pushed(store, version)
        if version not in on_disk:
            shutil.rmtree(store.servable("dnc") / str(version))
    base = store.servable("dnc")
    write_labels(base, ServingLabels(stable=2))
    with pytest.raises(ValueError, match=rf"{base}/serving.json says that version 2 is stable, .*delete serving.json"):
        plan_of(store)
    (base / "serving.json").unlink()
    plan = plan_of(store)
    assert (plan.parent, plan.version, plan.held) == (then, 3, False)


def older_code(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(contracts, "__version__", "9.0")
    return CONFIG


def newer_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    """An upgrade that was taken back: what it has written has fields that this code does not know."""
    run = store.run("run-1")
    for path in (run.path / "record.json", run.model(MAIN_MODEL).path / artifact.MANIFEST_NAME):
        tree = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**tree, "code_version": "9.0", "zeal": 1}), encoding="utf-8")
    return CONFIG


def other_model(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    return load_config(None, ["model.embedding_dim=32"])


def weights_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    (store.run("run-1").model(MAIN_MODEL).path / artifact.MANIFEST_NAME).unlink()
    return CONFIG


def weights_file_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Of a manifest that is still there, as somebody makes room by deleting what is large."""
    model = store.run("run-1").model(MAIN_MODEL)
    path = model.path / artifact.MANIFEST_NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "files": [model.weights.name]}))
    return CONFIG


def groups_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    shutil.rmtree(store.run("run-1").item_groups.path)
    return CONFIG


def vocabulary_gone(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    (store.run("run-1").transform.path / "part").unlink()
    return CONFIG


def no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    (store.run("run-1").path / "record.json").unlink()
    return CONFIG


def unknown_key(store: Store, monkeypatch: pytest.MonkeyPatch) -> Config:
    path = store.run("run-1").model(MAIN_MODEL).config
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["model"]["shape"] = "round"
    path.write_text(json.dumps(tree), encoding="utf-8")
    return CONFIG


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (older_code, f"version 1 was made by code version {contracts.__version__}, this is 9.0: training from scratch"),
        (
            newer_store,
            f"version 1 was made by code version 9.0, this is {contracts.__version__}: training from scratch",
        ),
        (
            other_model,
            "model section differs from that of version 1 (model.embedding_dim: 64 -> 32): training from scratch",
        ),
        (unknown_key, "model.shape: unknown key"),
        (weights_gone, "the weights of version 1 are gone"),
        (weights_file_gone, "the weights of version 1 are gone: training from scratch"),
        (groups_gone, "the groups of version 1 are gone: training from scratch"),
        (vocabulary_gone, "the vocabularies of version 1 are gone: training from scratch"),
        (no_record, "version 1 is served, but no run of this store made it"),
    ],
)
def test_weights_that_do_not_fit_are_left(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Store, pytest.MonkeyPatch], Config],
    note: str,
) -> None:
    pushed(store, 1)
    config = change(store, monkeypatch)
    plan = plan_of(store, config)
    assert (plan.parent, plan.warm, plan.version) == (1, False, 2)
    assert note in plan.notes[0]
    named = config.model_copy(update={"training": config.training.model_copy(update={"warm_start": "runs/mine"})})
    # What no run of the store has made may be the model of the run that is named.
    start = "runs/mine" if change is no_record else None
    assert run_config(named, store, plan, []).training.warm_start == start


def test_a_second_attempt_keeps_the_plan(store: Store) -> None:
    pushed(store, 1)
    first = plan_of(store)
    (store.servable("dnc") / "7").mkdir()  # somebody prepares a version of their own
    assert plan_of(store) == first
    assert plan_of(store, run_id="other") == replace(first, run_id="other")
    assert json.loads((store.run("new").path / "plan.json").read_text())["version"] == 2


def test_a_second_attempt_after_a_rollback_plans_anew(store: Store) -> None:
    """It is what a gate that cannot ask the served version tells people to do; and no training differs by it."""
    cold = with_key("retrain={warm_start: false, stable_groups: false}")
    pushed(store, 1)
    pushed(store, 2)
    first = plan_of(store, cold)
    write_labels(store.servable("dnc"), ServingLabels(stable=1))
    second = plan_of(store, cold)
    assert [(plan.parent, plan.parent_run, plan.held) for plan in (first, second)] == [
        (2, "run-2", False),
        (1, "run-1", True),
    ]
    gates = [
        fingerprints(retrain_stages(store, plan), run_config(cold, store, plan, []))[GATE] for plan in (first, second)
    ]
    assert gates[0] != gates[1]


def test_a_second_attempt_that_refuses_other_spans_plans_anew(store: Store) -> None:
    """Else the record, of the spans that can be used now, would say that one is learnt which never was."""
    first = make_plan(CONFIG, store, "new", SPANS[1:], {"1": "too small"})
    loosened = make_plan(CONFIG, store, "new", SPANS, {})
    assert (first.spans, loosened.spans) == (["2", "3", "4", "5", "6"], ["1", "2", "3", "4", "5", "6"])
    assert (loosened.left_out, make_plan(CONFIG, store, "new", SPANS, {})) == ({}, loosened)
    window = [Span(number, str(number), {f"{number}.csv": (f"{number}.csv", 1, 1)}) for number in range(1, 7)]
    assert run_config(CONFIG, store, first, window).data.events == ("2.csv", "3.csv", "4.csv", "5.csv", "6.csv")


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_span_with_a_wrong_name_holds_nothing_back_once_what_is_said_is_done(store: Store, caught_up: bool) -> None:
    """Span 3 came as 1000, which is greater than all that will come for years; it was trained on twice."""
    for version, newest in ((1, 2), (2, 1000), (3, 1000)):
        pushed(store, version, spans=[SpanStart("1", 1, ""), SpanStart(str(newest), 5, "")])
        record = read_record(store, f"run-{version}")
        assert record is not None
        write_record(store, replace(record, catch_up={"is_pushed": caught_up}))
    window, said = [Span(number, str(number), {}) for number in (2, 3)], []
    while reason := _nothing_new(CONFIG, store, window, "new"):
        assert reason.startswith("span 3 is older than 1000, which has already been trained on; if 1000 is misnamed,")
        [run] = [path for path in store.runs.iterdir() if f"delete {path}, and call again" in reason]
        said.append(run.name)
        version = run.name.removeprefix("run-")
        serves_on = f"Version {version} has learnt that span: while it serves, the gate may refuse the model"
        assert (serves_on in reason) == caught_up
        shutil.rmtree(run)
    assert sorted(said) == ["run-2", "run-3"]
    plan = plan_of(store)
    assert plan.notes[0].endswith("this run continues from version 1")
    later = replace(plan, spans=["3", "4"])  # of which version 3 has not learnt what judges
    assert compared_version(CONFIG, store, later) == (store.servable("dnc") / "3", "version 3")


@pytest.mark.parametrize(
    ("setting", "is_judged_again"),
    [
        ("retrain.gate.max_drop=0.5", True),
        ("retrain.catch_up_epochs=2", True),
        ("retrain.catch_up_epochs=0", False),  # as it was
        ("retrain.keep_versions=9", False),
    ],
)
def test_what_was_refused_is_judged_again_once_what_it_was_refused_by_has_changed(
    store: Store, setting: str, is_judged_again: bool
) -> None:
    """As where the version that serves has learnt the newest span, and without catching up nothing takes its place."""
    pushed(store, 1, with_key("retrain.catch_up_epochs=0"))
    record = read_record(store, "run-1")
    assert record is not None
    write_record(store, replace(record, outcome="not_blessed", version=None))
    window = [Span(number, str(number), {}) for number in (0, 1)]
    config = load_config(None, [*KEYS, "retrain.catch_up_epochs=0", setting])
    reason = _nothing_new(config, store, window, "run-1")
    assert reason == (None if is_judged_again else "span 1 was trained on at : not_blessed")
    write_record(store, replace(record, outcome="pushed"))
    assert "pushed, version 1" in (_nothing_new(config, store, window, "run-1") or "")
    gate = {"reasons": ["recall_at_20 0.1 is below 0.2", "filled 0.5 is below 0.9"]}
    write_record(store, replace(record, outcome="not_blessed", version=None, gate=gate))
    said = "span 1 was trained on at : not_blessed (recall_at_20 0.1 is below 0.2; filled 0.5 is below 0.9)"
    assert _nothing_new(config, store, window, "run-1") == (None if is_judged_again else said)
    older = {key: value for key, value in record.config["retrain"].items() if key != "catch_up_epochs"}
    write_record(store, replace(record, outcome="not_blessed", config={**record.config, "retrain": older}))
    reason = _nothing_new(config, store, window, "run-1")  # of older code, which did not catch up
    assert (reason is None) == setting.startswith("retrain.gate")
    gate = {key: value for key, value in record.config["retrain"]["gate"].items() if key != "max_ndcg_drop"}
    older = {**record.config["retrain"], "gate": gate}
    write_record(store, replace(record, outcome="not_blessed", config={**record.config, "retrain": older}))
    reason = _nothing_new(config, store, window, "run-1")  # of older code, whose gate had no such limit
    assert (reason is None) == is_judged_again


@pytest.mark.parametrize("content", ['{"run_id": "a', "{}"])
def test_a_damaged_plan_is_named(store: Store, content: str) -> None:
    path = RetrainRun(store.run("new")).plan
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{path} is not a plan .*: restore it, or delete {path.parent},"):
        make_plan(CONFIG, store, "new", SPANS, {})


def test_the_run_is_named_by_what_goes_in(tmp_path: Path) -> None:
    log = tmp_path / "a.csv"
    log.write_text("1")
    span = Span(1, "1", identities(str(log)))
    first = run_id_of(CONFIG, [span.identity()])
    assert first.startswith("1-")
    operation = ("retrain.webhook=http://x", "server.grpc_port=9000", "beam.runner=DirectRunner")
    for same in (*operation, "data.max_drift=0.9", "retrain.span.schema_of_last=false", "retrain.gate.k=9"):
        assert run_id_of(with_key(same), [span.identity()]) == first, same
    for other in (
        "retrain.epochs=4",
        "seed=1",
        "evaluation.max_users=9",
        "serving.alpha=0.5",
        "windows.length=9",
    ):
        assert run_id_of(with_key(other), [span.identity()]) != first, other
    log.write_text("12")
    assert run_id_of(CONFIG, [span.identity()]) == first
    assert run_id_of(CONFIG, [Span(1, "1", identities(str(log))).identity()]) != first


def test_a_runs_stages_ask_for_no_file_of_the_log(store: Store) -> None:
    """Its name holds what they are; of thousands in an object store, to ask takes minutes."""
    stages = retrain_stages(store, plan_of(store))
    assert fingerprints(stages, with_key("data.events=nowhere://bucket/log.csv")).keys() >= {"ingest", "gate"}


def test_spans_are_merged_again_where_they_are_not_what_they_were(store: Store, tmp_path: Path) -> None:
    """Else a run that is taken up looks for their counts where the store was before, or that somebody has deleted."""
    plan = plan_of(store)

    def of_merge(at: Store) -> str:
        return fingerprints(retrain_stages(at, plan), CONFIG)["ingest"]

    def ingested(span: str) -> None:
        with artifact.writing(store.span(span).events.path, "events", "f"):
            pass

    for span in plan.spans:
        ingested(span)
    first = of_merge(store)
    assert of_merge(store) == first
    ingested("1")
    again = of_merge(store)
    store.path.rename(tmp_path / "elsewhere")
    assert len({first, again, of_merge(Store(tmp_path / "elsewhere"))}) == 3


def test_how_a_run_is_operated_is_not_in_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    named = run_id_of(CONFIG, [("1", {})])
    for same in ("keep_versions=9", "complete_marker=x/{date}", "window_spans=9", "catch_up_epochs=9"):
        assert run_id_of(with_key(f"retrain.{same}"), [("1", {})]) == named, same
    monkeypatch.setattr(contracts, "__version__", "9.0")
    assert run_id_of(CONFIG, [("1", {})]) != named
