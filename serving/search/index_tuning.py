"""How thoroughly to search an index: for each number of results, the cheapest search that reaches a recall target."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scann.scann_ops.py import scann_ops

FloatArray = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]

_LEAF_FRACTIONS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_REORDER_FACTORS = (1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 20.0)
_HASHED_SCORE_COST = 1 / 16
"""Cost of scoring one hash, in exact scores: a 4-bit code per two dimensions, looked up in registers."""

_TIE = 1e-5
"""How far below the k-th best, relative to it, a score may lie and still count as a tie."""


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
        scored: float32 [num_queries, size], with the vectors that the searcher scores by, if they differ.
    """

    searcher: Any
    queries: FloatArray
    exact: FloatArray
    scored: FloatArray | None = None

    def search(self, k: int, leaves: int, reorder: int) -> Int32:
        """[num_queries, at most k] items, -1 where there is none; fewer columns if the leaves hold fewer items."""
        found = scann_ops.scann_search_batched(self.searcher.searcher_handle, self.queries, k, reorder, leaves, False)
        return np.where(np.isfinite(found.distances.numpy()), found.indices.numpy(), -1)


@dataclass(frozen=True)
class _Best:
    """The k best items of each query, by their inner products.

    Attributes:
        k: how many.
        products: float32 [num_queries, size].
        least: float32 [num_queries, 1]: an item of at least this product is one of the k best, or ties with the last.
    """

    k: int
    products: FloatArray
    least: FloatArray

    @classmethod
    def of(cls, products: FloatArray, k: int) -> _Best:
        kth = -np.partition(-products, k - 1, axis=1)[:, k - 1 : k]
        return cls(k, products, np.asarray(kth - _TIE * np.maximum(1.0, np.abs(kth)), np.float32))

    def recall(self, found: Int32) -> npt.NDArray[np.float64]:
        """[num_queries]: share of the k best among `found` [num_queries, at most k]."""
        scores = np.take_along_axis(self.products, np.maximum(found, 0), axis=1)
        return np.sum((found >= 0) & (scores >= self.least), axis=1) / self.k


def tuned_searches(
    sample: TuningSample, ks: Sequence[int], num_leaves: int, recall_target: float
) -> tuple[SearchPoint, ...]:
    """For each k, the cheapest search that is good enough: its recall reaches the target, with a margin for chance.

    If a searcher scores by inexact vectors, the target may be out of reach. It is then also enough to miss half as many
    of those vectors' own best items as the target allows: making up for what they lose would take all leaves.

    Args:
        sample: queries to tune on.
        ks: ascending, at most size.
        num_leaves: of the tree.
        recall_target: the least that mean recall less a standard error may be.

    Raises:
        ValueError: no search is good enough. One of all leaves, with everything scored again, is.
    """
    points: list[SearchPoint] = []
    for k in ks:
        fewest_leaves = points[-1].leaves if points else 1  # more results need no fewer leaves
        points.append(_cheapest(_Trial.of(sample, k, recall_target), fewest_leaves, num_leaves))
    return tuple(points)


@dataclass(frozen=True)
class _Trial:
    """The criteria for searches for k results.

    Attributes:
        sample: the queries.
        k: results.
        bars: the best items that a search should find, and its least recall of them; meeting one bar is enough.
    """

    sample: TuningSample
    k: int
    bars: tuple[tuple[_Best, float], ...]

    @classmethod
    def of(cls, sample: TuningSample, k: int, target: float) -> _Trial:
        exact = _Best.of(sample.exact, k), target
        if sample.scored is None:
            return cls(sample, k, (exact,))
        return cls(sample, k, (exact, (_Best.of(sample.scored, k), (1 + target) / 2)))

    def run(self, leaves: int, reorder: int) -> tuple[SearchPoint, bool]:
        """Runs a search; returns it with its recall of the exact best items, and whether it is good enough."""
        found = self.sample.search(self.k, leaves, reorder)
        recalls = [best.recall(found) for best, _ in self.bars]
        # A standard error below the mean; the margins of many groups even out.
        is_good = any(
            recall.mean() - recall.std() / math.sqrt(len(recall)) >= least
            for recall, (_, least) in zip(recalls, self.bars, strict=True)
        )
        return SearchPoint(self.k, leaves, reorder, float(recalls[0].mean())), is_good

    def fewest_reordered(self, leaves: int, reorders: list[int]) -> SearchPoint | None:
        """The first of the ascending `reorders` that is good enough, if any; a larger one never finds less."""
        found: dict[int, SearchPoint] = {}

        def is_good(place: int) -> bool:
            found[place], good = self.run(leaves, reorders[place])
            return good

        if not reorders or not is_good(len(reorders) - 1):
            return None
        return found[bisect.bisect_left(range(len(reorders) - 1), True, key=is_good)]


def _cheapest(trial: _Trial, fewest_leaves: int, num_leaves: int) -> SearchPoint:
    """The cheapest search that is good enough and covers at least `fewest_leaves`.

    Cost is counted in exact scores per query, not timed, so that a busy machine does not change what is built.

    Raises:
        ValueError: none is.
    """
    size = trial.sample.exact.shape[1]
    reorders = _reorders(trial.k, size)
    best: tuple[float, SearchPoint] | None = None
    for leaves in sorted({max(fewest_leaves, math.ceil(f * num_leaves)) for f in _LEAF_FRACTIONS}):
        cost = num_leaves + size * leaves / num_leaves * _HASHED_SCORE_COST
        affordable = [reorder for reorder in reorders if best is None or cost + reorder < best[0]]
        found = trial.fewest_reordered(leaves, affordable)
        if found is not None:
            best = cost + found.reorder, found
    if best is None:
        raise ValueError(
            f"a group of {size} items does not reach serving.recall_target={trial.bars[0][1]} for {trial.k} results "
            "even with every leaf searched; lower the target or raise serving.brute_force_max_items"
        )
    return best[1]


def _reorders(k: int, size: int) -> list[int]:
    """Numbers of items to score again: multiples of k, then twice as many each time, up to all `size` items.

    Few results may need many times their number: the best of a thousand alike items may have the hundredth best hash.
    """
    numbers = [min(size, math.ceil(factor * k)) for factor in _REORDER_FACTORS]
    while numbers[-1] < size:
        numbers.append(min(size, 2 * numbers[-1]))
    return sorted(set(numbers))
