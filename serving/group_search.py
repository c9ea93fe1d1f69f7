"""One search per group, laid out as one row of results per request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf


@dataclass(frozen=True)
class Jobs:
    """Searches to do, each of one group for some rows.

    Attributes:
        queries: float32 [num_queries, dim], by job.
        num_rows: int32 [num_jobs], queries of each job.
        place: int32 [num_jobs], its group's place among those that are not empty.
        k: int32 [num_jobs], results wanted.
        is_asked: bool [num_jobs], whether any row wants them.
    """

    queries: tf.Tensor
    num_rows: tf.Tensor
    place: tf.Tensor
    k: tf.Tensor
    is_asked: tf.Tensor


@dataclass(frozen=True)
class Results:
    """What the jobs found, one after the other, each row's best first.

    Attributes:
        scores: float32 [num_results].
        items: int32 [num_results], as the search names them.
        sizes: int32 [num_jobs], results of each job, its rows' together; may be 0 where no row asked.
    """

    scores: tf.Tensor
    items: tf.Tensor
    sizes: tf.Tensor

    @classmethod
    def of(cls, found: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> Results:
        """Of scores and items [rows, width] of each job."""
        return cls(
            scores=tf.concat([tf.reshape(scores, [-1]) for scores, _ in found], 0),
            items=tf.concat([tf.reshape(items, [-1]) for _, items in found], 0),
            sizes=tf.stack([tf.size(scores) for scores, _ in found]),
        )


Search = Callable[[Jobs], Results]

_LIGHT = 3
"""A row that wants at most 1 / _LIGHT of what another one wants of a group is searched apart from it, for less."""


@dataclass(frozen=True)
class Found:
    """What the groups found for each row, side by side; each group's columns are adjacent, best first.

    Attributes:
        scores: float32 [batch_size, width >= 1], inner products; NaN where there is no result.
        items: int32 [batch_size, width], as the search names them.
        group: int32 [batch_size, width]. Columns beyond a row's results are NaN, of any group.
        starts: int32 [batch_size, num_groups], the first column of each group.
    """

    scores: tf.Tensor
    items: tf.Tensor
    group: tf.Tensor
    starts: tf.Tensor


def search_groups(
    query_embeddings: tf.Tensor, wanted: tf.Tensor, group_sizes: np.ndarray, search: Search, in_order: bool
) -> Found:
    """Searches each group for the rows that want something of it.

    A row's results are cut to what it wants itself. In order, job p is group p of those that are not
    empty, for as many results as any row wants. Otherwise a group is searched in two jobs, a light one
    for the rows that want little of it and a heavy one for the others: one row's large quota makes
    neither the others' searches nor their lists wider. Jobs that a row asks for then come first, so that
    a search can skip the others without looking at each.

    Args:
        query_embeddings: float32 [batch_size >= 1, num_groups, dim].
        wanted: int32 [batch_size, num_groups], results wanted.
        group_sizes: int32 [num_groups]; empty groups are not searched.
        search: does the jobs.
        in_order: else, a job that no row asks for is given one row, the first: a tree cannot be asked by none.
    """
    groups = np.flatnonzero(group_sizes).astype(np.int32)
    of_group = tf.transpose(tf.minimum(tf.gather(wanted, groups, axis=1), group_sizes[groups]))
    if in_order:
        place, counts = tf.range(len(groups)), of_group
        is_asked = tf.reduce_any(counts > 0, axis=1)
        searched = counts > 0
    else:
        is_light = of_group * _LIGHT <= tf.reduce_max(of_group, axis=1, keepdims=True)
        counts = tf.concat([tf.where(is_light, 0, of_group), tf.where(is_light, of_group, 0)], 0)
        is_asked = tf.reduce_any(counts > 0, axis=1)
        order = tf.argsort(tf.cast(is_asked, tf.int32), direction="DESCENDING", stable=True)
        place, counts, is_asked = order % len(groups), tf.gather(counts, order), tf.gather(is_asked, order)
        searched = (counts > 0) | (~is_asked[:, None] & (tf.range(tf.shape(counts)[1]) == 0))
    pairs = tf.where(searched)  # (job, row), by job
    group = tf.gather(groups.astype(np.int64), tf.gather(place, pairs[:, 0]))
    queries = tf.gather_nd(query_embeddings, tf.stack([pairs[:, 1], group], axis=1))
    num_rows = tf.reduce_sum(tf.cast(searched, tf.int32), axis=1)
    k = tf.maximum(tf.reduce_max(counts, axis=1), 1)
    results = search(Jobs(queries, num_rows, place, k, is_asked))
    return _side_by_side(results, searched, num_rows, counts, tf.gather(groups, place), len(group_sizes))


def _side_by_side(
    results: Results,
    searched: tf.Tensor,
    num_rows: tf.Tensor,
    counts: tf.Tensor,
    group_of_job: tf.Tensor,
    num_groups: int,
) -> Found:
    """Gathers each row's columns out of the jobs' [rows, width] results.

    Args:
        results: of the jobs.
        searched: bool [num_jobs, batch_size], the rows that it was done for.
        num_rows: int32 [num_jobs], their number.
        counts: int32 [num_jobs, batch_size], the columns that a row wants.
        group_of_job: int32 [num_jobs].
        num_groups: K.
    """
    widths = (results.sizes // tf.maximum(num_rows, 1))[:, None]
    # The last value stands for no result.
    flat_scores = tf.concat([results.scores, [float("nan")]], 0)
    flat_items = tf.concat([results.items, [0]], 0)
    place_of_row = tf.cumsum(tf.cast(searched, tf.int32), axis=1, exclusive=True)
    source = tf.transpose(tf.cumsum(results.sizes, exclusive=True)[:, None] + place_of_row * widths)
    columns = tf.transpose(tf.minimum(counts, widths))
    ends = tf.cumsum(columns, axis=1)
    starts = ends - columns
    total = ends[:, -1:]
    width = tf.maximum(tf.reduce_max(total), 1)
    column = tf.broadcast_to(tf.range(width), tf.stack([tf.shape(ends)[0], width]))
    job = tf.minimum(tf.searchsorted(ends, column, side="right"), tf.shape(ends)[1] - 1)
    index = tf.gather(source - starts, job, batch_dims=1) + column
    index = tf.where(column < total, index, tf.size(flat_scores) - 1)
    # A row is in one job of a group at most: the other one adds nothing.
    first = tf.math.unsorted_segment_max(tf.transpose(tf.where(columns > 0, starts, 0)), group_of_job, num_groups)
    return Found(
        scores=tf.gather(flat_scores, index),
        items=tf.gather(flat_items, index),
        group=tf.gather(group_of_job, job),
        starts=tf.maximum(tf.transpose(first), 0),
    )
