"""The stages of a retrain: those of a run up to the validated servable, the gate, and catching up."""

from __future__ import annotations

import glob
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from contracts import artifact
from contracts.config import Config
from contracts.config.data import MEASURE_NEW_USERS
from contracts.errors import TooFewEvents
from contracts.layout import SAVED_MODEL, Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.catch_up import catch_up
from pipeline.retraining.clients import require_signatures
from pipeline.retraining.gate_stage import write_verdict
from pipeline.retraining.holdout import holdout_events_in_training
from pipeline.retraining.plan import CATCH_UP, GATE, RUN_STAGES, Plan
from pipeline.retraining.reference import compared_version
from pipeline.stage import Stage
from pipeline.stages import exported_servable, manifest_of

log = logging.getLogger(__name__)


def retrain_stages(store: Store, plan: Plan) -> tuple[Stage, ...]:
    """The stages of a run: spans are merged instead of ingesting a log, and the gate comes after validation."""

    looked_up: dict[str, tuple[Path | None, str]] = {}

    def compared(config: Config) -> tuple[Path | None, str]:
        name = config.serving.model_name
        if name not in looked_up:  # the look-up may read the event times of two spans
            looked_up[name] = compared_version(config, store, plan)
        return looked_up[name]

    def gate(config: Config, workdir: Workdir, fingerprint: str) -> None:
        require_signatures(config, store, plan, workdir)
        leaked = holdout_events_in_training(workdir, plan.holdout_start)
        write_verdict(config, workdir, fingerprint, *compared(config), leaked)

    def served(config: Config) -> tuple[str, ...]:
        reference, _ = compared(config)
        return () if reference is None else (glob.escape(str(reference / SAVED_MODEL)),)

    def caught_up(config: Config, workdir: Workdir, fingerprint: str) -> None:
        catch_up(config, plan, workdir, fingerprint, _catch_up_stages(store, plan, workdir))

    return (
        *_up_to_validation(store, plan, catches_up=False),
        _gate("compare with what is served, on the newest span", gate, served),
        Stage(
            CATCH_UP,
            "learn the newest span, too",
            after=(GATE,),
            sections=("retrain",),
            rooms=("pipeline",),
            outputs=lambda config, workdir: (RetrainRun(workdir).catch_up,),
            run=caught_up,
        ),
    )


def forget_outdated_merges(workdir: Workdir) -> None:
    """Forgets what an unfinished run has merged if the pairs of its spans are no longer those that were merged.

    They may have been damaged, and forgotten, since; and only the merge counts them anew.
    """
    for merged in (workdir, RetrainRun(workdir).caught_up):
        manifest = artifact.find_manifest(merged.events.path)
        if manifest is not None:
            from beam_jobs.grouping.merge_cooccurrences import is_as_merged

            if not is_as_merged(manifest.details):
                log.warning("%s is merged again, since the co-occurrence of its spans has changed", merged.events.path)
                artifact.forget(merged.events.path)


def _catch_up_stages(store: Store, plan: Plan, judged: Workdir) -> tuple[Stage, ...]:
    """The stages by which the model of `judged` learns its holdout, and is compared with itself as it was before."""

    def gate(config: Config, workdir: Workdir, fingerprint: str) -> None:
        leaked = holdout_events_in_training(workdir, plan.holdout_start, others_learn=True)
        before, name = exported_servable(judged), "the model as it was judged"
        write_verdict(config, workdir, fingerprint, before, name, leaked, knows_the_span=True)

    def sources(config: Config) -> tuple[str, ...]:
        return (glob.escape(str(exported_servable(judged) / SAVED_MODEL)),)

    return (
        *_up_to_validation(store, plan, catches_up=True),
        _gate("compare with the model as it was before, on users whose newest events it has not seen", gate, sources),
    )


def _up_to_validation(store: Store, plan: Plan, *, catches_up: bool) -> tuple[Stage, ...]:
    def merge(config: Config, workdir: Workdir, fingerprint: str) -> None:
        from beam_jobs import merge_spans

        spans = [store.span(key) for key in plan.spans]
        merge_spans.run(config, workdir, fingerprint, spans, plan.holdout_start, catches_up)

    def merged(config: Config) -> tuple[str, ...]:
        return tuple(path for key in plan.spans for path in manifest_of(str(store.span(key).events.path)))

    def train(config: Config, workdir: Workdir, fingerprint: str) -> None:
        _require_judges(config, workdir, "raise" if catches_up else "lower")
        by_name["train"].run(config, workdir, fingerprint)

    by_name = {stage.name: stage for stage in RUN_STAGES}
    ingest, *rest = (by_name | {"train": replace(by_name["train"], run=train)}).values()
    # Its sources are not the log's files: the run's name stands for these, and an object store would be asked for
    # each of them once more. Its sources are the ingested spans, whose files the merged events name, as these may have
    # been moved with the store, or deleted, since.
    return (replace(ingest, summary="merge the window's spans", run=merge, sources=merged), *rest)


def _gate(
    summary: str, run: Callable[[Config, Workdir, str], None], reference: Callable[[Config], tuple[str, ...]]
) -> Stage:
    return Stage(
        GATE,
        summary,
        after=("validate",),
        sections=("retrain",),
        rooms=("pipeline",),
        outputs=lambda config, workdir: (RetrainRun(workdir).gate,),
        run=run,
        sources=reference,
    )


def _require_judges(config: Config, workdir: Workdir, change: str) -> None:
    """Raises TooFewEvents before training if the gate would refuse any model for lack of users.

    `change`: how to change `retrain.validation_users` to get more of them.
    """
    counts, least = artifact.read_manifest(workdir.windows.path).counts, config.retrain.gate.min_users
    users, strangers = counts["test_users"], counts["test_users_without_history"]
    if 0 < users < least:  # training itself says why there is none
        asked = "have user ids changed?"
        if config.split.new_users == "leave_out":
            asked += f" If they come only once, {MEASURE_NEW_USERS}"
        changed = f" ({strangers:,} others have no event before it: {asked})" * (strangers > users)
        raise TooFewEvents(
            f"{users:,} users of the newest span can judge a model{changed}, fewer than "
            f"retrain.gate.min_users={least:,}: lower that, {change} "
            f"retrain.validation_users={config.retrain.validation_users}, make spans longer, or wait for the next one"
        )
