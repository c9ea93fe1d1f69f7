"""One search per group, laid out as one row of results per request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from serving.search.slots import first_slots

_LEVELS = (0.8, 2.0)
"""Where each next level begins, in multiples of the average count wanted from a group: more is searched apart."""


@dataclass(frozen=True)
class SearchJobs:
    """Searches to run, each of one group for some rows: those of all groups that are not empty, level by level.

    Attributes:
        queries: float32 [num_queries, dim], by job.
        num_rows: int32 [num_jobs], queries of each job.
        k: int32 [num_jobs], results wanted: the most that any of its rows wants.
        typical_k: int32 [num_jobs], the number of results to choose a search's thoroughness for, so that the job's
            rows together find what they would find one by one.
    """

    queries: tf.Tensor
    num_rows: tf.Tensor
    k: tf.Tensor
    typical_k: tf.Tensor


class JobResults(NamedTuple):
    """The results of the jobs, one after the other, each row's best first. The last entry stands for "no result".

    Attributes:
        scores: float32 [num_results + 1], inner products, NaN for no result.
        items: int32 [num_results + 1], the items' places in their group.
        widths: int32 [num_jobs], results of each row of the job.
    """

    scores: tf.Tensor
    items: tf.Tensor
    widths: tf.Tensor

    @classmethod
    def of(cls, found: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> JobResults:
        """Concatenates the scores and items [rows, width] of each job."""
        return cls(
            scores=tf.concat([*(tf.reshape(scores, [-1]) for scores, _ in found), [math.nan]], 0),
            items=tf.concat([*(tf.reshape(items, [-1]) for _, items in found), [0]], 0),
            widths=tf.stack(tf.shape_n([scores for scores, _ in found]))[:, 1],
        )

    @classmethod
    def joined(cls, parts: Sequence[JobResults]) -> JobResults:
        """Joins results that were put together in parts."""
        *others, last = parts
        return cls(
            scores=tf.concat([*(part.scores[:-1] for part in others), last.scores], 0),
            items=tf.concat([*(part.items[:-1] for part in others), last.items], 0),
            widths=tf.concat([part.widths for part in parts], 0),
        )


Search = Callable[[SearchJobs], JobResults]


class GroupResults(NamedTuple):
    """The results of all groups for each row, side by side; each group's columns are adjacent, best first.

    A row has at least as many results as it wants from a group, as far as they exist, and may have more.

    Attributes:
        scores: float32 [batch_size, width >= 1], inner products plus the group's offset; NaN where there is no result.
        slots: int32 [batch_size, width], the items, see `serving.search.slots`; arbitrary where there is no result.
        group: int32 [batch_size, width]; arbitrary in the columns beyond a row's results, whose scores are NaN.
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
) -> GroupResults:
    """Searches each group for the rows that want results from it, and cuts each row's results to the number wanted.

    Args:
        query_embeddings: float32 [batch_size >= 1, num_groups, dim].
        offset: float32 [batch_size, num_groups], added to the scores of a group.
        wanted: int32 [batch_size, num_groups], results wanted.
        group_sizes: int32 [num_groups]; empty groups are not searched.
        search: runs the jobs.
        by_level: whether a group is searched in several jobs, by how much rows want from it, so that one row's
            large quota widens neither the searches nor the lists of the others. A job that no row asks for is then
            run for the first row and its results are dropped, which costs less than a branch around it. Otherwise
            a group is searched in one job, without rows if none asks for it.
    """
    batch_size, num_groups = tf.shape(wanted)[0], len(group_sizes)
    groups = np.flatnonzero(group_sizes).astype(np.int32)
    counts = _of_columns(tf.minimum(wanted, group_sizes), groups)
    group_of_job = groups
    if by_level:
        counts = _of_each_level(counts)
        group_of_job = np.tile(groups, 1 + len(_LEVELS))
    searched = counts > 0
    if by_level:
        is_first = tf.range(batch_size) == 0
        searched |= ~tf.reduce_any(searched, axis=1, keepdims=True) & is_first
    pairs = tf.where(searched)  # (job, row), by job
    job, row = tf.unstack(tf.cast(pairs, tf.int32), axis=1)
    cell = row * num_groups + tf.gather(group_of_job, job)
    queries = tf.gather(tf.reshape(query_embeddings, tf.stack([-1, tf.shape(query_embeddings)[2]])), cell)
    num_rows = tf.reduce_sum(tf.cast(searched, tf.int32), axis=1)
    k = tf.reduce_max(counts, axis=1)
    results = search(SearchJobs(queries, num_rows, k, _typical_k(counts, k)))
    # The results of the pairs follow each other. At most one pair per row and group wants any, so a sum is its value.
    widths = tf.gather(results.widths, job)
    num_columns = tf.minimum(tf.gather_nd(counts, pairs), widths)
    source = tf.where(num_columns > 0, tf.cumsum(widths, exclusive=True), 0)
    of_cell = tf.math.unsorted_segment_sum(tf.stack([source, num_columns], 1), cell, batch_size * num_groups)
    source, num_columns = tf.unstack(tf.reshape(of_cell, [-1, num_groups, 2]), axis=2)
    return _side_by_side(results, source, num_columns, offset, group_sizes)


def _of_columns(values: tf.Tensor, columns: np.ndarray) -> tf.Tensor:
    """[num_rows, num_columns] -> int32 [len(columns), num_rows]; a transpose takes several times as long."""
    num_rows, num_columns = tf.unstack(tf.shape(values))
    return tf.gather(tf.reshape(values, [-1]), columns[:, None] + tf.range(num_rows) * num_columns)


def _of_each_level(counts: tf.Tensor) -> tf.Tensor:
    """int32 [num_groups, batch_size] -> [num_levels * num_groups, batch_size]: each count in its level, 0 elsewhere."""
    asked = tf.math.count_nonzero(counts, dtype=tf.int32)
    average = tf.cast(tf.reduce_sum(counts), tf.float32) / tf.cast(tf.maximum(asked, 1), tf.float32)
    edges = [0, *(tf.cast(level * average, tf.int32) for level in _LEVELS), tf.int32.max]
    of_level = [tf.where((counts > low) & (counts <= high), counts, 0) for low, high in itertools.pairwise(edges)]
    return tf.concat(of_level, 0)


def _typical_k(counts: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """int32 [num_jobs], from counts [num_jobs, batch_size] and the largest count `k` of each job.

    This is sum(c^2) / sum(c), the count of a result's row, averaged over results, moved a quarter of the way up to the
    largest, because a row that wants more than this loses more than one that wants less gains.
    """
    weight = tf.cast(counts, tf.float32)
    of_result = tf.math.divide_no_nan(tf.reduce_sum(weight * weight, axis=1), tf.reduce_sum(weight, axis=1))
    return (3 * tf.cast(of_result, tf.int32) + k) // 4


def _side_by_side(
    results: JobResults, source: tf.Tensor, num_columns: tf.Tensor, offset: tf.Tensor, group_sizes: np.ndarray
) -> GroupResults:
    """Lays out each row's results, group after group.

    Args:
        results: of the jobs.
        source: int32 [batch_size, num_groups], the place among all results of a row's first result from a group.
        num_columns: int32 [batch_size, num_groups], how many results the row has from the group.
        offset: float32 [batch_size, num_groups], added to the scores of a group.
        group_sizes: int32 [num_groups].
    """
    batch_size, num_groups = tf.shape(num_columns)[0], len(group_sizes)
    # After each row's groups comes a range of "no result", which pads all rows to one width.
    total = tf.reduce_sum(num_columns, axis=1, keepdims=True)
    width = tf.maximum(tf.reduce_max(total), 1)
    lengths = tf.concat([num_columns, width - total], 1)
    no_result = tf.size(results.items) - 1
    source = tf.concat([source, tf.fill([batch_size, 1], no_result)], 1)
    # One op enumerates all ranges, in numbers whose upper half identifies the range (as x86 and ARM store them).
    cell = tf.reshape(tf.range(tf.size(source)), tf.shape(source))
    splits, counted = _ranges(tf.bitcast(tf.stack([source, cell], 2), tf.int64), lengths)
    index, cell = tf.unstack(tf.bitcast(counted, tf.int32), axis=1)
    index = tf.minimum(index, no_result)
    # All that a result needs from its group, in one table: gathering one value takes as long as gathering three.
    of_group = tf.stack([first_slots(group_sizes), np.arange(num_groups, dtype=np.int32)], 1)
    of_group = tf.broadcast_to(of_group, [batch_size, num_groups, 2])
    of_cell = tf.pad(tf.concat([tf.bitcast(offset, tf.int32)[:, :, None], of_group], 2), [[0, 0], [0, 1], [0, 0]])
    offset_bits, first_slot, group = tf.unstack(tf.gather(tf.reshape(of_cell, [-1, 3]), cell), axis=1)
    scores = tf.gather(results.scores, index) + tf.bitcast(offset_bits, tf.float32)
    slots = tf.gather(results.items, index) + first_slot
    shape = tf.stack([batch_size, width])
    starts = tf.reshape(splits[:-1], [batch_size, num_groups + 1])[:, :-1] - width * tf.range(batch_size)[:, None]
    return GroupResults(tf.reshape(scores, shape), tf.reshape(slots, shape), tf.reshape(group, shape), starts)


def _ranges(first: tf.Tensor, lengths: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Ranges first, first + 1, ... of each length: where each begins and the last ends, int32, and all numbers."""
    first = tf.reshape(first, [-1])
    limits = first + tf.cast(tf.reshape(lengths, [-1]), tf.int64)
    splits, numbers = tf.raw_ops.RaggedRange(starts=first, limits=limits, deltas=tf.ones_like(first), Tsplits=tf.int32)
    return splits, numbers
