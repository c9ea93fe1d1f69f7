"""One search per group, laid out as one row of results per request."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_LEVELS = (1, 3)
"""In averages of what the batch's rows want of a group: rows that want more are searched apart, for more."""


@dataclass(frozen=True)
class Jobs:
    """Searches to do, each of one group for some rows: those of all groups that are not empty, level by level.

    Attributes:
        queries: float32 [num_queries, dim], by job.
        num_rows: int32 [num_jobs], queries of each job, may be 0.
        k: int32 [num_jobs], results wanted.
    """

    queries: tf.Tensor
    num_rows: tf.Tensor
    k: tf.Tensor


@dataclass(frozen=True)
class Results:
    """What the jobs found, one after the other, each row's best first.

    Attributes:
        scores: float32 [num_results].
        items: int32 [num_results], as the search names them.
        sizes: int32 [num_jobs], results of each job, its rows' together.
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


class Found(NamedTuple):
    """What the groups found for each row, side by side; each group's columns are adjacent, best first.

    A row has at least what it wants of a group, as far as there is, and may have more.

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
    query_embeddings: tf.Tensor, wanted: tf.Tensor, group_sizes: np.ndarray, search: Search, by_level: bool
) -> Found:
    """Searches each group for the rows that want something of it, and cuts each row's results to what it wants.

    Args:
        query_embeddings: float32 [batch_size >= 1, num_groups, dim].
        wanted: int32 [batch_size, num_groups], results wanted.
        group_sizes: int32 [num_groups]; empty groups are not searched.
        search: does the jobs.
        by_level: a group is searched in several jobs, by how much rows want of it, so that one row's large
            quota makes neither the others' searches nor their lists wider; else in one.
    """
    groups = np.flatnonzero(group_sizes).astype(np.int32)
    counts = tf.transpose(tf.minimum(tf.gather(wanted, groups, axis=1), group_sizes[groups]))
    if by_level:
        counts = _of_each_level(counts)
    searched = counts > 0
    group_of_job = np.tile(groups, 1 + len(_LEVELS) if by_level else 1)
    pairs = tf.where(searched)  # (job, row), by job
    group = tf.gather(group_of_job.astype(np.int64), pairs[:, 0])
    queries = tf.gather_nd(query_embeddings, tf.stack([pairs[:, 1], group], axis=1))
    num_rows = tf.reduce_sum(tf.cast(searched, tf.int32), axis=1)
    results = search(Jobs(queries, num_rows, tf.reduce_max(counts, axis=1)))
    return _side_by_side(results, searched, num_rows, counts, group_of_job, len(group_sizes))


def _of_each_level(counts: tf.Tensor) -> tf.Tensor:
    """int32 [num_groups, batch_size] -> [num_levels * num_groups, batch_size]: each count in its level, 0 elsewhere."""
    asked = tf.math.count_nonzero(counts, dtype=tf.int32)
    average = tf.maximum(tf.reduce_sum(counts) // tf.maximum(asked, 1), 1)
    edges = [0, *(level * average for level in _LEVELS), tf.int32.max]
    of_level = [tf.where((counts > low) & (counts <= high), counts, 0) for low, high in itertools.pairwise(edges)]
    return tf.concat(of_level, 0)


def _side_by_side(
    results: Results,
    searched: tf.Tensor,
    num_rows: tf.Tensor,
    counts: tf.Tensor,
    group_of_job: np.ndarray,
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
