"""Groups of bounded size: a group's surplus items move to the nearest group with room."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from beam_jobs.common.arrays import Bool, Float32, Int64
from beam_jobs.grouping.kmeans import group_centroids, nearest_centroid, squared_distances


def size_cap(num_items: int, num_groups: int, max_size_ratio: float) -> int:
    """Most items of a group: `max_size_ratio`, as written in decimals, times the mean size, rounded up."""
    return math.ceil(Fraction(str(max_size_ratio)) * num_items / num_groups)  # with floats, 100 / 10 * 1.1 is above 11


def balance_groups(embeddings: Float32, groups: Int64, num_groups: int, max_size_ratio: float, settled: Bool) -> Int64:
    """[num_items] groups of at most `size_cap` items.

    In each round, every group keeps the items nearest to its centre, and the others move to the nearest group that was
    not full before. Each round fills at least one group, so there are at most `num_groups` rounds. Items about which
    nothing is known give way first, and are dealt out to all groups with room. Next are those placed by their side
    features. They lie closer together than the items by which they were placed, so they would drive these out, and
    leave a group with hardly any event to train on. For the same reason a centre is the mean of the settled ones.

    Args:
        embeddings: [num_items, dim]; rows of 0 are items about which nothing is known.
        groups: [num_items] 0..K-1.
        num_groups: K.
        max_size_ratio: more than 1.
        settled: [num_items] whether the embedding comes from co-occurrence.
    """
    cap = size_cap(len(groups), num_groups, max_size_ratio)
    is_known = np.any(embeddings != 0, axis=1)
    has_settled = np.bincount(groups[settled], minlength=num_groups) > 0
    is_centre = settled | (is_known & ~has_settled[groups])
    centroids = group_centroids(embeddings[is_centre], groups[is_centre], num_groups)
    distances = np.where(is_known, squared_distances(embeddings, centroids, groups), np.inf)
    groups = groups.copy()
    while (surplus := _surplus(groups, settled, distances, num_groups, cap)).size:
        places = np.flatnonzero(np.bincount(groups, minlength=num_groups) < cap)  # a full group never has room again
        known, unknown = surplus[is_known[surplus]], surplus[~is_known[surplus]]
        groups[known] = places[nearest_centroid(embeddings[known], centroids[places])]
        groups[unknown] = places[np.arange(len(unknown)) % len(places)]
        distances[known] = squared_distances(embeddings[known], centroids, groups[known])
    return groups


def _surplus(groups: Int64, settled: Bool, distances: npt.NDArray[np.floating], num_groups: int, cap: int) -> Int64:
    """Items beyond the `cap` first of each group: the settled ones, the nearest first, and then the others."""
    order = np.lexsort((distances, ~settled, groups))
    sizes = np.bincount(groups, minlength=num_groups)
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank >= cap]
