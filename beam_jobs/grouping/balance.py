"""Groups of bounded size: a group's surplus items move to the nearest group with room."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from beam_jobs.common.arrays import Float32, Int64
from beam_jobs.grouping.kmeans import known_centroids, nearest_centroid, squared_distances


def size_cap(num_items: int, num_groups: int, max_size_ratio: float) -> int:
    """Most items of a group: `max_size_ratio`, as written in decimals, times the mean size, rounded up."""
    return math.ceil(Fraction(str(max_size_ratio)) * num_items / num_groups)  # with floats, 100 / 10 * 1.1 is above 11


def balance_groups(embeddings: Float32, groups: Int64, num_groups: int, max_size_ratio: float) -> Int64:
    """[num_items] groups of at most `size_cap` items.

    In each round, every group keeps the items nearest to its centre, and the others move to the nearest group that was
    not full before. Each round fills at least one group, so there are at most `num_groups` rounds. Items about which
    nothing is known give way first, and are dealt out to all groups with room.

    Args:
        embeddings: [num_items, dim]; rows of 0 are items about which nothing is known.
        groups: [num_items] 0..K-1.
        num_groups: K.
        max_size_ratio: more than 1.
    """
    cap = size_cap(len(groups), num_groups, max_size_ratio)
    centroids = known_centroids(embeddings, groups, num_groups)
    is_known = np.any(embeddings != 0, axis=1)
    distances = np.where(is_known, squared_distances(embeddings, centroids, groups), np.inf)
    groups = groups.copy()
    while (surplus := _surplus(groups, distances, num_groups, cap)).size:
        places = np.flatnonzero(np.bincount(groups, minlength=num_groups) < cap)  # a full group never has room again
        known, unknown = surplus[is_known[surplus]], surplus[~is_known[surplus]]
        groups[known] = places[nearest_centroid(embeddings[known], centroids[places])]
        groups[unknown] = places[np.arange(len(unknown)) % len(places)]
        distances[known] = squared_distances(embeddings[known], centroids, groups[known])
    return groups


def _surplus(groups: Int64, distances: npt.NDArray[np.floating], num_groups: int, cap: int) -> Int64:
    """Items beyond the `cap` nearest ones of each group."""
    order = np.lexsort((distances, groups))
    sizes = np.bincount(groups, minlength=num_groups)
    rank = np.arange(len(groups)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank >= cap]
