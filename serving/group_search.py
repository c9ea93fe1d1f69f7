"""One search per group, laid out as one row of results per request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.slots import first_slots

_LEVELS = (0.8, 2.0)
"""In averages of what the batch's rows want of a group: rows that want more are searched apart, for more."""


@dataclass(frozen=True)
class Jobs:
    """Searches to do, each of one group for some rows: those of all groups that are not empty, level by level.

    Attributes:
        queries: float32 [num_queries, dim], by job.
        num_rows: int32 [num_jobs], queries of each job.
        k: int32 [num_jobs], results wanted: the most that one of its rows wants.
        typical_k: int32 [num_jobs], how many a search should be thorough for, so that the job's rows together find
            what they would find one by one.
    """

    queries: tf.Tensor
    num_rows: tf.Tensor
    k: tf.Tensor
    typical_k: tf.Tensor


@dataclass(frozen=True)
class Results:
    """What the jobs found, one after the other, each row's best first.

    Attributes:
        scores: float32 [num_results], inner products.
        items: int32 [num_results], the items' places in their group.
        widths: int32 [num_jobs], results of each row of the job.
    """

    scores: tf.Tensor
    items: tf.Tensor
    widths: tf.Tensor

    @classmethod
    def of(cls, found: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> Results:
        """Of scores and items [rows, width] of each job."""
        return cls(
            scores=tf.concat([tf.reshape(scores, [-1]) for scores, _ in found], 0),
            items=tf.concat([tf.reshape(items, [-1]) for _, items in found], 0),
            widths=tf.stack(tf.shape_n([scores for scores, _ in found]))[:, 1],
        )


Search = Callable[[Jobs], Results]


class Found(NamedTuple):
    """What the groups found for each row, side by side; each group's columns are adjacent, best first.

    A row has at least what it wants of a group, as far as there is, and may have more.

    Attributes:
        scores: float32 [batch_size, width >= 1], inner products and the group's offset; NaN where there is no result.
        slots: int32 [batch_size, width], the items, see `serving.slots`; of any value where there is no result.
        group: int32 [batch_size, width]. Columns beyond a row's results are NaN, of any group.
        starts: int32 [batch_size, num_groups], the first column of each group.
    """

    scores: tf.Tensor
    slots: tf.Tensor
    group: tf.Tensor
    starts: tf.Tensor


def search_groups(
    query_embeddings: tf.Tensor,
    offset: tf.Tensor,
    wanted: tf.Tensor,
    group_sizes: np.ndarray,
    search: Search,
    by_level: bool,
) -> Found:
    """Searches each group for the rows that want something of it, and cuts each row's results to what it wants.

    Args:
        query_embeddings: float32 [batch_size >= 1, num_groups, dim].
        offset: float32 [batch_size, num_groups], added to the scores of a group.
        wanted: int32 [batch_size, num_groups], results wanted.
        group_sizes: int32 [num_groups]; empty groups are not searched.
        search: does the jobs.
        by_level: a group is searched in several jobs, by how much rows want of it, so that one row's large
            quota makes neither the others' searches nor their lists wider; and a job that no row asks for is
            done for the first row, for nothing, as that costs less than a branch around it. Else in one job,
            of no row where none asks.
    """
    groups = np.flatnonzero(group_sizes).astype(np.int32)
    counts = tf.transpose(tf.minimum(tf.gather(wanted, groups, axis=1), group_sizes[groups]))
    searched = counts > 0
    group_of_job = groups
    if by_level:
        counts = _of_each_level(counts)
        group_of_job = np.tile(groups, 1 + len(_LEVELS))
        searched = counts > 0
        is_first = tf.range(tf.shape(counts)[1]) == 0
        searched |= ~tf.reduce_any(searched, axis=1, keepdims=True) & is_first
    pairs = tf.where(searched)  # (job, row), by job
    group = tf.gather(group_of_job.astype(np.int64), pairs[:, 0])
    queries = tf.gather_nd(query_embeddings, tf.stack([pairs[:, 1], group], axis=1))
    num_rows = tf.reduce_sum(tf.cast(searched, tf.int32), axis=1)
    k = tf.reduce_max(counts, axis=1)
    results = search(Jobs(queries, num_rows, k, _typical_k(counts, k)))
    return _side_by_side(results, searched, num_rows, counts, offset, group_of_job, group_sizes)


def _of_each_level(counts: tf.Tensor) -> tf.Tensor:
    """int32 [num_groups, batch_size] -> [num_levels * num_groups, batch_size]: each count in its level, 0 elsewhere."""
    asked = tf.math.count_nonzero(counts, dtype=tf.int32)
    average = tf.cast(tf.reduce_sum(counts), tf.float32) / tf.cast(tf.maximum(asked, 1), tf.float32)
    edges = [0, *(tf.cast(level * average, tf.int32) for level in _LEVELS), tf.int32.max]
    of_level = [tf.where((counts > low) & (counts <= high), counts, 0) for low, high in itertools.pairwise(edges)]
    return tf.concat(of_level, 0)


def _typical_k(counts: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """int32 [num_jobs] of counts [num_jobs, batch_size] and the largest of each job.

    sum(c^2) / sum(c), the count of the row that a result is of, on average; and a quarter of the way up to the
    largest, as a row that wants more than that loses more than one that wants less gains.
    """
    weight = tf.cast(counts, tf.float32)
    of_result = tf.math.divide_no_nan(tf.reduce_sum(weight * weight, axis=1), tf.reduce_sum(weight, axis=1))
    return (3 * tf.cast(of_result, tf.int32) + k) // 4


def _side_by_side(
    results: Results,
    searched: tf.Tensor,
    num_rows: tf.Tensor,
    counts: tf.Tensor,
    offset: tf.Tensor,
    group_of_job: np.ndarray,
    group_sizes: np.ndarray,
) -> Found:
    """Gathers each row's columns out of the jobs' [rows, width] results.

    Args:
        results: of the jobs.
        searched: bool [num_jobs, batch_size], the rows that it was done for.
        num_rows: int32 [num_jobs], their number.
        counts: int32 [num_jobs, batch_size], the columns that a row wants.
        offset: float32 [batch_size, num_groups], added to the scores of a group.
        group_of_job: int32 [num_jobs].
        group_sizes: int32 [num_groups].
    """
    # The last value stands for no result.
    flat_scores = tf.concat([results.scores, [math.nan]], 0)
    flat_items = tf.concat([results.items, [0]], 0)
    place_of_row = tf.cumsum(tf.cast(searched, tf.int32), axis=1, exclusive=True)
    before = tf.cumsum(results.widths * num_rows, exclusive=True)
    source = tf.transpose(before[:, None] + place_of_row * results.widths[:, None])
    columns = tf.transpose(tf.minimum(counts, results.widths[:, None]))
    ends = tf.cumsum(columns, axis=1)
    starts = ends - columns
    total = ends[:, -1:]
    width = tf.maximum(tf.reduce_max(total), 1)
    column = tf.broadcast_to(tf.range(width), tf.stack([tf.shape(ends)[0], width]))
    job = tf.minimum(tf.searchsorted(ends, column, side="right"), tf.shape(ends)[1] - 1)
    # All that a column needs to know of its job, as one table: a gather of single values takes as long as of four.
    of_group = tf.broadcast_to(np.stack([group_of_job, first_slots(group_sizes)[group_of_job]], 1), _with(ends, 2))
    of_row = tf.stack([source - starts, tf.bitcast(tf.gather(offset, group_of_job, axis=1), tf.int32)], axis=2)
    shift, offset_bits, group, first_slot = tf.unstack(
        tf.gather(tf.concat([of_row, of_group], axis=2), job, batch_dims=1), axis=2
    )
    index = tf.where(column < total, shift + column, tf.size(flat_scores) - 1)
    # A row is in one job of a group at most: the other one adds nothing.
    first = tf.math.unsorted_segment_max(tf.transpose(tf.where(columns > 0, starts, 0)), group_of_job, len(group_sizes))
    return Found(
        scores=tf.gather(flat_scores, index) + tf.bitcast(offset_bits, tf.float32),
        slots=tf.gather(flat_items, index) + first_slot,
        group=group,
        starts=tf.maximum(tf.transpose(first), 0),
    )


def _with(values: tf.Tensor, last: int) -> tf.Tensor:
    """The shape of `values` and one more dimension."""
    return tf.concat([tf.shape(values), [last]], 0)
