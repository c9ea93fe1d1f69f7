"""How thoroughly an index is searched: per number of results, the cheapest search that reaches a recall target."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scann.scann_ops.py import scann_ops

FloatArray = npt.NDArray[np.float32]

_LEAF_FRACTIONS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_REORDER_FACTORS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0, math.inf)
_HASHED_SCORE_COST = 1 / 16
"""Cost of scoring one hash, in exact scores: two dimensions a code of 4 bits, looked up in registers."""

_TIE = 1e-5
"""How far a score may lie below the k-th best, relative to it, and count as a tie with it."""


@dataclass(frozen=True)
class SearchPoint:
    """How much of an index a search for up to k items looks at.

    Attributes:
        k: results.
        leaves: leaves searched; -1 for brute force.
        reorder: items fetched by hash, of which the k best by their vectors are kept; -1 without hashes.
        recall: measured share of the exact top k that is found.
    """

    k: int
    leaves: int = -1
    reorder: int = -1
    recall: float = 1.0


@dataclass(frozen=True)
class TuningSample:
    """Queries whose exact answers are known.

    Attributes:
        searcher: ScaNN's, of a tree with hashes.
        queries: float32 [num_queries, dim].
        exact: float32 [num_queries, size], the inner products with every item.
    """

    searcher: Any
    queries: FloatArray
    exact: FloatArray

    @classmethod
    def of(cls, searcher: Any, queries: FloatArray, embeddings: FloatArray) -> TuningSample:
        """`embeddings`: float32 [size, dim], the items."""
        return cls(searcher, queries, queries @ embeddings.T)

    def least_scores(self, k: int) -> FloatArray:
        """[num_queries, 1]: an item of at least this score is one of the k best, or ties with the last of them."""
        kth = -np.partition(-self.exact, k - 1, axis=1)[:, k - 1 : k]
        return np.asarray(kth - _TIE * np.maximum(1.0, np.abs(kth)), np.float32)

    def recall(self, k: int, least: FloatArray, leaves: int, reorder: int) -> npt.NDArray[np.float64]:
        """[num_queries]: shares of the exact top k that a search finds; `least`: of `least_scores(k)`."""
        found = scann_ops.scann_search_batched(self.searcher.searcher_handle, self.queries, k, reorder, leaves, False)
        scores = np.take_along_axis(self.exact, found.indices.numpy().astype(np.int64), axis=1)
        is_found = np.isfinite(found.distances.numpy())
        return (is_found & (scores >= least)).sum(axis=1) / k

    def measured(self, point: SearchPoint) -> SearchPoint:
        """The same search with its recall on this sample."""
        recall = self.recall(point.k, self.least_scores(point.k), point.leaves, point.reorder)
        return replace(point, recall=float(recall.mean()))


def tuned_searches(
    sample: TuningSample, ks: Sequence[int], num_leaves: int, recall_target: float
) -> tuple[SearchPoint, ...]:
    """For each k, the cheapest search whose recall reaches the target, with a margin for chance.

    Args:
        sample: queries to tune on.
        ks: ascending, at most size.
        num_leaves: of the tree.
        recall_target: least mean recall, less a standard error.

    Raises:
        ValueError: no search reaches it. Of all leaves, with everything scored again by its vector, one is exact.
    """
    points: list[SearchPoint] = []
    for k in ks:
        fewest_leaves = points[-1].leaves if points else 1  # more results need no fewer leaves
        points.append(_cheapest(sample, k, fewest_leaves, num_leaves, recall_target))
    return tuple(points)


def _cheapest(sample: TuningSample, k: int, fewest_leaves: int, num_leaves: int, target: float) -> SearchPoint:
    """The cheapest search for k results that reaches the target with at least `fewest_leaves`.

    Cost is counted in exact scores per query, not timed, so that a busy machine does not change what is built.

    Raises:
        ValueError: none reaches it.
    """
    size = sample.exact.shape[1]
    best: tuple[float, SearchPoint] | None = None
    least = sample.least_scores(k)
    for leaves in sorted({max(fewest_leaves, math.ceil(f * num_leaves)) for f in _LEAF_FRACTIONS}):
        reorders = sorted({min(size, math.ceil(min(factor, size) * k)) for factor in _REORDER_FACTORS})
        cost = num_leaves + size * leaves / num_leaves * _HASHED_SCORE_COST
        affordable = [reorder for reorder in reorders if best is None or cost + reorder < best[0]]
        found = _fewest_reordered(sample, k, least, leaves, affordable, target)
        if found is not None:
            best = cost + found.reorder, found
    if best is None:
        raise ValueError(
            f"a group of {size} items does not reach serving.recall_target={target} for {k} results with every "
            "leaf searched; lower the target or raise serving.brute_force_max_items"
        )
    return best[1]


def _fewest_reordered(
    sample: TuningSample, k: int, least: FloatArray, leaves: int, reorders: list[int], target: float
) -> SearchPoint | None:
    """The first of ascending `reorders` that reaches the target, if one does: more never find less."""
    found: dict[int, SearchPoint] = {}

    def reaches(place: int) -> bool:
        recall = sample.recall(k, least, leaves, reorders[place])
        found[place] = SearchPoint(k, leaves, reorders[place], float(recall.mean()))
        # A standard error below the mean; the margins of many groups even out.
        return bool(recall.mean() - recall.std() / math.sqrt(len(recall)) >= target)

    if not reorders or not reaches(len(reorders) - 1):
        return None
    return found[bisect.bisect_left(range(len(reorders) - 1), True, key=reaches)] if len(reorders) > 1 else found[0]
