"""Categories as groups: merged and cut until there are K."""

from __future__ import annotations

import heapq

import numpy as np

from beam_jobs.common.arrays import Bool, Float32, Int64
from beam_jobs.grouping.kmeans import fill_empty, fit_centroids, group_centroids, nearest_centroid, start_centroids

_MERGED_ONE_BY_ONE = 4_096


def merge_categories(embeddings: Float32, categories: Int64, num_groups: int, least_size: int) -> Int64:
    """Merges the smallest category into its nearest until at most `num_groups` are left and none is too small.

    Args:
        embeddings: [num_items, dim].
        categories: [num_items] 0-based codes.
        num_groups: the most categories that may be left.
        least_size: categories below it are merged even if there are few.

    Returns:
        [num_items] codes 0..C-1, C <= num_groups.
    """
    _, categories = np.unique(categories, return_inverse=True)
    categories = _join_small(embeddings, categories, max(num_groups, _MERGED_ONE_BY_ONE))
    sizes = np.bincount(categories)
    parent = np.arange(len(sizes))
    # The categories that are left, in parallel arrays: numbers, centroids and half the centroids' squared lengths.
    living, centroids = np.arange(len(sizes)), group_centroids(embeddings, categories, len(sizes))
    halves, place = (centroids**2).sum(axis=1) / 2, np.arange(len(sizes))
    left = len(sizes)
    by_size = [(size, category) for category, size in enumerate(sizes.tolist())]
    heapq.heapify(by_size)
    while left > 1:
        size, smallest = by_size[0]
        if left <= num_groups and size >= least_size:
            break
        heapq.heappop(by_size)
        if size != sizes[smallest]:  # it has grown since
            continue
        at, left = place[smallest], left - 1
        center = centroids[at].copy()
        for of_living in (living, centroids, halves):
            of_living[at] = of_living[left]  # the last one fills the gap
        place[living[at]] = at
        nearest = int((halves[:left] - centroids[:left] @ center).argmin())
        target = int(living[nearest])
        total = int(sizes[target]) + size
        centroids[nearest] = (centroids[nearest] * sizes[target] + center * size) / total
        halves[nearest] = (centroids[nearest] ** 2).sum() / 2
        sizes[target] = total
        heapq.heappush(by_size, (total, target))
        parent[smallest] = target
    while (parent[parent] != parent).any():
        parent = parent[parent]
    return np.unique(parent[categories], return_inverse=True)[1]


def _join_small(embeddings: Float32, categories: Int64, most: int) -> Int64:
    """Joins all but the `most` largest categories to the nearest of those in one go.

    One by one, a hundred thousand brands took ten minutes, and the time grows with the square of their number.
    """
    sizes = np.bincount(categories)
    if len(sizes) <= most:
        return categories
    large = np.argsort(-sizes, kind="stable")[:most]
    centroids = group_centroids(embeddings, categories, len(sizes))
    joined = large[nearest_centroid(centroids, centroids[large])]
    joined[large] = large
    return np.unique(joined[categories], return_inverse=True)[1]


def split_categories(
    embeddings: Float32,
    settled: Bool,
    categories: Int64,
    before: Int64,
    num_groups: int,
    restarts: int,
    sample: int,
    seed: int,
) -> Int64:
    """Cuts large categories by k-means until there are `num_groups`.

    Parts are dealt out one at a time to the category with the largest parts (Adams' method).

    Args:
        embeddings: [num_items, dim].
        settled: [num_items] which items count and are cut, if any are; the others go to the nearest part.
        categories: [num_items] codes 0..C-1.
        before: [num_items] old group, -1 without one: the cut of a category starts from its old parts.
        num_groups: parts of all categories, C or more.
        restarts, sample, seed: see `fit_centroids`.
    """
    settled = settled if settled.any() else np.ones(len(settled), bool)
    sizes = np.bincount(categories[settled], minlength=int(categories.max()) + 1)
    parts = np.ones(len(sizes), np.int64)
    for _ in range(num_groups - len(sizes)):
        parts[(sizes / parts).argmax()] += 1
    groups = np.empty(len(categories), np.int64)
    first = np.cumsum(parts) - parts
    for category in range(len(sizes)):
        members = np.flatnonzero(categories == category)
        inside = np.zeros(len(members), np.int64)
        if parts[category] > 1:
            rows, count = embeddings[members], int(parts[category])
            cut = members[settled[members]]
            start = _start_of_parts(embeddings[cut], before[cut], count, seed)
            centroids = fit_centroids(embeddings[cut], count, restarts, sample, seed, start)
            inside = nearest_centroid(rows, centroids)
            inside = fill_empty(rows, inside, count)
        groups[members] = first[category] + inside
    return groups


def _start_of_parts(embeddings: Float32, before: Int64, count: int, seed: int) -> Float32 | None:
    """[count, dim] where a category's largest old parts lie today; None if it was not cut: restarts find better."""
    sizes = np.bincount(before[before >= 0])
    largest = [group for group in np.argsort(-sizes, kind="stable")[:count].tolist() if sizes[group]]
    if len(largest) < 2:
        return None
    part = np.full(len(sizes) + 1, -1)  # the last entry is for new items, whose old group is -1
    part[largest] = np.arange(len(largest))
    return start_centroids(embeddings, part[before], count, seed)
