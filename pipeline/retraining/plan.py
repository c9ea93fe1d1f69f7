"""The plan of one retrain: which spans, from which version, with which config. Written once, kept if killed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import contracts
from contracts import artifact
from contracts.config import Config
from contracts.config.data import LIMITS_OF_DATA, READING_OF_LOG
from contracts.config_io import ConfigError, read_stored_config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.serving_labels import LABELS_FILE, effective_labels, versions_on_disk
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.base_paths import no_longer_exported
from pipeline.retraining.changes import changes
from pipeline.retraining.records import Record, all_records, digest_of, largest_version_given, placeholder_of
from pipeline.retraining.spans import Span
from pipeline.stages import STAGES, VALIDATE_ALONE


@dataclass(frozen=True)
class SpanStart:
    """A span that can be used: its key, its first moment in microseconds, and the digest of its files."""

    key: str
    start: int
    files: str


@dataclass(frozen=True)
class Plan:
    """What a run sets out to do.

    Attributes:
        run_id: names the run's directory: newest span and a hash of what goes in.
        spans: keys of the spans of the window, oldest first; the last is the holdout.
        left_out: key -> why an older span of the window is not used.
        holdout_start: microseconds.
        news_start: microseconds; the parent's run has not seen events from this time on. None: it has seen no event.
        since: microseconds; a warm-started training learns from events from this time on, which the parent's weights
            have not learnt from (if the parent's own training did not improve them, they are an earlier run's). None:
            from all events.
        parent: the version that is served, which training starts from and the gate compares with.
        parent_run: its run; if no run of the store made that version, the run of the last version before it.
        warm: whether training starts from the parent's weights.
        held: whether somebody keeps an older version stable, so that the new one becomes canary.
        version: the number that the candidate gets if it passes.
        notes: what a reader of the record should know.
    """

    run_id: str
    spans: list[str]
    left_out: dict[str, str]
    holdout_start: int
    news_start: int | None
    since: int | None
    parent: int | None
    parent_run: str | None
    warm: bool
    held: bool
    version: int
    notes: list[str]


RUN_STAGES = (*(stage for stage in STAGES if stage.name not in ("evaluate", "validate")), VALIDATE_ALONE)
"""The stages of `dnc run` except the exact ranking of all test users: the gate asks the servable for their lists."""
GATE, CATCH_UP = "gate", "catch_up"
STEP_NAMES = [stage.name for stage in RUN_STAGES] + [GATE, CATCH_UP]
"""The steps that a retrain can stop after; otherwise, it pushes."""

_SECTIONS = {section.split(".")[0] for stage in STAGES for section in stage.sections} | {"retrain"}
"""The sections that a run's stages and gate depend on; the others determine how it runs and serves."""
_OPERATION = {"webhook", "keep_versions", "complete_marker", "window_spans", "span", "gate", "catch_up_epochs"}
"""Keys of the section retrain that do not change the model that the next run continues from. Those that choose or
refuse spans are reflected in the chosen spans; under other limits of the gate, or with another catching up, a run that
it refused is judged again."""


def run_id_of(config: Config, spans: Sequence[Sequence[object]]) -> str:
    """A run's id, which is the same for the same spans, files, version and settings that the stages depend on.

    `spans`: identities, oldest first, see `Span.identity`.
    """
    # Not `artifact.code_of`: a code change is not new data, and would train on the newest span once more. New code that
    # resumes a killed run mixes nothing: the stages' fingerprints include the code that they ran.
    tree = config.model_dump(
        mode="json", include=_SECTIONS, exclude={"retrain": _OPERATION, "data": set(LIMITS_OF_DATA)}
    )
    digest = artifact.fingerprint(contracts.__version__, tree, list(spans))
    return f"{spans[-1][0]}-{digest[:8]}"


def make_plan(
    config: Config,
    store: Store,
    run_id: str,
    spans: Sequence[SpanStart],
    left_out: dict[str, str],
) -> Plan:
    """The plan of a run, read from an earlier attempt if that has written it.

    It is written anew if a limit of `retrain.span` has since been changed and refuses other spans, or if another
    version is stable by now: the gate compares with what is served.

    Args:
        spans: those of the window that can be used, oldest first.
        left_out: why the others cannot.

    Raises:
        ValueError: the version that is labelled stable is not on disk, or the plan that was written is damaged.
    """
    stable, versions = _served(store.servable(config.serving.model_name))
    path = RetrainRun(store.run(run_id)).plan
    if path.exists() and ((written := read_plan(path)).spans, written.parent) == ([span.key for span in spans], stable):
        return written
    plan = _new_plan(config, store, run_id, spans, left_out, stable, versions)
    path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(path, asdict(plan))
    return plan


def _served(base: Path) -> tuple[int | None, list[int]]:
    """The stable version of a base path, or None without one, and all versions on disk."""
    labels, versions = effective_labels(base), versions_on_disk(base)
    if labels is None:
        return None, versions
    if labels.stable not in versions:
        raise ValueError(
            f"{base / LABELS_FILE} says that version {labels.stable} is stable, but {base} holds "
            f"{versions or 'no version'}: restore that version, or delete {LABELS_FILE} to make the newest version "
            "stable, or the next one if there is none"
        )
    return labels.stable, versions


def _new_plan(
    config: Config,
    store: Store,
    run_id: str,
    spans: Sequence[SpanStart],
    left_out: dict[str, str],
    stable: int | None,
    versions: list[int],
) -> Plan:
    parent = gone_on_from(all_records(store), stable) if stable else None
    warm, notes = _may_start_warm(config, store, parent)
    if stable and (parent is None or parent.version != stable):
        served = f"version {stable} is served, but no run of this store made it"
        notes.append(
            f"{served}: the gate compares with it, but this run continues from version {parent.version}"
            if parent
            else f"{served}: training from scratch"
        )
    notes += _begins_anew(config, store) if stable is None else []
    held = stable is not None and stable < versions[-1]
    if held:
        notes.append(
            f"version {stable} is held, as version {versions[-1]} is newer but not stable: this run's version becomes "
            f"canary; to end that, run dnc rollback -s STORE {versions[-1]}"
        )
    notes += _learnt_anew(config, spans[:-1], parent) if parent else []
    notes += _shrunk(config, {*left_out, *(span.key for span in spans)}, parent) if parent else []
    notes += no_longer_exported(store, config.serving)
    return Plan(
        run_id=run_id,
        spans=[span.key for span in spans],
        left_out=left_out,
        holdout_start=spans[-1].start,
        news_start=_first_new(config, spans[:-1], parent) if parent else None,
        since=_first_new(config, spans[:-1], _last_to_learn(store, parent)) if parent and warm else None,
        parent=stable,
        parent_run=parent.run_id if parent else None,
        warm=warm,
        held=held,
        version=max(largest_version_given(store), *versions, 0) + 1,
        notes=notes,
    )


def gone_on_from(records: Iterable[Record], version: int) -> Record | None:
    """The run that the next one continues from if a version is served: the run that made it.

    For a version that no run made, such as one that `dnc index` made from a run, it is that of the last one before it.
    """
    made = [record for record in records if record.version and record.version <= version]
    return max(made, key=lambda record: record.version or 0, default=None)


def _begins_anew(config: Config, store: Store) -> list[str]:
    """A note if this store has trained before, but nothing of this name is served."""
    last = next((record for record in reversed(all_records(store)) if record.version), None)
    if last is None or config.training.warm_start:
        return []
    run = store.run(last.run_id)
    note = (
        f"serving.model_name={config.serving.model_name} has no version; the last one was version {last.version} of "
        f"{last.config['serving']['model_name']}: training from scratch, with new groups, compared with popularity"
    )
    if artifact.find_manifest(run.model(MAIN_MODEL).path):
        note += (
            f". To continue from that one, set training.warm_start={run.path} and "
            f"groups.previous={run.item_groups.path} for this run"
        )
    return [note]


def _last_to_learn(store: Store, record: Record) -> Record:
    """The run whose training made the record's weights: an earlier run if none of its own epochs improved them."""
    of_run = {earlier.run_id: earlier for earlier in all_records(store)}
    while record.parents.get("kept_start") and (earlier := of_run.get(record.parents["run_id"])):
        record = earlier
    return record


def _learnt(config: Config, earlier: Record) -> dict[str, str]:
    """Key -> digest of the files, for each span that a run has trained on: all but its holdout.

    Empty if that run read the log differently: it then learnt from other events.
    """
    return {} if _reading(config, earlier) else {span["key"]: digest_of(span) for span in earlier.spans[:-1]}


def _reading(config: Config, earlier: Record) -> dict[str, str]:
    """Changes since an earlier run in how the log is read, by key."""
    before = earlier.config["data"]
    now = config.data.model_dump(mode="json", include=before.keys() & READING_OF_LOG)
    return changes(before, before | now, "data.")


def _learnt_anew(config: Config, spans: Sequence[SpanStart], earlier: Record) -> list[str]:
    """A note on spans that are learnt again: if a job touches the whole log daily, every run takes long."""
    if reading := _reading(config, earlier):
        changed = ", ".join(f"{key}: {change}" for key, change in reading.items())
        return [
            f"the log is read differently than for version {earlier.version} ({changed}): all spans of the window are "
            "new to this run, and the gate measures both models on the events as they are read now"
        ]
    before, now = (placeholder_of(key) for key in (earlier.spans[-1]["key"], spans[-1].key))
    if before != now:
        return [
            f"data.events names spans by {now}, but by {before} for version {earlier.version}: all spans of the "
            "window are new to this run"
        ]
    known = _learnt(config, earlier)
    again = [span.key for span in spans if known.get(span.key, span.files) != span.files]
    what = f"rewritten or moved since version {earlier.version} learnt from them, so new to this run"
    return [f"{what}: {', '.join(again)}"] if again else []


def _shrunk(config: Config, window: set[str], earlier: Record) -> list[str]:
    """A note if the log no longer fills the window: models that learn from ever less are seldom meant.

    `window`: keys of the spans that the log has.
    """
    lost = [span["key"] for span in earlier.spans if span["key"] not in window]
    if not lost or len(window) >= config.retrain.window_spans:
        return []
    return [
        f"the log holds {len(window)} of retrain.window_spans={config.retrain.window_spans} spans, and no longer "
        f"{', '.join(lost)}, which version {earlier.version} had: keep the files longer, or lower retrain.window_spans"
    ]


def _first_new(config: Config, spans: Sequence[SpanStart], earlier: Record) -> int | None:
    """The time from which on an earlier run has not trained on events; None for all events.

    Its last span was its holdout and so is new to training, and so is a span whose files have changed.

    Args:
        spans: those that training may see, oldest first.
    """
    known = _learnt(config, earlier)
    new = [place for place, span in enumerate(spans) if known.get(span.key) != span.files]
    first = min(new, default=len(spans) - 1)
    # From the window's first span on means from all events, including those before its start. If spans are by arrival,
    # a later one may begin earlier.
    return min(span.start for span in spans[first:]) if first else None


def run_config(config: Config, store: Store, plan: Plan, spans: Sequence[Span]) -> Config:
    """The config of the run's stages: the window's files, and what the parent hands on."""
    retrain = config.retrain
    updates: dict[str, Any] = {
        "data": config.data.model_copy(
            update={"events": tuple(path for span in spans if span.key in plan.spans for path in span.files)}
        ),
        "split": config.split.model_copy(update={"protocol": "time"}),
        # Baselines would be trained, too.
        "evaluation": config.evaluation.model_copy(update={"baselines": ()}),
    }
    if plan.parent_run is not None:
        parent = store.run(plan.parent_run)
        if retrain.stable_groups and artifact.is_whole(parent.item_groups.path):
            stable = {"previous": str(parent.item_groups.path), "since": plan.news_start}
            updates["groups"] = config.groups.model_copy(update=stable)
        if plan.warm:
            updates["training"] = config.training.model_copy(update=warm_training(config, parent))
            updates["windows"] = config.windows.model_copy(update={"since": plan.since})
        else:  # from scratch, as notes and record say: training.warm_start is only for a first version
            updates["training"] = config.training.model_copy(update={"warm_start": None})
    return config.model_copy(update=updates)


def warm_training(config: Config, parent: Workdir) -> dict[str, Any]:
    """The training settings of a warm start, which is mostly trained already."""
    return {
        "warm_start": str(parent.path),
        "epochs": config.retrain.epochs,
        "learning_rate": config.retrain.learning_rate,
        "early_stopping_patience": config.retrain.patience,
        "learning_rate_drops": 0,
    }


def read_plan(path: Path) -> Plan:
    """The plan that an attempt at the run has written.

    Raises:
        ValueError: the file is not a plan.
    """
    remedy = f"restore it, or delete {path.parent}, to start this run over"
    return artifact.read_json(path, "a plan", lambda text: artifact.from_json(Plan, text), remedy)


def _may_start_warm(config: Config, store: Store, parent: Record | None) -> tuple[bool, list[str]]:
    """Whether training can start from the parent's weights, and why not."""
    if parent is None or not config.retrain.warm_start:
        return False, []
    run = store.run(parent.run_id)
    model = run.model(MAIN_MODEL)
    # All but the weights themselves serve to carry these over to other items, groups and values.
    read = {"weights": model.path, "items": run.item_statistics.path, "groups": run.item_groups.path}
    read["vocabularies"] = run.transform.path
    if lost := [
        f"the {name} of version {parent.version}" for name, path in read.items() if not artifact.is_whole(path)
    ]:
        return False, [f"{' and '.join(lost)} are gone: training from scratch"]
    manifest = artifact.read_manifest(model.path)
    # Not `artifact.code_of`: with each code change, a store would lose what its versions have learnt.
    if manifest.code_version != contracts.__version__:
        return False, [
            f"version {parent.version} was made by code version {manifest.code_version}, this is "
            f"{contracts.__version__}: training from scratch"
        ]
    try:
        earlier = read_stored_config(model.config)
    except ConfigError as error:
        return False, [f"the config of version {parent.version} cannot be read: training from scratch ({error})"]
    changed = changes(earlier.model.model_dump(mode="json"), config.model.model_dump(mode="json"), "model.")
    if changed:
        what = ", ".join(f"{key}: {change}" for key, change in changed.items())
        return False, [
            f"the config's model section differs from that of version {parent.version} ({what}): training from scratch"
        ]
    return True, []
