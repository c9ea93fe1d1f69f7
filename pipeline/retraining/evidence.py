"""Evidence: the candidate's and the reference's answers for the same holdout users. Pure NumPy.

Items are numbered by the candidate's catalogue, 1..num_items. An item that only the reference knows gets
a larger number: it takes up a place in a list, but is never a target.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.evaluation.metric_names import NDCG_K
from trainer.evaluation.metrics import catalog_coverage, hits, ndcg_at_k, recall_at_k, target_recall
from trainer.input.ragged import Ragged


@dataclass(frozen=True)
class Answers:
    """One model's lists for the holdout's users.

    Attributes:
        lists: int64 [num_users, k], best first, 0 = absent.
        milliseconds: float64 [num_timed], of single requests; empty if nothing is served.
    """

    lists: np.ndarray
    milliseconds: np.ndarray


@dataclass(frozen=True)
class Holdout:
    """The users who are asked, and what is known about the catalogue.

    Attributes:
        target_users: int64 [num_targets], ascending: the user of each target; every user has one.
        targets: int64 [num_targets], 1..num_items; no item twice for a user.
        num_seen: int64 [num_users]: number of items that the user's request excludes.
        group_id: int32 [num_items + 1], the candidate's groups; row 0 is padding.
        train_count: int64 [num_items + 1].
    """

    target_users: np.ndarray
    targets: np.ndarray
    num_seen: np.ndarray
    group_id: np.ndarray
    train_count: np.ndarray

    @property
    def num_users(self) -> int:
        return len(self.num_seen)

    @property
    def num_items(self) -> int:
        return len(self.group_id) - 1


@dataclass(frozen=True)
class Measured:
    """One model on the holdout.

    Attributes:
        recall, ndcg: float64 [num_users], at k and at 10.
        hit: bool [num_targets], whether the target is in its user's list.
        coverage: share of the candidate's catalogue that is in any list.
        filled: places that hold a distinct item of that catalogue, as a share of those that unseen items could fill.
        cold_share: share of these filled places that hold an item without training events.
        group_places: float64 [num_groups], places that each group holds in all lists.
        milliseconds: median time of a single request; None if nothing is served.
    """

    recall: np.ndarray
    ndcg: np.ndarray
    hit: np.ndarray
    coverage: float
    filled: float
    cold_share: float
    group_places: np.ndarray
    milliseconds: float | None


def measure(holdout: Holdout, answers: Answers) -> Measured:
    """Measures the lists. A repeated item counts once, at its first place."""
    lists = _without_repeats(answers.lists)
    num_users, k = lists.shape
    known = np.where((lists > 0) & (lists <= holdout.num_items), lists, 0)
    per_user = np.bincount(holdout.target_users, minlength=num_users)
    targets = Ragged(holdout.targets, np.concatenate([[0], np.cumsum(per_user)]))
    found = hits(lists, targets)
    possible = np.minimum(k, holdout.num_items - holdout.num_seen).sum()
    listed = known[known > 0]
    num_groups = int(holdout.group_id.max()) + 1
    return Measured(
        recall=recall_at_k(found, per_user, k),
        ndcg=ndcg_at_k(found, per_user, NDCG_K),
        hit=target_recall(found, lists, targets, k) > 0,
        coverage=catalog_coverage(known, holdout.num_items),
        filled=float(len(listed) / max(possible, 1)),
        cold_share=float(np.mean(holdout.train_count[listed] == 0)) if len(listed) else 0.0,
        group_places=np.bincount(holdout.group_id[listed], minlength=num_groups).astype(np.float64),
        milliseconds=float(np.median(answers.milliseconds)) if len(answers.milliseconds) else None,
    )


def _without_repeats(lists: np.ndarray) -> np.ndarray:
    """The lists with every later occurrence of an item set to 0."""
    order = np.argsort(lists, axis=1, kind="stable")
    ordered = np.take_along_axis(lists, order, axis=1)
    repeated = np.zeros(lists.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    return np.where(repeated, 0, lists)
