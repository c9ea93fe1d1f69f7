"""k-means: items to K centroids, each item to its nearest."""

from __future__ import annotations

import numpy as np
from sklearn.cluster import KMeans

from beam_jobs.common.arrays import Float32, Int64

_ASSIGN_ROWS = 512


def fit_centroids(
    embeddings: Float32, num_groups: int, restarts: int, sample: int, seed: int, start: Float32 | None = None
) -> Float32:
    """[num_groups, dim] k-means centroids of at most `sample` rows drawn at random.

    If there are fewer distinct rows than groups, centroids coincide, and `fill_empty` gives each group its items.
    With `start`, [num_groups, dim], there is one descent from there and no restart.
    """
    rows = embeddings
    if len(rows) > sample:
        rows = rows[np.sort(np.random.default_rng(seed).choice(len(rows), sample, replace=False))]
    distinct = np.unique(rows, axis=0)
    clusters = min(num_groups, len(distinct))
    if start is not None and clusters == num_groups:
        kmeans = KMeans(clusters, init=start, n_init=1, random_state=seed)
    else:
        kmeans = KMeans(clusters, n_init=restarts, random_state=seed)
    fitted = kmeans.fit(rows).cluster_centers_
    return np.resize(fitted, (num_groups, embeddings.shape[1])).astype(np.float32)


def start_centroids(embeddings: Float32, of_item: Int64, num_groups: int, seed: int) -> Float32:
    """[num_groups, dim] where k-means starts: the old groups' means in today's space.

    The axes of two runs' embeddings mean different things, so the old centroids themselves are of no use; the items
    that both runs know carry them over, whatever the dimensions. Groups without such items start at items drawn
    at random.

    Args:
        embeddings: [num_items, dim] of today.
        of_item: [num_items] old group, -1 without one.
        num_groups: K.
        seed: of the draw.
    """
    shared = of_item >= 0
    centroids = group_centroids(embeddings[shared], of_item[shared], num_groups)
    missing = np.flatnonzero(np.bincount(of_item[shared], minlength=num_groups) == 0)
    drawn = np.random.default_rng(seed).choice(len(embeddings), len(missing), replace=len(missing) > len(embeddings))
    centroids[missing] = embeddings[drawn]
    return centroids


def nearest_centroid(embeddings: Float32, centroids: Float32) -> Int64:
    """[num_items] the centroid at the smallest Euclidean distance.

    |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2): |x|^2 is the same for all, and the term of c alone is one more column of
    the product, so one product and one argmax suffice. Tiles are filled in place and sized to stay in the
    processor's cache: fresh memory for each would cost as much as the argmax.
    """
    columns = np.concatenate([centroids, -(centroids**2).sum(axis=1, keepdims=True) / 2], axis=1).T.astype(np.float32)
    nearest = np.empty(len(embeddings), np.int64)
    tile = np.ones((_ASSIGN_ROWS, len(columns)), np.float32)
    scores = np.empty((_ASSIGN_ROWS, len(centroids)), np.float32)
    for start in range(0, len(embeddings), _ASSIGN_ROWS):
        rows = embeddings[start : start + _ASSIGN_ROWS]
        tile[: len(rows), :-1] = rows
        np.matmul(tile, columns, out=scores)
        scores[: len(rows)].argmax(axis=1, out=nearest[start : start + len(rows)])
    return nearest


def squared_distances(embeddings: Float32, centroids: Float32, nearest: Int64) -> Float32:
    """[num_items] squared Euclidean distance of each row to the centroid that `nearest` names."""
    distances = np.empty(len(embeddings), np.float32)
    for start in range(0, len(embeddings), _ASSIGN_ROWS):
        rows = slice(start, start + _ASSIGN_ROWS)
        away = embeddings[rows] - centroids[nearest[rows]]
        np.einsum("ij,ij->i", away, away, out=distances[rows])
    return distances


def group_centroids(embeddings: Float32, groups: Int64, num_groups: int) -> Float32:
    """[num_groups, dim] mean of each group's rows; 0 for a group without rows."""
    sums = np.zeros((num_groups, embeddings.shape[1]))
    np.add.at(sums, groups, embeddings)
    return (sums / np.maximum(np.bincount(groups, minlength=num_groups), 1)[:, None]).astype(np.float32)


def known_centroids(embeddings: Float32, groups: Int64, num_groups: int) -> Float32:
    """`group_centroids` of the items that have an embedding: rows of 0 (items placed by hash) say nothing."""
    known = embeddings.any(axis=1)
    return group_centroids(embeddings[known], groups[known], num_groups)


def fill_empty(embeddings: Float32, groups: Int64, num_groups: int) -> Int64:
    """[num_items] groups, each empty one given the item of the largest group that lies farthest from its centre."""
    groups = groups.copy()
    for empty in np.flatnonzero(np.bincount(groups, minlength=num_groups) == 0).tolist():
        members = np.flatnonzero(groups == np.bincount(groups, minlength=num_groups).argmax())
        center = embeddings[members].mean(axis=0)
        groups[members[((embeddings[members] - center) ** 2).sum(axis=1).argmax()]] = empty
    return groups
