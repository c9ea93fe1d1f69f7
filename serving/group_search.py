"""One search per group, laid out as one row of results per request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

Search = Callable[[Sequence[tf.Tensor], tf.Tensor], Sequence[tuple[tf.Tensor, tf.Tensor]]]
"""Of each group searched, queries [rows, dim] and k -> scores and items [rows, <= k], best first."""


@dataclass(frozen=True)
class Found:
    """What the groups found for each row, side by side; each group's columns are adjacent, best first.

    Attributes:
        scores: float32 [batch_size, width >= 1], inner products; NaN where there is no result.
        items: int32 [batch_size, width], as the search names them.
        group: int32 [batch_size, width], ascending in a row. Columns beyond a row's results are NaN, of any group.
        starts: int32 [batch_size, num_groups], the first column of each group.
    """

    scores: tf.Tensor
    items: tf.Tensor
    group: tf.Tensor
    starts: tf.Tensor


def search_groups(
    query_embeddings: tf.Tensor, wanted: tf.Tensor, group_sizes: np.ndarray, search: Search, least_rows: int
) -> Found:
    """Searches each group for the rows that want something of it, for as many as any of them wants.

    A row's results are cut to what it wants itself, so that one row's large quota does not make the
    others' lists wider.

    Args:
        query_embeddings: float32 [batch_size >= 1, num_groups, dim].
        wanted: int32 [batch_size, num_groups], results wanted.
        group_sizes: int32 [num_groups]; empty groups are not searched.
        search: searches the groups that are not empty, in order of group_id.
        least_rows: 1 if `search` needs a row even where no request wants the group, else 0.
    """
    groups = np.flatnonzero(group_sizes).astype(np.int32)
    sizes = group_sizes[groups]
    counts = tf.transpose(tf.minimum(tf.gather(wanted, groups, axis=1), sizes))
    asked = counts > 0
    if least_rows:
        nobody = ~tf.reduce_any(asked, axis=1, keepdims=True)
        asked |= nobody & (tf.range(tf.shape(counts)[1]) < least_rows)
    pairs = tf.where(asked)  # (place of group, row), by group
    place, row = pairs[:, 0], pairs[:, 1]
    queries = tf.gather_nd(query_embeddings, tf.stack([row, tf.gather(groups.astype(np.int64), place)], axis=1))
    num_rows = tf.reduce_sum(tf.cast(asked, tf.int32), axis=1)
    k = tf.maximum(tf.reduce_max(counts, axis=1), 1)
    results = search(tf.split(queries, num_rows, num=len(groups)), k)
    return _side_by_side(results, asked, num_rows, counts, groups, len(group_sizes))


def _side_by_side(
    results: Sequence[tuple[tf.Tensor, tf.Tensor]],
    asked: tf.Tensor,
    num_rows: tf.Tensor,
    counts: tf.Tensor,
    groups: np.ndarray,
    num_groups: int,
) -> Found:
    """Gathers each row's columns out of the groups' [rows, width] results.

    Args:
        results: of each group searched, scores and items of the rows that it was searched for.
        asked: bool [groups searched, batch_size], the rows that it was searched for.
        num_rows: int32 [groups searched], their number.
        counts: int32 [groups searched, batch_size], the columns that a row wants.
        groups: int32 [groups searched], ascending.
        num_groups: K.
    """
    widths = tf.stack([tf.shape(scores)[1] for scores, _ in results])
    # The last value stands for no result.
    flat_scores = tf.concat([*(tf.reshape(scores, [-1]) for scores, _ in results), [float("nan")]], 0)
    flat_items = tf.concat([*(tf.reshape(items, [-1]) for _, items in results), [0]], 0)
    first = tf.cumsum(num_rows * widths, exclusive=True)[:, None]
    place_of_row = tf.cumsum(tf.cast(asked, tf.int32), axis=1, exclusive=True)
    source = tf.transpose(first + place_of_row * widths[:, None])
    columns = tf.transpose(tf.minimum(counts, widths[:, None]))
    ends = tf.cumsum(columns, axis=1)
    starts = ends - columns
    total = ends[:, -1:]
    width = tf.maximum(tf.reduce_max(total), 1)
    column = tf.broadcast_to(tf.range(width), tf.stack([tf.shape(ends)[0], width]))
    position = tf.minimum(tf.searchsorted(ends, column, side="right"), len(groups) - 1)
    index = tf.gather(source - starts, position, batch_dims=1) + column
    index = tf.where(column < total, index, tf.size(flat_scores) - 1)
    # An empty group starts where the next one does: nothing of it is there to be counted.
    following = np.minimum(np.searchsorted(groups, np.arange(num_groups)), len(groups) - 1)
    return Found(
        scores=tf.gather(flat_scores, index),
        items=tf.gather(flat_items, index),
        group=tf.gather(groups, position),
        starts=tf.gather(starts, following, axis=1),
    )
