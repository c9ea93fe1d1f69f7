"""Evaluation: exact full ranking of trained models and baselines under one protocol."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast, get_args

import numpy as np
from scipy.stats import rankdata

from contracts.artifact import Manifest, read_manifest, write_json, writing
from contracts.config import COVERAGE_K, BaselineName, Config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.names import ScoredMerge, Split
from trainer.catalogue import Catalogue
from trainer.evaluation.baselines import UNTRAINED, baseline_config
from trainer.evaluation.exploration_share import exploration_share
from trainer.evaluation.linear_baselines import LinearBaseline, linear_lists
from trainer.evaluation.metric_names import NDCG_K, recall_name
from trainer.evaluation.metrics import (
    ListMetrics,
    MetricTable,
    hits,
    mean_by,
    metrics_from_lists,
    recall_at_k,
    target_recall,
)
from trainer.evaluation.popularity import popularity_lists
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.models.model_files import load_model

log = logging.getLogger(__name__)

BREAKDOWN_K = 100
_MERGES: tuple[ScoredMerge, ...] = get_args(ScoredMerge)


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        num_users: how many were measured.
        metrics: model -> metric -> {"value", "low", "high"}. A per-group model appears under its name
            with the servable's merge (`serving.merge`), and as "<name>_<merge>" with the other merge.
        breakdowns: model -> {"group", "user_activity"} -> label -> {"value", "count"}, of
            recall_at_100: by the target's group (mean over targets), and by thirds of the users by their
            number of earlier items, equally many falling in the same third (mean over users).
    """

    num_users: int
    metrics: dict[str, MetricTable] = field(default_factory=dict)
    breakdowns: dict[str, dict[str, Any]] = field(default_factory=dict)


def evaluate(config: Config, workdir: Workdir, split: Split, names: Sequence[str]) -> Evaluation:
    """Ranks the whole catalogue for the split's users with each model, and measures the lists.

    Seen items are left out. recall_at_k is measured on the list that a request for k candidates gets.

    Args:
        names: models, each at `workdir.model(name)`, except for those in `UNTRAINED`, which need none. A `BaselineName`
            is that baseline; any other name is a model of the config itself.

    Raises:
        ArtifactError: a model or an artifact is missing.
    """
    catalogue = Catalogue.load(workdir)
    users = EvaluationUsers.load(workdir, split, config.evaluation.max_users)
    result = Evaluation(len(users))
    for name in names:
        for label, lists in _ranked(config, workdir, name, catalogue, users):
            result.metrics[label] = measure(config, catalogue, users, lists).table
            result.breakdowns[label] = break_down(catalogue, users, lists[BREAKDOWN_K])
    return result


def evaluate_lists(
    config: Config, workdir: Workdir, name: str, split: Split, merges: Sequence[tuple[ScoredMerge, float]]
) -> list[ListMetrics]:
    """Metrics of one model under several merges, each (merge, alpha).

    Args:
        config: the one that the model was trained with.
        name: `workdir.model(name)`, or one of `UNTRAINED`.
    """
    catalogue = Catalogue.load(workdir)
    users = EvaluationUsers.load(workdir, split, config.evaluation.max_users)
    lengths = lengths_to_measure(config)
    if name in UNTRAINED:
        counted = measure(config, catalogue, users, _counted(config, workdir, name, catalogue, users))
        return [counted for _ in merges]
    ranking = _ranking(config, workdir, name, catalogue, users)
    return [measure(config, catalogue, users, lists) for lists in ranking.lists_of_merges(merges, lengths)]


def write_evaluation(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Evaluates the product and `evaluation.baselines` on the test split into `workdir.evaluation`.

    Writes `Workdir.metrics` and `Workdir.breakdowns`.
    """
    with writing(workdir.evaluation, Workdir.EVALUATION_KIND, fingerprint) as artifact:
        evaluation = evaluate(config, workdir, Split.TEST, [*config.evaluation.baselines, MAIN_MODEL])
        artifact.counts["test_users"] = evaluation.num_users
        warn_of_popularity(evaluation.metrics, config.evaluation.ks)
        for path, found in ((workdir.metrics, evaluation.metrics), (workdir.breakdowns, evaluation.breakdowns)):
            write_json(artifact.path / path.name, found)
            artifact.files.append(path.name)
    return read_manifest(workdir.evaluation)


def warn_of_popularity(metrics: Mapping[str, MetricTable], ks: Sequence[int]) -> None:
    """Warns if popularity, where it was measured, finds more than the model at most of the k."""
    if "popularity" not in metrics:
        return
    of_popularity, of_model = (
        [metrics[name][recall_name(k)]["value"] for k in ks] for name in ("popularity", MAIN_MODEL)
    )
    better = [k for k, one, other in zip(ks, of_popularity, of_model, strict=True) if one > other]
    if 2 * len(better) > len(ks):
        log.warning(
            "evaluate: the most popular items alone find more than the model at k = %s. A log with few events per item "
            "or per user may say too little to learn from: see the warnings of the stages before",
            ", ".join(map(str, better)),
        )


def lengths_to_measure(config: Config) -> list[int]:
    """The list lengths that `measure` needs."""
    return sorted({*config.evaluation.ks, NDCG_K, COVERAGE_K, BREAKDOWN_K})


def measure(
    config: Config, catalogue: Catalogue, users: EvaluationUsers, lists: Mapping[int, np.ndarray]
) -> ListMetrics:
    """Metrics of the users' lists, exact or as served.

    Args:
        lists: M -> int [num_users, <= M], item_index, for each M of `lengths_to_measure`.
    """
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
    """recall_at_100 by the target's group and by the user's activity; `lists`: int [num_users, 100], item_index."""
    hit = hits(lists, users.targets)
    by_target = target_recall(hit, lists, users.targets, BREAKDOWN_K)
    by_user = recall_at_k(hit, users.targets.lengths, BREAKDOWN_K)
    # Equally active users fall in the same third, however many they are.
    rank = rankdata(users.seen.lengths, "average") - 0.5
    groups = {group: str(group) for group in range(catalogue.num_groups)}
    return {
        "group": mean_by(catalogue.group_id[users.targets.values], by_target, groups),
        "user_activity": mean_by(np.floor(rank * 3 / len(users)), by_user, {0: "low", 1: "medium", 2: "high"}),
    }


def _ranked(
    config: Config, workdir: Workdir, name: str, catalogue: Catalogue, users: EvaluationUsers
) -> list[tuple[str, dict[int, np.ndarray]]]:
    """The labels under which a model's lists are measured, and the lists: M -> int [num_users, <= M]."""
    lengths = lengths_to_measure(config)
    if name in UNTRAINED:
        return [(name, _counted(config, workdir, name, catalogue, users))]
    if name in get_args(BaselineName):
        ranking = _ranking(baseline_config(config, name), workdir, name, catalogue, users)
        [by_score] = ranking.lists_of_merges([("score", 0.0)], lengths)
        return [(name, by_score)]
    ranking = _ranking(config, workdir, name, catalogue, users)
    labels = {merge: name if merge == config.serving.merge else f"{name}_{merge}" for merge in _MERGES}
    merges = sorted(_MERGES, key=lambda merge: labels[merge])
    lists = ranking.lists_of_merges([(merge, config.serving.alpha) for merge in merges], lengths)
    return [(labels[merge], of_merge) for merge, of_merge in zip(merges, lists, strict=True)]


def _ranking(config: Config, workdir: Workdir, name: str, catalogue: Catalogue, users: EvaluationUsers) -> ExactRanking:
    """A ranking that gives the same lists as the model's servable, cold items included."""
    share = exploration_share(config, read_manifest(workdir.model(name).path))
    model = load_model(config, workdir, name, catalogue)
    learnt = catalogue.known_to(workdir.model(name))
    return ExactRanking(model, learnt.grouped_for(config), users, share)


def _counted(
    config: Config, workdir: Workdir, name: str, catalogue: Catalogue, users: EvaluationUsers
) -> dict[int, np.ndarray]:
    """Lists of one of `UNTRAINED`, for each M of `lengths_to_measure`."""
    lengths = lengths_to_measure(config)
    if name == "popularity":
        longest = popularity_lists(workdir, catalogue.num_items, users, max(lengths))
    else:
        longest = linear_lists(config, workdir, cast(LinearBaseline, name), catalogue, users, max(lengths))
    return {length: longest[:, :length] for length in lengths}
