"""The gate as a stage: asks candidate and reference, judges, and leaves the verdict as an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contracts import artifact
from contracts.config import Config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.store_layout import RetrainRun
from pipeline.retraining.evidence import Answers, Holdout, Measured, measure
from pipeline.retraining.gate import judge
from pipeline.retraining.holdout import HoldoutUsers, index_recall
from pipeline.stages import exported_servable
from trainer.evaluation.metric_names import NDCG, recall_name


def write_verdict(
    config: Config,
    workdir: Workdir,
    fingerprint: str,
    reference: Path | None,
    name: str,
    leaked: int,
    *,
    knows_the_span: bool = False,
) -> None:
    """Writes the blessing of a workdir's model: details {"verdict", "metrics"}.

    Args:
        reference: the servable to compare the model with; None for popularity.
        name: of the reference.
        leaked: see `holdout_events_in_training`.
        knows_the_span: see `judge`.

    Raises:
        ValueError: the reference cannot be loaded or asked.
    """
    from trainer.evaluation.exploration_share import exploration_share
    from trainer.evaluation.merge import num_explored

    gate = config.retrain.gate
    share = exploration_share(config, artifact.read_manifest(workdir.model(MAIN_MODEL).path))
    with artifact.writing(RetrainRun(workdir).gate, RetrainRun.GATE_KIND, fingerprint) as writer:
        users = HoldoutUsers(workdir, config.evaluation.max_users)
        holdout = users.holdout()
        answers = _answers(config, workdir, users, reference, name)
        mine, theirs = (measure(holdout, answer) for answer in answers)
        verdict = judge(
            gate,
            holdout,
            mine,
            theirs,
            name,
            seed=config.seed,
            leaked=leaked,
            index_recall=index_recall(config, workdir),
            recall_target=config.serving.recall_target,
            explored=num_explored(share, gate.k) / gate.k,
            knows_the_span=knows_the_span,
        )
        writer.counts["users"] = holdout.num_users
        writer.details["verdict"] = verdict.as_json()
        writer.details["metrics"] = {
            "candidate": summary(holdout, mine, gate.k),
            "reference": summary(holdout, theirs, gate.k),
        }


def summary(holdout: Holdout, measured: Measured, k: int) -> dict[str, Any]:
    """Means over users, for people and records."""
    return {
        recall_name(k): round(float(measured.recall.mean()), 5),
        NDCG: round(float(measured.ndcg.mean()), 5),
        "coverage": round(measured.coverage, 5),
        "filled": round(measured.filled, 5),
        "cold_share": round(measured.cold_share, 5),
        "latency_ms": None if measured.milliseconds is None else round(measured.milliseconds, 3),
        "users": holdout.num_users,
        "targets": len(holdout.targets),
    }


def _answers(
    config: Config, workdir: Workdir, users: HoldoutUsers, reference: Path | None, name: str
) -> tuple[Answers, Answers]:
    """The candidate's and the reference's answers."""
    k, exported = config.retrain.gate.k, exported_servable(workdir)
    if reference is None:
        [candidate] = users.ask([exported], k)
        return candidate, users.popularity(k)
    try:
        candidate, other = users.ask([exported, reference], k)
    except Exception as error:  # an old graph may fail in any way
        raise ValueError(
            f"{name} cannot answer ({error}): if it is the served version, roll back to one that works "
            "(dnc rollback), then retrain"
        ) from error
    return candidate, other
