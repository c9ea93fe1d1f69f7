"""A push that dies at any of its steps is finished by the next call, of whatever run; a rollback since then stays."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from contracts import artifact
from contracts.serving_labels import ServingLabels, versions_on_disk
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import publish as publishing
from pipeline.retraining.plan import Plan, SpanStart, make_plan
from pipeline.retraining.publish import push_blessed, push_left_over, set_stable
from pipeline.retraining.records import all_records, record_of_version, write_record
from tests.pipeline.small_store import CONFIG, NAMES, make_run, push, stable

STEPS = ["_appear", "_appear", "write_json", "write_labels", "write_labels", "write_json", "write_record"]
"""What a push of two servables calls, in this order."""


@pytest.fixture(params=[False, True], ids=["", "refused before"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Store:
    """Version 1 is stable; run-2 has passed the gate, perhaps not at once, and its push is yet to come."""
    made = Store(tmp_path / "store")
    push(made, 1, None)
    run = RetrainRun(make_run(made, 2))
    plan = Plan("run-2", ["1", "2"], {}, 5, None, None, 1, "run-1", warm=False, held=False, version=2, notes=[])
    artifact.write_json(run.plan, asdict(plan))
    with artifact.writing(run.workdir.export, "export", "f") as writer:
        writer.details.update(model_name="dnc", version=1)
    [first] = all_records(made)
    pending = replace(first, run_id="run-2", outcome="not_blessed", version=None, label=None, created="2024-01-02")
    artifact.write_json(run.pending, asdict(pending))
    if request.param:
        write_record(made, pending)
    return made


@contextmanager
def dying_at(step: int) -> Iterator[None]:
    """What a push calls is done in order, but for the call `step` and all after it."""
    calls: list[str] = []

    def counted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*arguments: object) -> Any:
            calls.append(name)
            if len(calls) > step:
                raise KeyboardInterrupt
            return call(*arguments)

        return instead

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        for name in sorted(set(STEPS)):
            patch.setattr(publishing, name, counted(name, getattr(publishing, name)))
        yield
    assert calls == STEPS[: step + 1]


@pytest.mark.parametrize("step", range(len(STEPS)))
def test_the_next_call_finishes_it_and_nothing_is_held_back(
    store: Store, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    with dying_at(step):
        push_blessed(store, "run-2")
    [record] = push_left_over(store)
    assert (record.outcome, record.version, record.label) == ("pushed", 2, "stable")
    assert record == record_of_version(store, 2)
    assert stable(store) == [ServingLabels(stable=2)] * 2
    assert [versions_on_disk(store.servable(name)) for name in NAMES] == [[1, 2]] * 2
    assert caplog.messages == ["run run-2 died in its push, now finished: version 2 is stable"]
    assert push_left_over(store) == []
    plan = make_plan(CONFIG, store, "run-3", [SpanStart("2", 1, "b"), SpanStart("3", 5, "c")], {})
    assert (plan.parent, plan.parent_run, plan.version, plan.held) == (2, "run-2", 3, False)


def test_code_that_is_older_than_what_began_a_push_finishes_it(store: Store) -> None:
    """As after an upgrade that failed: what is new in plans and records must not stop every later retrain."""
    with dying_at(STEPS.index("write_json")):
        push_blessed(store, "run-2")
    run = RetrainRun(store.run("run-2"))
    for path in (run.plan, run.pending):
        artifact.write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"of_newer_code": 1})
    [record] = push_left_over(store)
    assert (record.version, stable(store)) == (2, [ServingLabels(stable=2)] * 2)


@pytest.mark.parametrize("step", [step for step, name in enumerate(STEPS) if step > STEPS.index("write_labels")])
def test_a_rollback_before_the_next_call_stays(store: Store, step: int) -> None:
    with dying_at(step):
        push_blessed(store, "run-2")
    set_stable(store, 1)
    [record] = push_left_over(store)
    assert (record.version, stable(store)) == (2, [ServingLabels(stable=1)] * 2)


def test_somebody_who_goes_further_back_in_between_holds_it(store: Store) -> None:
    """What was stable when the run was planned is so no more, though the push had no label yet."""
    push(store, 3, 1)
    with dying_at(STEPS.index("write_labels")):
        push_blessed(store, "run-2")
    [record] = push_left_over(store)
    assert (record.version, record.label, stable(store)) == (2, "canary", [ServingLabels(stable=3, canary=2)] * 2)


@pytest.mark.parametrize(
    ("decided", "labels"), [([1], (1, 2)), ([2, 1], (1, 2)), ([2], (2, None)), ([1, 2], (2, None))]
)
def test_a_rollback_to_the_version_that_is_stable_already_holds_it_against_the_one_that_appeared(
    store: Store, decided: list[int], labels: tuple[int, int | None]
) -> None:
    """Version 2 is there without a label. Whoever names one of the two has decided between them."""
    with dying_at(STEPS.index("write_json")):
        push_blessed(store, "run-2")
    for version in decided:
        assert set_stable(store, version) == []
    [record] = push_left_over(store)
    assert (record.version, record.label) == (2, "canary" if labels[1] else "stable")
    assert stable(store) == [ServingLabels(stable=labels[0], canary=labels[1])] * 2
    plan = make_plan(CONFIG, store, "run-3", [SpanStart("2", 1, "b"), SpanStart("3", 5, "c")], {})
    assert (plan.parent, plan.held) == (labels[0], labels[1] is not None)


def test_a_rollback_from_a_version_that_somebody_put_there_holds_a_run_that_was_planned_before(store: Store) -> None:
    """As from one of `dnc index`, while the run trains: it would have become stable."""
    run = RetrainRun(store.run("run-2"))
    pending = run.pending.rename(run.pending.with_suffix(".later"))
    for version in (2, 4):
        put = Path(shutil.copytree(store.servable("dnc") / "1", store.servable("dnc") / str(version)))
        (put / "saved_model.pb").write_text("of today's items")
    set_stable(store, 1)
    pending.rename(run.pending)
    record = push_blessed(store, "run-2")
    assert (record.version, record.label) == (3, "canary")


def test_a_rollback_to_the_only_version_holds_nothing(store: Store) -> None:
    with dying_at(STEPS.index("_appear")):
        push_blessed(store, "run-2")
    set_stable(store, 1)
    [record] = push_left_over(store)
    assert (record.label, stable(store)) == ("stable", [ServingLabels(stable=2)] * 2)


def test_a_rollback_needs_no_plan_of_a_push_that_died(store: Store) -> None:
    with dying_at(STEPS.index("write_json")):
        push_blessed(store, "run-2")
    RetrainRun(store.run("run-2")).plan.write_text("{}")
    assert (set_stable(store, 1), stable(store)) == ([], [ServingLabels(stable=1)] * 2)


@pytest.mark.parametrize("record", [None, "", "{}"], ids=["no push", "empty record", "no record"])
def test_a_run_that_has_not_begun_its_push_or_whose_record_may_be_restored_is_left_alone(
    store: Store, record: str | None
) -> None:
    run = RetrainRun(store.run("run-2"))
    run.record.unlink(missing_ok=True)
    if record is None:
        run.pending.unlink()
    else:
        run.record.write_text(record)
    assert push_left_over(store) == []
    assert stable(store) == [ServingLabels(stable=1)] * 2


@pytest.mark.parametrize("gone", ["plan.json", "export", "servable"])
def test_a_run_that_has_lost_a_part_is_named(store: Store, gone: str) -> None:
    run = store.run("run-2").path
    (run / gone).rename(run / "elsewhere")
    with pytest.raises(ValueError, match=rf"{run} passed the gate, .*: fix that, or delete the directory"):
        push_left_over(store)
    assert stable(store) == [ServingLabels(stable=1)] * 2


def test_what_somebody_put_at_the_number_does_not_pass_for_an_export_that_is_gone(store: Store) -> None:
    run = store.run("run-2")
    shutil.rmtree(run.servable("dnc").parent)
    for name in NAMES:
        shutil.copytree(store.servable(name) / "1", store.servable(name) / "2")
    with pytest.raises(ValueError, match=rf"{run.path} passed the gate, .*: fix that, or delete the directory"):
        push_left_over(store)
    assert stable(store) == [ServingLabels(stable=1)] * 2
    assert record_of_version(store, 2) is None
    assert [versions_on_disk(store.servable(name)) for name in NAMES] == [[1, 2]] * 2
