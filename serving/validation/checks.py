"""Checks of a servable's lists against brute force. Each failure names the check and gives an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.servable_session import Recommendations
from serving.validation.exact_merge import Corpus, RowControls, Selection, exact_selection

SCORE_TOLERANCE = 1e-4
"""How far a score may be from the formula, or from a score that it ties with, relative to max(1, |score|)."""
_INT8_STEPS = 127
"""Steps of an 8-bit vector from 0 to the largest absolute value in that dimension within the group."""


@dataclass(frozen=True)
class EmbeddedRequests:
    """Requests as `query_embedding` sees them.

    Attributes:
        queries: float32 [batch_size, num_groups, dim].
        intent: float32 [batch_size, num_groups].
        excluded: bool [batch_size, num_items], the items that may not be returned.
    """

    queries: np.ndarray
    intent: np.ndarray
    excluded: np.ndarray


@dataclass(frozen=True)
class ListsVerdict:
    """The result of a check.

    Attributes:
        failures: one line per failed check, with an example; empty if all is well.
        recalls: float64 [number of requests with anything to find], the share of the exact merge's items returned.
        max_score_error: largest |score - formula|, relative to max(1, |formula|).
    """

    failures: list[str]
    recalls: np.ndarray
    max_score_error: float

    @property
    def recall(self) -> float:
        """The mean over requests."""
        return float(self.recalls.mean()) if len(self.recalls) else 1.0


def int8_score_error(corpus: Corpus, queries: np.ndarray, groups: Sequence[int]) -> np.ndarray:
    """float32 [batch_size, num_groups], how much 8-bit vectors may change a score: half a step in each dimension.

    Args:
        corpus: the items.
        queries: float32 [batch_size, num_groups, dim].
        groups: the groups scored by such vectors; for the others it is 0.
    """
    error = np.zeros(queries.shape[:2], np.float32)
    for group in groups:
        largest = np.abs(corpus.embeddings[corpus.group_ids == group]).max(axis=0)
        error[:, group] = np.abs(queries[:, group]) @ largest / (2 * _INT8_STEPS)
    return error


def check_lists(
    corpus: Corpus,
    index_of: Mapping[str, int],
    requests: EmbeddedRequests,
    lists: Recommendations,
    controls: RowControls,
    score_error: np.ndarray | None = None,
) -> ListsVerdict:
    """Checks the lists of one batch; `index_of` finds their items in the corpus.

    Ids must be in the catalogue, distinct, not excluded and in the group claimed, which must be allowed to answer;
    scores must match the formula; lists must be in their merge's order; absent places must come last, and only when
    nothing is left; and there must be as many cold items as asked for. Recall is only measured: a target for it
    applies to the mean over batches.

    Args:
        corpus: the items.
        index_of: item id -> its place in the corpus.
        requests: what was asked.
        lists: the answers.
        controls: how it was asked.
        score_error: float32 [batch_size, num_groups], how far a group's scores may be from the formula, besides
            rounding; None: 0.
    """
    index: np.ndarray = np.array([index_of.get(item, -1) for item in lists.item_ids.ravel()], np.int64).reshape(
        lists.scores.shape
    )
    at = np.maximum(index, 0)
    present = lists.item_ids != ""
    exact = exact_selection(corpus, requests.queries, requests.intent, requests.excluded, controls)
    expected = np.take_along_axis(exact.scores, at, axis=1)
    scale = np.maximum(1, np.abs(expected))
    with np.errstate(invalid="ignore"):
        error = np.where(present, np.abs(lists.scores - expected) / scale, 0.0)
        tolerance: np.ndarray | float = SCORE_TOLERANCE
        if score_error is not None:
            tolerance = tolerance + np.take_along_axis(score_error, corpus.group_ids[at], axis=1) / scale
    ordered = np.sort(np.where(present, index, -1 - np.arange(index.shape[1])), axis=1)
    repeated = np.zeros_like(present)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    length = (exact.merged | exact.explored).sum(axis=1)
    cold = (present & corpus.is_cold[at]).sum(axis=1, keepdims=True)
    problems = {
        "an item is not in the catalogue": present & (index < 0),
        "an item is not in the group given for it": present & (lists.group_ids != corpus.group_ids[index]),
        "a score differs from the formula by more than rounding explains": ~(error <= tolerance),
        "an excluded item is returned": present & np.take_along_axis(requests.excluded, at, axis=1),
        "an item is returned from a group that must not answer": present & np.isneginf(expected),
        "an item is returned twice": repeated,
        "a list is not in the order of its merge": _out_of_order(lists, present, controls, exact),
        "a list is shorter or longer than asked for": present != (np.arange(present.shape[1]) < length[:, None]),
        "an empty place has a score or a group": ~present & ((lists.group_ids != -1) | ~np.isneginf(lists.scores)),
        "fewer cold items than asked for": present & (cold < exact.explored.sum(axis=1, keepdims=True)),
    }
    failures = [_example(name, bad, lists) for name, bad in problems.items() if bad.any()]
    recalls = _recalls(corpus, exact, at, present, controls)
    return ListsVerdict(failures, recalls, float(error.max(initial=0.0)))


def _out_of_order(lists: Recommendations, present: np.ndarray, controls: RowControls, exact: Selection) -> np.ndarray:
    """bool [batch_size, M]: whether a score is above or, in dealt lists, a turn below the previous one."""
    same = lists.group_ids[:, :, None] == lists.group_ids[:, None, :]
    turn = np.tril(same, -1).sum(axis=2)
    is_dealt = (controls.merge == "round_robin")[:, None]
    places = np.where(is_dealt[:, 0], exact.merged.sum(axis=1), present.shape[1])
    with np.errstate(invalid="ignore"):
        wrong = np.where(is_dealt, np.diff(turn, axis=1) < 0, np.diff(lists.scores, axis=1) > 0)
    wrong = np.pad(wrong, [[0, 0], [1, 0]])
    return wrong & present & (np.arange(present.shape[1]) < places[:, None])


def _example(name: str, bad: np.ndarray, lists: Recommendations) -> str:
    row, place = np.argwhere(bad)[0]
    return (
        f"{name}: in {int(bad.sum())} places, the first being place {place} of request {row}: "
        f"item {lists.item_ids[row, place]!r}, score {lists.scores[row, place]}, group {lists.group_ids[row, place]}"
    )


def _recalls(
    corpus: Corpus, exact: Selection, index: np.ndarray, present: np.ndarray, controls: RowControls
) -> np.ndarray:
    """float64 [number of rows with anything to find].

    An item counts as found if its score ties with that of the exact merge's last item: the lowest of all in a merge by
    score, else the lowest of the item's group. For a cold item, a tie with the lowest explored item counts, too.
    """
    floor = np.full_like(exact.scores, np.inf)
    lowest_of_all = _lowest(exact.scores, exact.merged)
    for group in np.unique(corpus.group_ids):
        region = corpus.group_ids == group
        lowest = _lowest(exact.scores[:, region], exact.merged[:, region])
        floor[:, region] = _tolerated(np.where(controls.merge == "score", lowest_of_all, lowest))
    # Cold items that no training step has drawn all have the same vector, zero.
    explored_floor = _tolerated(_lowest(exact.scores, exact.explored))
    floor = np.where(corpus.is_cold, np.minimum(floor, explored_floor), floor)
    good = present & np.take_along_axis(exact.scores >= floor, index, axis=1)
    wanted = (exact.merged | exact.explored).sum(axis=1)
    found = np.minimum(good.sum(axis=1), wanted)[wanted > 0]
    return np.asarray(found / wanted[wanted > 0])


def _lowest(scores: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """float32 [batch_size], the lowest chosen score; inf for a row without any."""
    return np.where(chosen, scores, np.inf).min(axis=1)


def _tolerated(lowest: np.ndarray) -> np.ndarray:
    """float32 [batch_size, 1], the least score that ties with `lowest`; inf if that is inf, so that nothing ties."""
    with np.errstate(invalid="ignore"):
        tolerated = lowest - SCORE_TOLERANCE * np.maximum(1, np.abs(lowest))
    return np.where(np.isinf(lowest), np.inf, tolerated)[:, None]
