"""Checks of a servable's lists against brute force. Each names the check and gives an example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.exact_merge import Corpus, exact_scores, exact_selection
from serving.local_client import Recommendations
from serving.merge import Merge

SCORE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Embedded:
    """Requests as `query_embedding` sees them.

    Attributes:
        queries: float32 [batch_size, num_groups, dim].
        intent: float32 [batch_size, num_groups].
        excluded: bool [batch_size, num_items], the items of each history.
    """

    queries: np.ndarray
    intent: np.ndarray
    excluded: np.ndarray


@dataclass(frozen=True)
class Verdict:
    """What was found.

    Attributes:
        failures: one line a failed check, with an example; empty if all is well.
        recall: mean share of the exact merge's items that are returned.
        max_score_error: largest |score - formula|, relative to max(1, |formula|).
    """

    failures: list[str]
    recall: float
    max_score_error: float


def check_lists(
    corpus: Corpus,
    item_ids: Sequence[str],
    requests: Embedded,
    lists: Recommendations,
    merge: Merge,
    num_candidates: int,
    alpha: float,
    recall_target: float,
) -> Verdict:
    """Checks the lists of one batch, asked for with the same M and alpha in every row.

    Checked: ids are of the catalogue, distinct, not of the history, in the group claimed; scores
    are what the formula gives and descend; absent places come last, and only when nothing is left;
    recall against the exact merge reaches the target.
    """
    index_of = {item: index for index, item in enumerate(item_ids)}
    index: np.ndarray = np.array([index_of.get(item, -1) for item in lists.item_ids.ravel()], np.int64).reshape(
        lists.scores.shape
    )
    present = lists.item_ids != ""
    formula = exact_scores(corpus, requests.queries, requests.intent, alpha)
    expected = np.take_along_axis(formula, np.maximum(index, 0), axis=1)
    with np.errstate(invalid="ignore"):
        error = np.where(present, np.abs(lists.scores - expected) / np.maximum(1, np.abs(expected)), 0.0)
    ordered = np.sort(np.where(present, index, -1 - np.arange(index.shape[1])), axis=1)
    repeated = np.zeros_like(present)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    available = np.minimum(num_candidates, (~requests.excluded).sum(axis=1))
    filled = np.arange(present.shape[1]) < available[:, None]
    with np.errstate(invalid="ignore"):
        rising = np.zeros_like(present)
        rising[:, 1:] = lists.scores[:, 1:] > lists.scores[:, :-1]
    absent_is_marked = (lists.group_ids == -1) & np.isneginf(lists.scores)
    problems = {
        "an item is not in the catalogue": present & (index < 0),
        "an item is not in the group that it claims": present & (lists.group_ids != corpus.group_ids[index]),
        f"a score differs from the formula by more than {SCORE_TOLERANCE}": ~(error <= SCORE_TOLERANCE),
        "an item of the history is returned": present
        & np.take_along_axis(requests.excluded, np.maximum(index, 0), axis=1),
        "an item is returned twice": repeated,
        "scores do not descend": rising,
        "a list is shorter or longer than asked for": present != filled,
        "an absent place has a score or a group": ~present & ~absent_is_marked,
    }
    failures = [_example(name, bad, lists) for name, bad in problems.items() if bad.any()]
    selected = exact_selection(corpus, formula, requests.excluded, requests.intent, merge, num_candidates, alpha)
    recall = _recall(corpus, formula, selected, np.maximum(index, 0), present, merge)
    if recall < recall_target:
        failures.append(f"recall against the exact merge is {recall:.4f}, below {recall_target}")
    return Verdict(failures, recall, float(error.max(initial=0.0)))


def _example(name: str, bad: np.ndarray, lists: Recommendations) -> str:
    row, place = np.argwhere(bad)[0]
    return (
        f"{name}: in {int(bad.sum())} places, the first being place {place} of request {row}: "
        f"item {lists.item_ids[row, place]!r}, score {lists.scores[row, place]}, group {lists.group_ids[row, place]}"
    )


def _recall(
    corpus: Corpus, formula: np.ndarray, selected: np.ndarray, index: np.ndarray, present: np.ndarray, merge: Merge
) -> float:
    """Mean over rows; an item whose score ties with the last one of the exact merge counts as found."""
    floor = np.full_like(formula, np.inf)
    regions = [corpus.group_ids == g for g in np.unique(corpus.group_ids)]
    for region in regions if merge == "quota" else [np.ones(formula.shape[1], bool)]:
        lowest = np.where(selected[:, region], formula[:, region], np.inf).min(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # of a region that gives nothing, nothing is good: inf
            tolerated = lowest - SCORE_TOLERANCE * np.maximum(1, np.abs(lowest))
        floor[:, region] = np.where(np.isinf(lowest), np.inf, tolerated)
    good = present & np.take_along_axis(formula >= floor, index, axis=1)
    wanted = selected.sum(axis=1)
    return (
        float(np.mean(np.minimum(good.sum(axis=1), wanted)[wanted > 0] / wanted[wanted > 0])) if wanted.any() else 1.0
    )
