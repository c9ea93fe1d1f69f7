"""Catching up: a model that the gate has passed learns the newest span, too, before it is pushed.

The gate needs events that training has not seen, so the newest span is the holdout, and the model that the gate judges
is one span behind. Online learners do progressive validation: test, then train. Here, the second training is judged,
too, by users whose newest events neither training has seen. If the gate refuses its model, or it cannot be judged, the
model is pushed as it passed the gate.
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

    Writes details {"is_pushed", "why_not", "gate", "metrics", "stages"}; the last three are None if nothing was
    judged.

    Args:
        config: the run's.
        workdir: the run's.
        stages: of the second training, up to its gate.

    Raises:
        StorageError: something could not be reached; the next call may reach it.
    """
    run = RetrainRun(workdir)
    with artifact.writing(run.catch_up, RetrainRun.CATCH_UP_KIND, fingerprint) as writer:
        writer.details = {"is_pushed": False, "why_not": _left_out(config, run), "gate": None, "metrics": None}
        writer.details["stages"] = None
        if writer.details["why_not"] is None:
            writer.details |= _caught_up(_config(config, plan, workdir), run.caught_up, stages)
        log.info("%s", outcome_of(writer.details))
    if not writer.details["is_pushed"]:
        # It must not be mistaken for the pushed model, and it is as large as the run.
        shutil.rmtree(run.caught_up.path, ignore_errors=True)


def outcome_of(catch_up: dict[str, Any]) -> str:
    """The outcome of catching up, in words."""
    if catch_up["is_pushed"]:
        return "the newest span was learnt, too"
    return f"the newest span was not learnt: {catch_up['why_not']}"


def _caught_up(config: Config, workdir: Workdir, stages: tuple[Stage, ...]) -> dict[str, Any]:
    """Runs the stages and returns the details of their outcome."""
    try:
        run_stages(stages, config, workdir, part_of=CATCH_UP)
    except Exception as error:
        # The blessed model serves better than the one before it, whatever is wrong with this one.
        if isinstance(error, (ValueError, Unfit)) and not isinstance(error, StorageError):
            log.warning("the model is pushed as it was judged, since it could not catch up: %s", error)
            return {"why_not": str(error)}
        log.warning(
            "the model that passed the gate has not finished catching up; the next call will continue. To push it as "
            "it is, call again with retrain.catch_up_epochs=0"
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
    """The workdir that a run's version comes from.

    `catch_up`: as in the run's record; empty in records of older code.
    """
    return run.caught_up if catch_up.get("is_pushed") else run.workdir


def _left_out(config: Config, run: RetrainRun) -> str | None:
    """Why nothing is trained, or None."""
    if not config.retrain.catch_up_epochs:
        return "retrain.catch_up_epochs=0"
    if not artifact.read_manifest(run.gate).details["verdict"]["blessed"]:
        return "the gate refused the model"
    # Half of them judge. The stages would find the same, but later.
    users = artifact.read_manifest(run.workdir.windows.path).counts["validation_users"]
    if users // 2 < config.retrain.gate.min_users:
        return (
            f"half of {users:,} users would judge (retrain.validation_users={config.retrain.validation_users}), fewer "
            f"than retrain.gate.min_users={config.retrain.gate.min_users}: raise the first or lower the second"
        )
    return None


def _config(config: Config, plan: Plan, workdir: Workdir) -> Config:
    """The config of the second training, which continues from the first."""
    from trainer.evaluation.exploration_share import exploration_share

    epochs, model = config.retrain.catch_up_epochs, artifact.read_manifest(workdir.model(MAIN_MODEL).path)
    # If the first training kept the weights it started with, what the run was to learn is still to be learnt, too.
    since = plan.since if kept_start(model) else plan.holdout_start
    return config.model_copy(
        update={
            # However little of the new co-occurrence lies within the groups, a new fit is left to the next run.
            "groups": config.groups.model_copy(
                update={"previous": str(workdir.item_groups.path), "since": plan.holdout_start, "refit_drift": 1.0}
            ),
            # No early stopping: the span's own users keep gaining from what is specific to that span. The start is the
            # epoch that did best on these very users, so it would often win by chance; the gate compares with it on
            # others.
            "training": config.training.model_copy(
                update={
                    **warm_training(config, workdir),
                    "epochs": epochs,
                    "early_stopping_patience": epochs,
                    "keep_start": False,
                }
            ),
            "windows": config.windows.model_copy(update={"since": since}),
            # The learnt span has hardly any new items, but the next one will have as many as this one had.
            "serving": config.serving.model_copy(update={"exploration_share": exploration_share(config, model)}),
        }
    )
