"""`dnc retrain`: newest spans in; a version that passed the gate, or none, out. Called after a crash, it continues."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal

from contracts import artifact
from contracts.config import Config
from contracts.errors import TooFewEvents
from contracts.layout import MAIN_MODEL, ItemGroups
from contracts.patterns import DATE
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import records
from pipeline.retraining.clients import require_inputs, require_long_lists
from pipeline.retraining.fit_spans import FitSpans, fit_spans
from pipeline.retraining.housekeeping import make_room, retain
from pipeline.retraining.plan import CATCH_UP, GATE, Plan, SpanStart, make_plan, run_config, run_id_of
from pipeline.retraining.publish import mend_records, push_blessed, push_left_over
from pipeline.retraining.records import (
    Record,
    all_records,
    files_of,
    keep_files,
    kept_start,
    placeholder_of,
    read_record,
    stage_records,
    write_record,
)
from pipeline.retraining.reference import knows_holdout
from pipeline.retraining.retrain_stages import forget_outdated_merges, retrain_stages
from pipeline.retraining.silent_groups import silent_groups
from pipeline.retraining.span_profile import as_json, starts
from pipeline.retraining.spans import Span, date_form, find_spans
from pipeline.runner import require_bases, run_stages
from pipeline.stage import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """The outcome of a call.

    Attributes:
        outcome: pushed, not_blessed, nothing_new, stopped (as asked, before the push) or failed.
        span: key of the newest span; None if none was found.
        reasons: for any outcome but pushed, in words.
        seconds: of the whole call.
    """

    outcome: Literal["pushed", "not_blessed", "nothing_new", "stopped", "failed"]
    run_id: str | None = None
    version: int | None = None
    label: str | None = None
    span: str | None = None
    reasons: list[str] = field(default_factory=list)
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


def find_window(config: Config, until: str | None = None) -> list[Span]:
    """The newest complete spans, `retrain.window_spans` at most, oldest first.

    Args:
        until: key of the newest span to consider; default: the newest.

    Raises:
        ValueError: there is none.
    """
    spans = find_spans(config, until)
    if not spans:
        marker = config.retrain.complete_marker
        told_by = f"retrain.complete_marker={marker}" if marker else "the dates"
        raise ValueError(
            f"data.events={list(config.data.events)} has no complete span{f' up to {until}' if until else ''}: check "
            f"{'--span, ' if until else ''}the path and {told_by}{date_form(config)}"
        )
    return spans[-config.retrain.window_spans :]


def retrain(config: Config, store: Store, window: Sequence[Span], last: str | None = None) -> Result:
    """Trains on the spans of the window, judges the result, and pushes it if it passes.

    The caller holds the store's lock.

    Args:
        window: as `find_window` returns it.
        last: one of `plan.STEP_NAMES` to stop after.

    Raises:
        ValueError: a span, the config or what is served cannot be used, or a stage refused its input.
    """
    started = time.monotonic()
    require_bases(map(store.servable, config.serving.servable_names().values()))
    mend_records(store)
    left_over = {record.run_id: record for record in push_left_over(store)}
    run_id = _run_id(config, store, window)
    if run_id in left_over:
        return _result(left_over[run_id], {})
    idle = _nothing_new(config, store, window, run_id)
    if idle:
        return Result("nothing_new", run_id, reasons=[idle])
    make_room(store, run_id, {span.key for span in window})
    fit = fit_spans(config, store, window)
    digests = {span.key: span.digest for span in window}
    began = zip(fit.profiles, starts(fit.profiles), strict=True)
    usable = [SpanStart(profile.key, start, digests[profile.key]) for profile, start in began]
    plan = make_plan(config, store, run_id, usable, fit.left_out)
    for note in (*plan.notes, *fit.notes):
        log.warning("%s", note)
    require_inputs(config, store, plan)
    require_long_lists(config, store, plan)
    workdir = store.run(run_id)
    forget_outdated_merges(workdir)
    resolved = run_config(config, store, plan, window)
    stages = retrain_stages(store, plan)
    try:
        results = run_stages(stages, resolved, workdir, last=last)
    except TooFewEvents as error:
        if plan.parent is None:
            raise
        reasons = [
            f"version {plan.parent} keeps serving, and the next span's run will learn from this span, too: {error}"
        ]
        return Result("nothing_new", run_id, reasons=reasons)
    if last is not None:
        return _stopped(store, plan, last)
    record = _finish(config, store, plan, resolved, stages, fit, window, time.monotonic() - started)
    return _result(record, {result.name: round(result.seconds, 2) for result in results if result.ran})


def _stopped(store: Store, plan: Plan, last: str) -> Result:
    """The result of a call that `last` ended; from the gate on, with what the gate found."""
    run, reasons = RetrainRun(store.run(plan.run_id)), [f"after {last}, as requested"]
    if last not in (GATE, CATCH_UP):
        return Result("stopped", plan.run_id, reasons=reasons)
    found = artifact.read_manifest(run.gate).details
    verdict = found["verdict"]
    if last == CATCH_UP:
        verdict = verdict_on(store, plan, verdict, artifact.read_manifest(run.catch_up).details)
    reasons += [f"the model would not be pushed: {reason}" for reason in verdict["reasons"]]
    gate = {key: verdict[key] for key in ("blessed", "reference", "reasons")}
    return Result("stopped", plan.run_id, reasons=reasons, details={"metrics": found["metrics"], "gate": gate})


def _result(record: Record, seconds: dict[str, float]) -> Result:
    """The result of a finished run; `seconds` are those of the stages that this call ran."""
    # Records left over from older code say nothing about it.
    catch_up = {key: record.catch_up[key] for key in ("is_pushed", "why_not")} if record.catch_up else {}
    details = {
        "stages": seconds,
        "metrics": record.metrics,
        "catch_up": catch_up,
        "left_out": record.left_out,
        "notes": record.notes,
    }
    reasons = record.gate["reasons"]
    return Result(record.outcome, record.run_id, record.version, record.label, reasons=reasons, details=details)


def _run_id(config: Config, store: Store, window: Sequence[Span]) -> str:
    """The run's id, see `run_id_of`; another if, since these, other files or settings were pushed for the newest span.

    This happens, for example, if a mistake was put right: its version is to be replaced, and no newer one has these
    files and settings.
    """
    run_id, key = run_id_of(config, [span.identity() for span in window]), window[-1].key
    pushed = [record for record in all_records(store) if record.version and record.spans[-1]["key"] == key]
    if run_id not in {record.run_id for record in pushed}:
        return run_id
    last = max(pushed, key=lambda record: record.version or 0)
    return last.run_id if _is_of(last, run_id) else f"{run_id}-{artifact.fingerprint(last.run_id)[:8]}"


def _is_of(record: Record, run_id: str) -> bool:
    """Whether a run had the files and settings that `run_id` names, see `_run_id`."""
    return record.run_id == run_id or record.run_id.startswith(f"{run_id}-")


def _nothing_new(config: Config, store: Store, window: Sequence[Span], run_id: str) -> str | None:
    """Why there is nothing to do, or None.

    Raises:
        ValueError: the run was pushed, and its record is damaged, so a new training would be recorded as that run.
    """
    if len(window) < 2:
        return f"only one complete span ({window[-1].key}): the newest is the holdout, so training needs an earlier one"
    record, run = read_record(store, run_id), RetrainRun(store.run(run_id))
    if record is None and run.record.exists() and run.push.exists():
        raise ValueError(
            f"{run.record} is damaged, and {run.push.name} beside it says that this run was pushed: restore the "
            "record, or delete the run's directory"
        )
    if record is not None and (record.outcome == "pushed" or not _is_judged_again(config, record)):
        return f"span {window[-1].key} was trained on at {record.created}: {_came_to(record)}"
    last = next(reversed(all_records(store)), None)
    if last is not None and _is_rest_of(window, last, config, store):
        return (
            f"span {window[-1].key} was trained on at {last.created}: {_came_to(last)}; "
            "since then, the log has lost the oldest spans of that run's window and gained nothing new"
        )
    newest = _last_comparable(store, window[-1])
    if newest is not None and newest.spans[-1]["order"] > window[-1].order:
        return _older_than(newest, window[-1], store, config)
    return None


def _last_comparable(store: Store, span: Span) -> Record | None:
    """The last run whose spans were named by the same placeholder as the span."""
    kind = placeholder_of(span.key)
    return next((one for one in reversed(all_records(store)) if placeholder_of(one.spans[-1]["key"]) == kind), None)


def _came_to(record: Record) -> str:
    version = f", version {record.version}" if record.version else ""
    refused = f" ({'; '.join(reasons)})" if (reasons := record.gate.get("reasons")) else ""
    return f"{record.outcome}{version}{refused}"


def _is_judged_again(config: Config, refused: Record) -> bool:
    """Whether a model that was refused may pass by now; the stages before the gate are done.

    Only a model that has caught up may replace a version that has learnt the newest span.
    """
    now = config.retrain.model_dump(mode="json", include={"gate", "catch_up_epochs"})
    then = {**now, **refused.config["retrain"]}
    # A limit that the refusing code did not have yet is no change: the same model would only get another chance.
    return {**now["gate"], **then["gate"]} != now["gate"] or then["catch_up_epochs"] != now["catch_up_epochs"]


def _older_than(last: Record, span: Span, store: Store, config: Config) -> str:
    """A message about a span that is older than the last run's newest one."""
    key, learnt, clock, now = last.spans[-1]["key"], "", "", datetime.now(timezone.utc)
    if config.retrain.complete_marker is None and placeholder_of(key) == DATE and key >= now.date().isoformat():
        clock = (
            f", though by this machine's clock ({now:%Y-%m-%d %H:%M} UTC) that day is not over; if the clock is wrong, "
            "correct it and call again"
        )
    if last.catch_up.get("is_pushed"):
        # Do not advise a rollback first: the older version would keep serving, as later versions become canaries.
        learnt = (
            f". Version {last.version} has learnt that span: while it serves, the gate may refuse the model that is "
            "judged on it, and that version keeps serving until the model of a later span passes"
        )
    return (
        f"span {span.key} is older than {key}, which has already been trained on{clock}; if {key} is misnamed, "
        f"rename that span in the log, delete {store.run(last.run_id).path}, and call again: without that record, "
        f"training continues from the version before, or starts from scratch if there is none{learnt}"
    )


def _is_rest_of(window: Sequence[Span], record: Record, config: Config, store: Store) -> bool:
    """Whether a run was given all of the window and older spans under this config: logs are rotated.

    False for a run that the gate refused but that may pass by now: its verdict is yet to come.
    """
    if record.outcome != "pushed" and _is_judged_again(config, record):
        return False
    given = [[span["key"], *(files_of(store, span) or [])] for span in record.window]
    rest = [span.identity() for span in window]
    return given[-len(rest) :] == rest and _is_of(record, run_id_of(config, given))


def _finish(
    config: Config,
    store: Store,
    plan: Plan,
    resolved: Config,
    stages: tuple[Stage, ...],
    fit: FitSpans,
    window: Sequence[Span],
    seconds: float,
) -> Record:
    """Pushes if the gate blessed, writes the record, tidies up."""
    workdir = store.run(plan.run_id)
    run = RetrainRun(workdir)
    blessing, caught_up = (artifact.read_manifest(path).details for path in (run.gate, run.catch_up))
    spans = {span.key: span for span in window}
    for span in window:
        keep_files(store, span)
    model, groups = (artifact.read_manifest(one.path) for one in (workdir.model(MAIN_MODEL), workdir.item_groups))
    silent = silent_groups(fit.profiles, ItemGroups(artifact.current(workdir.item_groups.path)))
    for note in silent:
        log.warning("%s", note)
    notes = [*plan.notes, *fit.notes, *silent]
    warm_start = model.details["warm_start"]
    if kept_start(model):
        start = _start(store, plan, warm_start["source"])
        note = f"no epoch validated better than {start}, from which training started, so its weights are kept"
        notes.append(note + ", except for what the pushed weights learnt while catching up" * caught_up["is_pushed"])
        log.warning("%s%s", notes[-1], ", and the next run will learn from this run's spans, too" * bool(plan.parent))
    record = Record(
        run_id=plan.run_id,
        outcome="not_blessed",
        version=None,
        label=None,
        created=artifact.now(),
        seconds=round(seconds, 2),
        spans=[{**as_json(p), "order": spans[p.key].order, "files": spans[p.key].digest} for p in fit.profiles],
        left_out=plan.left_out,
        unused=[
            {"key": span.key, "order": span.order, "files": span.digest} for span in window if span.key in plan.left_out
        ],
        refused=fit.refused,
        parents={
            "version": plan.parent,
            "run_id": plan.parent_run,
            "warm_start": warm_start,
            "kept_start": kept_start(model),
            "groups": groups.details.get("drift"),
        },
        gate=verdict_on(store, plan, blessing["verdict"], caught_up),
        metrics=blessing["metrics"],
        catch_up=caught_up,
        config=resolved.model_copy(update={"data": config.data}).model_dump(mode="json"),
        stages=stage_records(stages, resolved, workdir),
        notes=notes,
        code=records.code(),
        machine=records.machine(),
    )
    if record.gate["blessed"]:  # last, so that whatever else fails does not leave a version without a record
        artifact.write_json(run.pending, asdict(record))
        record = push_blessed(store, plan.run_id)
    else:
        write_record(store, record)
    retain(config, store)
    return record


def verdict_on(store: Store, plan: Plan, verdict: dict[str, Any], caught_up: dict[str, Any]) -> dict[str, Any]:
    """The gate's verdict, except that a model that has not learnt the newest span replaces no version that has.

    The gate compared them as they were before either had caught up.
    """
    if not verdict["blessed"] or caught_up["is_pushed"] or not knows_holdout(store, plan):
        return verdict
    reason = (
        f"version {plan.parent} has learnt span {plan.spans[-1]}, but this run's model has not "
        f"({caught_up['why_not']}), so that version keeps serving"
    )
    return {**verdict, "blessed": False, "reasons": [reason]}


def _start(store: Store, plan: Plan, source: str) -> str:
    """What training started from, in words. A first version may start from another run, by training.warm_start."""
    parent = read_record(store, plan.parent_run) if plan.parent_run else None
    return f"version {parent.version}" if parent else source
