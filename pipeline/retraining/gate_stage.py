"""The gate as a stage: asks candidate and reference, judges, and leaves the verdict as an artifact."""

from __future__ import annotations

from typing import Any

from contracts import artifact
from contracts.config import Config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.clients import require_signatures, served_version
from pipeline.retraining.evidence import Answers, Holdout, Measured, measure
from pipeline.retraining.gate import judge
from pipeline.retraining.holdout import HoldoutUsers, holdout_events_in_training, index_recall
from pipeline.retraining.plan import Plan
from pipeline.stages import exported_servable
from trainer.metric_names import NDCG, recall_name

KIND = "blessing"


def run_gate(config: Config, store: Store, plan: Plan, workdir: Workdir, fingerprint: str) -> None:
    """Writes the blessing: details {"verdict", "metrics"}.

    Raises:
        ValueError: the version that is served cannot be loaded or asked, or its clients would break.
    """
    from trainer.exploration import exploration_share
    from trainer.scoring import num_explored

    require_signatures(config, store, plan, workdir)
    gate = config.retrain.gate
    share = exploration_share(config, artifact.read_manifest(workdir.model(MAIN_MODEL).path))
    with artifact.writing(RetrainRun(workdir).gate, KIND, fingerprint) as writer:
        users = HoldoutUsers(workdir, config.evaluation.max_users)
        holdout = users.holdout()
        candidate, reference, name = _answers(config, store, plan, workdir, users)
        mine, theirs = measure(holdout, candidate), measure(holdout, reference)
        verdict = judge(
            gate,
            holdout,
            mine,
            theirs,
            name,
            seed=config.seed,
            leaked=holdout_events_in_training(workdir, plan.holdout_start),
            index_recall=index_recall(config, workdir),
            recall_target=config.serving.recall_target,
            explored=num_explored(share, gate.k) / gate.k,
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
    config: Config, store: Store, plan: Plan, workdir: Workdir, users: HoldoutUsers
) -> tuple[Answers, Answers, str]:
    """Candidate's and reference's answers, and the reference's name."""
    k, exported, served = config.retrain.gate.k, exported_servable(workdir), served_version(config, store, plan)
    if served is None:
        [candidate] = users.ask([exported], k)
        return candidate, users.popularity(k), "popularity"
    try:
        candidate, reference = users.ask([exported, served], k)
    except Exception as error:  # a graph of another time fails in any way
        raise ValueError(
            f"version {plan.parent}, which is served, cannot be asked ({error}): roll back to one that works "
            "(dnc rollback), then retrain"
        ) from error
    return candidate, reference, f"version {plan.parent}"
