"""Evaluation: exact full ranking of trained models and baselines under one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers
from trainer.metrics import MetricTable, mean_by, metrics_from_lists, per_user_metrics, target_recall
from trainer.popularity import popularity_lists
from trainer.ranking import ExactRanking
from trainer.scoring import Merge
from trainer.train import load_model, single_vector_config

ModelKind = Literal["popularity", "single_vector", "per_group"]

_BREAKDOWN_K = 100
_MERGES: tuple[Merge, ...] = ("score", "quota")


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        metrics: model -> metric -> {"value", "low", "high"}. A per-group model appears once a
            merge, as "<name>/score" and "<name>/quota".
        breakdowns: model -> {"group", "user_activity"} -> label -> {"value", "count"}, of
            recall_at_100: by the target's group (mean over targets), and by terciles of the users'
            number of earlier items (mean over users).
    """

    metrics: dict[str, MetricTable] = field(default_factory=dict)
    breakdowns: dict[str, dict[str, Any]] = field(default_factory=dict)


def evaluate(config: Config, workdir: Workdir, split: Split, models: Mapping[str, ModelKind]) -> Evaluation:
    """Ranks the whole catalogue for the split's users with each model, and measures the lists.

    Seen items are left out. Quota lists are drawn up at the longest k and measured at all: their
    prefixes are ordered by score.

    Args:
        models: name of a model under `workdir.models` -> its kind; popularity needs no model.

    Raises:
        ArtifactError: a model or an artifact is missing.
    """
    catalogue = Catalogue.load(workdir)
    users = EvaluationUsers.load(workdir, split)
    result = Evaluation()
    for name, kind in models.items():
        for label, lists in _ranked(config, workdir, name, kind, catalogue, users):
            result.metrics[label] = measure(config, catalogue, users, lists)
            result.breakdowns[label] = break_down(catalogue, users, lists)
    return result


def measure(config: Config, catalogue: Catalogue, users: EvaluationUsers, lists: np.ndarray) -> MetricTable:
    """Metrics of the users' lists, int [num_users, M]: exact or as served."""
    evaluation = config.evaluation
    return metrics_from_lists(
        lists,
        users.targets,
        evaluation.ks,
        catalogue.group_id,
        evaluation.bootstrap_samples,
        evaluation.confidence,
        config.seed,
    )


def break_down(catalogue: Catalogue, users: EvaluationUsers, lists: np.ndarray) -> dict[str, Any]:
    """recall_at_100 by the target's group and by the user's activity."""
    by_target = target_recall(lists, users.targets, _BREAKDOWN_K)
    by_user = per_user_metrics(lists, users.targets, [_BREAKDOWN_K])[f"recall_at_{_BREAKDOWN_K}"]
    rank = np.argsort(np.argsort(users.seen.lengths, kind="stable"), kind="stable")
    groups = {group: str(group) for group in range(catalogue.num_groups)}
    return {
        "group": mean_by(catalogue.group_id[users.targets.values], by_target, groups),
        "user_activity": mean_by(rank * 3 // len(users), by_user, {0: "low", 1: "medium", 2: "high"}),
    }


def _ranked(
    config: Config, workdir: Workdir, name: str, kind: ModelKind, catalogue: Catalogue, users: EvaluationUsers
) -> list[tuple[str, np.ndarray]]:
    length = max(*config.evaluation.ks, _BREAKDOWN_K)
    if kind == "popularity":
        return [(name, popularity_lists(catalogue, users, length))]
    if kind == "single_vector":
        single = catalogue.with_single_group()
        model = load_model(single_vector_config(config), workdir, name)
        return [(name, ExactRanking(model, single, users).lists("score", 1.0, length))]
    ranking = ExactRanking(load_model(config, workdir, name), catalogue, users)
    return [(f"{name}/{merge}", ranking.lists(merge, config.serving.alpha, length)) for merge in _MERGES]
