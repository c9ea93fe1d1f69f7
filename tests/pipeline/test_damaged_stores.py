"""Files of a store that a disk has damaged: what can do without them does, and the rest names them and the remedy."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from contracts import artifact
from contracts.serving_labels import ServingLabels
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.clients import require_inputs
from pipeline.retraining.plan import Plan, read_plan
from pipeline.retraining.publish import push_blessed, set_stable
from pipeline.retraining.records import all_records, files_of, keep_files, read_record
from pipeline.retraining.spans import Span
from pipeline.retraining.views import lineage_json
from serving.export import MANIFEST_FILE
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.small_store import CONFIG, make_run, push, stable
from tests.pipeline.stubbed_calls import StubbedCalls

DAMAGED = ['{"version": 3, "la', "", "[]", "{}", '{"version": "x", "label": "stable"}']


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 1 and 2 are pushed; run-3 has passed the gate, and its push is yet to come."""
    made = Store(tmp_path / "store")
    push(made, 1, None)
    push(made, 2, 1)
    run = RetrainRun(make_run(made, 3))
    plan = Plan("run-3", ["2", "3"], {}, 5, None, None, 2, "run-2", warm=False, held=False, version=3, notes=[])
    artifact.write_json(run.plan, asdict(plan))
    with artifact.writing(run.workdir.export, "export", "f") as writer:
        writer.details.update(model_name="dnc", version=1)
    pending = replace(all_records(made)[-1], run_id="run-3", outcome="not_blessed", version=None, label=None)
    artifact.write_json(run.pending, asdict(pending))
    return made


@pytest.mark.parametrize("content", DAMAGED)
@pytest.mark.parametrize("run_id", ["run-1", "run-2", "run-3"])
def test_a_damaged_push_stops_no_rollback(store: Store, run_id: str, content: str) -> None:
    """A rollback is for emergencies, and those runs are none of its business."""
    RetrainRun(store.run(run_id)).push.write_text(content)
    assert set_stable(store, 1) == []
    assert stable(store) == [ServingLabels(stable=1)] * 2


def test_a_damaged_push_is_named_and_what_its_message_says_undoes_no_rollback(store: Store) -> None:
    path = RetrainRun(store.run("run-3")).push
    path.write_text(DAMAGED[0])
    set_stable(store, 1)
    set_stable(store, 2)
    set_stable(store, 1)
    remedy = "restore it, or delete it so that the next `dnc retrain` starts that push over"
    with pytest.raises(ValueError, match=rf"{path} is not the state of a push \(.*\): {remedy}"):
        push_blessed(store, "run-3")
    path.unlink()
    record = push_blessed(store, "run-3")
    assert (record.version, record.label) == (3, "canary")
    assert stable(store) == [ServingLabels(stable=1, canary=3)] * 2
    assert read_record(store, "run-3") == record
    assert json.loads(path.read_text()) == {"version": 3, "label": "canary", "is_done": True}


@pytest.mark.parametrize("content", ['[["a.csv", 1', "", '{"a.csv": 1}'])
def test_a_damaged_list_of_files_is_as_gone_until_it_is_written_anew(
    store: Store, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    span = Span(2, "2", {"a.csv": ("a.csv", 1, 2)})
    keep_files(store, span)
    path = store.span_files("2", span.digest)
    path.write_text(content)
    record = replace(all_records(store)[0], spans=[{"key": "2", "order": 2, "files": span.digest}])
    assert [span["files"] for span in lineage_json(store, record)["spans"]] == [None]
    [told] = caplog.messages
    assert told.startswith(f"{path} is not a list of a span's files (")
    keep_files(store, span)
    assert files_of(store, record.spans[0]) == json.loads(path.read_text()) == [["a.csv", 1, 2]]


def test_a_damaged_manifest_of_the_served_version_is_named_with_what_to_do(store: Store) -> None:
    path = store.servable("dnc") / "2" / MANIFEST_FILE
    path.parent.mkdir()
    path.write_text('{"kind": "serv')
    plan = read_plan(RetrainRun(store.run("run-3")).plan)
    with pytest.raises(ValueError, match=rf"{path} is not a manifest \(.*\): restore it, or, .*\(dnc rollback\)"):
        require_inputs(CONFIG, store, plan)


def test_a_damaged_record_of_what_was_pushed_is_written_anew_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained again, by other code perhaps, its record would be of a model that nobody has pushed."""
    calls = StubbedCalls(tmp_path, monkeypatch)
    assert calls.version("--span", DAYS[2]) == 1
    [record] = all_records(calls.store)
    run = RetrainRun(calls.store.run(record.run_id))
    run.record.write_text('{"run_id": "20')
    assert calls.version("--span", DAYS[2]) == "nothing_new"
    assert all_records(calls.store) == [record]
    # Of another day's call, too: what serves has a record, and the next run its weights to go on from.
    run.record.write_text("")
    assert calls.version("--span", DAYS[3]) == 2
    second = all_records(calls.store)[-1]
    assert (all_records(calls.store)[0], second.parents["run_id"]) == (record, record.run_id)


@pytest.mark.parametrize("also", ["record-pending.json", "push.json"])
def test_a_damaged_record_that_nothing_can_be_written_anew_from_is_named(
    also: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = StubbedCalls(tmp_path, monkeypatch)
    assert calls.version("--span", DAYS[2]) == 1
    run = calls.store.run(calls.ran[0]).path
    for name in ("record.json", also):
        (run / name).write_text("{")
    outcome = calls.outcome("--span", DAYS[2])
    assert outcome["outcome"] == "failed"
    [reason] = outcome["reasons"]
    assert reason.startswith(f"{run}/record.json is damaged, and push.json beside it says that this run was pushed: ")
    assert reason.endswith("restore the record, or delete the run's directory")
    assert len(calls.ran) == 1
    assert calls.version("--span", DAYS[3]) == 2  # which needs it no more than before
