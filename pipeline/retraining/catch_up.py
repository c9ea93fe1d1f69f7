"""Catching up: a model that the gate has passed learns the newest span, too, before it is pushed.

The gate needs events that training has not seen, so the newest span is the holdout, and what the gate has judged is a
span behind. Progressive validation (test, then train) is what online learners do. Here the second training is judged,
too, by users whose newest events neither training has seen; where the gate refuses what it made, or it cannot be
judged, the model is pushed as the gate has passed it.
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

from contracts import artifact
from contracts.config import Config
from contracts.errors import Unfit
from contracts.layout import MAIN_MODEL, Workdir
from contracts.storage import StorageError
from contracts.store_layout import RetrainRun
from pipeline.retraining.plan import CATCH_UP, Plan, warm_training
from pipeline.retraining.records import kept_start, stage_records
from pipeline.runner import run_stages
from pipeline.stage import Stage

log = logging.getLogger(__name__)


def catch_up(config: Config, plan: Plan, workdir: Workdir, fingerprint: str, stages: tuple[Stage, ...]) -> None:
    """Runs the stages in a workdir below the run's own.

    Writes details {"is_pushed", "why_not", "gate", "metrics", "stages"}; the last three are None where nothing was
    judged.

    Args:
        config: the run's.
        workdir: the run's.
        stages: of the second training, up to its gate.

    Raises:
        StorageError: something could not be reached, which the next call may.
    """
    run = RetrainRun(workdir)
    with artifact.writing(run.catch_up, RetrainRun.CATCH_UP_KIND, fingerprint) as writer:
        writer.details = {"is_pushed": False, "why_not": _left_out(config, run), "gate": None, "metrics": None}
        writer.details["stages"] = None
        if writer.details["why_not"] is None:
            writer.details |= _caught_up(_config(config, plan, workdir), run.caught_up, stages)
        log.info("%s", outcome_of(writer.details))
    if not writer.details["is_pushed"]:
        # Nobody should take it for what is pushed, and it is as large as the run.
        shutil.rmtree(run.caught_up.path, ignore_errors=True)


def outcome_of(catch_up: dict[str, Any]) -> str:
    """What came of it, in words."""
    if catch_up["is_pushed"]:
        return "the newest span is learnt, too"
    return f"the newest span is not learnt: {catch_up['why_not']}"


def _caught_up(config: Config, workdir: Workdir, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """What the stages came to."""
    try:
        run_stages(stages, config, workdir, part_of=CATCH_UP)
    except Exception as error:
        # What has been blessed serves better than what served before, whatever this model lacks.
        if isinstance(error, (ValueError, Unfit)) and not isinstance(error, StorageError):
            log.warning("the model is pushed as it was judged, since it could not catch up: %s", error)
            return {"why_not": str(error)}
        log.warning(
            "the model that has passed the gate has not finished catching up, and the next call will continue; to push "
            "it as it is, call again with retrain.catch_up_epochs=0"
        )
        raise
    blessing = artifact.read_manifest(RetrainRun(workdir).gate).details
    why_not = "; ".join(blessing["verdict"]["reasons"]) or None
    return {
        "is_pushed": why_not is None,
        "why_not": why_not,
        "gate": blessing["verdict"],
        "metrics": blessing["metrics"],
        "stages": stage_records(stages, config, workdir),
    }


def pushed_workdir(run: RetrainRun, catch_up: dict[str, Any]) -> Workdir:
    """The workdir that a run's version is of.

    `catch_up`: as its record has it; empty in those of older code.
    """
    return run.caught_up if catch_up.get("is_pushed") else run.workdir


def _left_out(config: Config, run: RetrainRun) -> str | None:
    """Why nothing is trained, or None."""
    if not config.retrain.catch_up_epochs:
        return "retrain.catch_up_epochs=0"
    if not artifact.read_manifest(run.gate).details["verdict"]["blessed"]:
        return "the gate refused the model"
    # Half of them judge: the stages would find the same, later.
    users = artifact.read_manifest(run.workdir.windows.path).counts["validation_users"]
    if users // 2 < config.retrain.gate.min_users:
        return (
            f"half of {users:,} users would judge (retrain.validation_users={config.retrain.validation_users}), fewer "
            f"than retrain.gate.min_users={config.retrain.gate.min_users}: raise the first or lower the second"
        )
    return None


def _config(config: Config, plan: Plan, workdir: Workdir) -> Config:
    """The config of the second training, which goes on from the first."""
    from trainer.exploration import exploration_share

    epochs, model = config.retrain.catch_up_epochs, artifact.read_manifest(workdir.model(MAIN_MODEL).path)
    # Weights that stayed as they were have not learnt what the run was to learn, either.
    since = plan.since if kept_start(model) else plan.holdout_start
    return config.model_copy(
        update={
            # However the new co-occurrence lies within the groups, a fit of others would be the next run's.
            "groups": config.groups.model_copy(
                update={"previous": str(workdir.item_groups.path), "since": plan.holdout_start, "refit_drift": 1.0}
            ),
            # No plateau ends it: users of the span itself gain on and on by what is of that span alone. The start is
            # the epoch that did best by these very users, so that it would often win by chance; the gate compares with
            # it by others.
            "training": config.training.model_copy(
                update={
                    **warm_training(config, workdir),
                    "epochs": epochs,
                    "early_stopping_patience": epochs,
                    "keep_start": False,
                }
            ),
            "windows": config.windows.model_copy(update={"since": since}),
            # Of the span that is learnt hardly an item is new, of the next one as many as were of this one.
            "serving": config.serving.model_copy(update={"exploration_share": exploration_share(config, model)}),
        }
    )
