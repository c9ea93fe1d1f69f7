"""Ranking metrics of lists against targets. Pure NumPy.

Lists hold item_index, best first, 0 = an empty place. A user may have several targets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contracts.config import COVERAGE_K
from trainer.evaluation.metric_names import COVERAGE, GINI, GROUPS_PER_LIST, NDCG, NDCG_K, recall_name
from trainer.input.ragged import Ragged

_ENTRIES_AT_ONCE = 1 << 20
"""List places that are looked up at once: few enough for the caches to help."""

MetricTable = dict[str, dict[str, float]]
"""metric -> {"value", "low", "high"}."""


def hits(lists: np.ndarray, targets: Ragged) -> np.ndarray:
    """bool [num_users, length]: whether each listed item is a target of its user.

    A repeated item counts once, at its first place.
    """
    result = np.zeros(lists.shape, bool)
    users = np.arange(len(lists))
    for rows in np.array_split(users, 1 + lists.size // _ENTRIES_AT_ONCE):
        result[rows] = _hits(lists[rows], targets.take(rows))
    return result


def _hits(lists: np.ndarray, targets: Ragged) -> np.ndarray:
    num_users, length = lists.shape
    base = max(int(lists.max(initial=0)), int(targets.values.max(initial=0))) + 1
    wanted = np.sort(targets.row_ids() * base + targets.values)
    keys = (np.arange(num_users)[:, None] * base + lists).ravel()
    place = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    found = (wanted[place] == keys) & (lists.ravel() > 0)
    where = np.flatnonzero(found)
    _, first = np.unique(keys[where], return_index=True)
    result = np.zeros(num_users * length, bool)
    result[where[first]] = True
    return result.reshape(num_users, length)


def recall_at_k(hit: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """float64 [num_users]: |targets in the first k| / min(k, number of targets), also called capped recall."""
    return hit[:, :k].sum(axis=1) / np.minimum(k, num_targets)


def monitored_k(monitor_k: int, num_items: int) -> int:
    """The k of early stopping: `training.monitor_k`, or less if the catalogue is small.

    If lists hold much of the catalogue, recall hardly distinguishes models, and not at all once it is 1.
    """
    return min(monitor_k, max(num_items // 10, min(10, num_items // 3), 1))


def recall_of_ranks(ranks: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """`recall_at_k` of targets of known ranks, int64 [number of targets], counted from 0."""
    found = np.flatnonzero(ranks < k)
    # A repeated target counts once.
    rows = np.unique(targets.row_ids()[found] * k + ranks[found]) // k
    return np.bincount(rows, minlength=len(targets)) / np.minimum(k, targets.lengths)


def ndcg_of_ranks(ranks: np.ndarray, targets: Ragged) -> np.ndarray:
    """float64 [num_users]: NDCG of the whole ranking, of targets of known ranks (see `recall_of_ranks`)."""
    found = np.flatnonzero(ranks < np.iinfo(np.int64).max)
    hit = np.unique(np.stack([targets.row_ids()[found], ranks[found]]), axis=1)
    gained = np.bincount(hit[0], 1 / np.log2(hit[1] + 2.0), len(targets))
    return gained / np.cumsum(1 / np.log2(np.arange(2, targets.lengths.max(initial=1) + 2)))[targets.lengths - 1]


def ndcg_at_k(hit: np.ndarray, num_targets: np.ndarray, k: int) -> np.ndarray:
    """float64 [num_users]: sum of 1 / log2(rank + 1), ranks from 1, over hits, divided by that of a perfect list."""
    discount = 1 / np.log2(np.arange(2, k + 2))
    gained = hit[:, :k] @ discount[: hit.shape[1]]
    return gained / np.cumsum(discount)[np.minimum(k, num_targets) - 1]


def catalog_coverage(lists: np.ndarray, num_items: int) -> float:
    """Share of the catalogue's items that are in at least one of the lists, int [num_users, length]."""
    return np.count_nonzero(np.bincount(lists[lists > 0])) / num_items


def gini(lists: np.ndarray, num_items: int) -> float:
    """Gini coefficient of how often each item is in the lists, int [num_users, length].

    0 if every item is listed equally often, 1 - 1/num_items if a single item fills all lists.
    """
    counts = np.sort(np.bincount(lists[lists > 0], minlength=num_items + 1)[1:])
    if not counts.sum():
        return 0.0
    rank = np.arange(1, num_items + 1)
    return float(((2 * rank - num_items - 1) * counts).sum() / (num_items * counts.sum()))


def groups_per_list(lists: np.ndarray, group_id: np.ndarray) -> np.ndarray:
    """int64 [num_users]: distinct groups in a list; `group_id` is [num_items + 1]."""
    groups = group_id[lists].astype(np.int64) + 1
    groups[lists == 0] = 0
    present = np.zeros((len(lists), int(group_id.max()) + 2), bool)
    np.put_along_axis(present, groups, True, axis=1)
    return present[:, 1:].sum(axis=1)


def bootstrap_intervals(
    per_user: np.ndarray, num_samples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile intervals of means over users.

    Args:
        per_user: float [num_users, num_metrics].

    Returns:
        low and high, float64 [num_metrics]; the mean itself if num_samples is 0.
    """
    if num_samples == 0:
        mean = per_user.mean(axis=0)
        return mean, mean
    tail = (1 - confidence) / 2
    low, high = np.quantile(bootstrap_means(per_user, num_samples, seed), [tail, 1 - tail], axis=0)
    return low, high


def bootstrap_means(per_user: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """float64 [num_samples, num_metrics]: means of float [num_users, num_metrics] over users drawn with replacement."""
    rng, num_users = np.random.default_rng(seed), len(per_user)
    # Drawing users with replacement is a multinomial over users: one matrix product does all metrics.
    means = [
        rng.multinomial(num_users, np.full(num_users, 1 / num_users), size=size) @ per_user / num_users
        for size in np.diff(np.append(np.arange(0, num_samples, 100), num_samples))
    ]
    return np.concatenate(means)


@dataclass(frozen=True)
class ListMetrics:
    """All metrics of one model's lists.

    Attributes:
        table: metric -> {"value", "low", "high"}, keyed by `metric_names`. Coverage and Gini are properties of all
            lists together, so they have no interval over users and repeat their value.
        per_user: float64 [num_users] for each metric that is a mean over users.
    """

    table: MetricTable
    per_user: dict[str, np.ndarray]


def bootstrap_changes(ours: np.ndarray, theirs: np.ndarray, num_samples: int, seed: int) -> np.ndarray:
    """float64 [num_samples, num_metrics]: mean(ours) / mean(theirs) - 1 over the same users, drawn with replacement.

    Args:
        ours, theirs: float [num_users, num_metrics], of the same users. NaN stands for the change in a resample whose
            users all have 0 in `theirs`.
    """
    mine, reference = np.split(bootstrap_means(np.concatenate([ours, theirs], axis=1), num_samples, seed), 2, axis=1)
    return np.divide(mine, reference, out=np.full_like(mine, np.nan), where=reference > 0) - 1


def metrics_from_lists(
    lists: Mapping[int, np.ndarray],
    targets: Ragged,
    ks: Sequence[int],
    group_id: np.ndarray,
    bootstrap_samples: int,
    confidence: float,
    seed: int,
) -> ListMetrics:
    """All metrics of ranked lists, served or exact.

    Args:
        lists: M -> int [num_users, <= M], item_index, best first, 0 = absent: what a request for M candidates gets, for
            each M of `ks`, `NDCG_K` and `COVERAGE_K`. A metric at k is measured on the lists with M = k.
        targets: one row per user, at least one target each.
        ks: the values of k for recall.
        group_id: int [num_items + 1], row 0 = padding.

    Raises:
        ValueError: lists and targets have different numbers of users.
    """
    for of_length in lists.values():
        if len(of_length) != len(targets):
            raise ValueError(f"metrics need a list for each user: got {len(of_length)} lists and {len(targets)} users")
    per_user = {recall_name(k): recall_at_k(hits(lists[k], targets), targets.lengths, k) for k in ks}
    per_user[NDCG] = ndcg_at_k(hits(lists[NDCG_K], targets), targets.lengths, NDCG_K)
    covering = lists[COVERAGE_K]
    per_user[GROUPS_PER_LIST] = groups_per_list(covering, group_id).astype(np.float64)
    # One bootstrap for all metrics: drawing users costs more than the rest.
    values = np.stack(list(per_user.values()), axis=1)
    low, high = bootstrap_intervals(values, bootstrap_samples, confidence, seed)
    table: MetricTable = {
        name: {"value": float(values[:, column].mean()), "low": float(low[column]), "high": float(high[column])}
        for column, name in enumerate(per_user)
    }
    num_items = len(group_id) - 1
    for name, value in ((COVERAGE, catalog_coverage(covering, num_items)), (GINI, gini(covering, num_items))):
        table[name] = {"value": value, "low": value, "high": value}
    return ListMetrics(table, per_user)


def target_recall(hit: np.ndarray, lists: np.ndarray, targets: Ragged, k: int) -> np.ndarray:
    """float64 [number of targets]: 1 if the target is in the first k of its user's list.

    Args:
        hit: the lists' `hits`.
    """
    base = max(int(lists.max(initial=0)), int(targets.values.max(initial=0))) + 1
    rows, places = np.nonzero(hit[:, :k])
    return np.isin(targets.row_ids() * base + targets.values, rows * base + lists[rows, places]).astype(np.float64)


def mean_by(labels: np.ndarray, values: np.ndarray, names: Mapping[int, str]) -> dict[str, dict[str, float]]:
    """Mean and count of values [n] for each label [n]; labels without values are left out."""
    result = {}
    for label, name in names.items():
        chosen = values[labels == label]
        if len(chosen):
            result[name] = {"value": float(chosen.mean()), "count": float(len(chosen))}
    return result
