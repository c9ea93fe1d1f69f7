"""All groups' indexes in one graph: one search call answers for every group."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

from serving.search.branches import Branches
from serving.search.group_index import GroupIndex
from serving.search.group_search import GroupResults, JobResults, SearchJobs, search_groups
from serving.search.scann_resource import ScannResources
from serving.search.slots import first_slots

_FEW = 1 / 4
"""Share of the groups: a single row that asks for no more of them is answered without searching the others."""

_ROUNDING = 1e-6
"""Interpolated numbers are rounded up, but not because of their last bit."""


class ScannIndexSet(tf.Module):
    """K ScaNN indexes as raw ops, made by `ScannResources`."""

    def __init__(self, indexes: Sequence[GroupIndex], num_groups: int):
        """Takes the indexes of all groups that hold an item.

        Args:
            indexes: those of the groups that are not empty, in order of group_id.
            num_groups: K, empty groups included.
        """
        super().__init__(name="index_set")
        self._groups = np.array([index.group_id for index in indexes], np.int32)
        self._sizes = np.array([index.size for index in indexes], np.int32)
        self.group_sizes = np.zeros(num_groups, np.int32)
        self.group_sizes[self._groups] = self._sizes
        self._num_few = int(_FEW * len(indexes))
        self._steps = _steps(indexes)
        # [num_indexes * num_steps] each, index by index
        self._leaves, self._reorder = _by_step(_tuned, indexes, self._steps)
        self._least_leaves, self._least_reorder = _by_step(_least, indexes, self._steps)
        self._scratch = tempfile.TemporaryDirectory()  # until the SavedModel is written
        self._resources = ScannResources({index.group_id: index.tensors for index in indexes}, Path(self._scratch.name))

    def search(self, query_embeddings: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        """The best items of every group.

        `search_groups` lays out a batch. For a single row that would cost as much as the searches, so its groups are
        searched one after the other: all of them, or the few that it asks for. A group that it does not ask for is
        searched for one item, which is discarded: leaving a group out costs more.

        Args:
            query_embeddings: float32 [batch_size >= 1, num_groups, dim].
            offset: float32 [batch_size, num_groups], added to the scores of a group.
            wanted: int32 [batch_size, num_groups], results wanted.
        """
        is_few = tf.math.count_nonzero(wanted[:1], dtype=tf.int32) <= self._num_few
        branch = tf.where(tf.equal(tf.shape(wanted)[0], 1), tf.where(is_few, 0, 1), 2)
        return GroupResults(*self._branches(branch, self._resources.handles(), query_embeddings, offset, wanted))

    @functools.cached_property
    def _branches(self) -> Branches:
        given = [
            tf.TensorSpec([len(self._groups)], tf.resource),
            tf.TensorSpec([None, len(self.group_sizes), None]),
            tf.TensorSpec([None, len(self.group_sizes)]),
            tf.TensorSpec([None, len(self.group_sizes)], tf.int32),
        ]
        returned = [tf.TensorSpec([None, None], dtype) for dtype in (tf.float32, tf.int32, tf.int32, tf.int32)]
        few = self._few_of_row if self._num_few else self._all_of_row
        return Branches([few, self._all_of_row, self._batch], given, returned)

    def _batch(self, handles: tf.Tensor, queries: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        search = functools.partial(self._search_jobs, tf.unstack(handles))
        return search_groups(queries, offset, wanted, self.group_sizes, search, by_level=True)

    def _all_of_row(self, handles: tf.Tensor, queries: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        place = np.arange(len(self._groups), dtype=np.int32)
        return self._search_row(tf.unstack(handles), place, self._wanted_of_row(wanted), queries, offset)

    def _few_of_row(self, handles: tf.Tensor, queries: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        k, place = tf.math.top_k(self._wanted_of_row(wanted), self._num_few)
        return self._search_row(tf.unstack(tf.gather(handles, place)), place, k, queries, offset)

    def _wanted_of_row(self, wanted: tf.Tensor) -> tf.Tensor:
        """[1, num_groups] -> int32 [num_indexes]."""
        wanted = tf.minimum(wanted[0], self.group_sizes)
        return tf.gather(wanted, self._groups) if len(self._groups) < len(self.group_sizes) else wanted

    def _search_row(
        self,
        handles: Sequence[tf.Tensor],
        place: np.ndarray | tf.Tensor,
        k: tf.Tensor,
        queries: tf.Tensor,
        offset: tf.Tensor,
    ) -> GroupResults:
        """Searches the indexes `handles`, at `place` among all, for k int32 [number of handles] results each."""
        group = tf.gather(self._groups, place)
        offset = tf.where(k > 0, tf.gather(offset[0], group), math.nan)
        typical_k, k = k, tf.maximum(k, 1)
        # ScaNN's op for one query is no faster than a batch of one, and with 8-bit vectors slower and less exact.
        rows = tf.split(tf.gather(queries[0], group), len(handles))
        columns = [tf.unstack(values, num=len(handles)) for values in (k, *self._searches(place, k, typical_k))]
        found = [_search(*asked) for asked in zip(handles, rows, *columns, strict=True)]
        ends = tf.cumsum(tf.stack(tf.shape_n([one for _, one in found]))[:, 1])
        items = tf.concat([one for _, one in found], 1)
        starts = tf.pad(ends[:-1], [[1, 0]])
        handle = tf.searchsorted(ends, tf.range(tf.size(items)), side="right")
        if len(handles) < len(self.group_sizes):
            starts = tf.scatter_nd(tf.expand_dims(group, 1), starts, [len(self.group_sizes)])
        group = tf.gather(group, handle)
        return GroupResults(
            scores=tf.concat([one for one, _ in found], 1) + tf.gather(offset, handle),
            slots=items + tf.gather(first_slots(self.group_sizes), group),
            group=group[None],
            starts=starts[None],
        )

    def _search_jobs(self, handles: Sequence[tf.Tensor], jobs: SearchJobs) -> JobResults:
        num_jobs = jobs.num_rows.shape[0]
        place = np.arange(num_jobs, dtype=np.int32) % len(handles)
        rows = tf.split(jobs.queries, jobs.num_rows, num=num_jobs)
        k = tf.maximum(jobs.k, 1)
        columns = [tf.unstack(values) for values in (k, *self._searches(place, k, jobs.typical_k))]
        return JobResults.of(
            [_search(handles[place[job]], *asked) for job, asked in enumerate(zip(rows, *columns, strict=True))]
        )

    def _searches(
        self, place: np.ndarray | tf.Tensor, k: tf.Tensor, typical_k: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Leaves to search and items to fetch by hash, int32 [num_jobs] each, -1 for an index without them.

        They are the values tuned for `typical_k` results, but at least what it takes to find k results at all, which is
        enough for a job whose results nobody wants: its `typical_k` is 0.

        Args:
            place: int32 [num_jobs], indexes.
            k: int32 [num_jobs], results, at least 1.
            typical_k: int32 [num_jobs], see `SearchJobs`.
        """
        first_step = place * len(self._steps)
        typical_step, step = (first_step + tf.searchsorted(self._steps, number) for number in (typical_k, k))
        leaves = tf.maximum(tf.gather(self._leaves, typical_step), tf.gather(self._least_leaves, step))
        return leaves, tf.maximum(tf.gather(self._reorder, typical_step), tf.gather(self._least_reorder, step))


def _search(
    handle: tf.Tensor, queries: tf.Tensor, k: tf.Tensor, leaves: tf.Tensor, reorder: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Scores and items [num_queries, at most k]. A tree fails on a batch without queries."""
    found = scann_ops.scann_search_batched(handle, queries, k, reorder, leaves, False)
    return found.distances, found.indices


def _steps(indexes: Sequence[GroupIndex]) -> np.ndarray:
    """Numbers of results that `_by_step` has an entry for, int32, ascending from 0.

    Beyond 16, each is at most a sixteenth above the last. A search for a number in between takes the next entry.
    """
    largest = max((index.size for index in indexes), default=1)
    steps = [0, 1]
    while steps[-1] < largest:
        steps.append(steps[-1] + max(1, steps[-1] // 16))
    return np.array(steps, np.int32)


_Thoroughness = tuple[np.ndarray, np.ndarray]
"""int32 [n] each: leaves to search and items to fetch by hash; -1 for an index without them."""


def _by_step(
    thoroughness: Callable[[GroupIndex, np.ndarray], _Thoroughness], indexes: Sequence[GroupIndex], steps: np.ndarray
) -> _Thoroughness:
    """The thoroughness of each index at each step, n = num_indexes * num_steps, index by index."""
    found = [thoroughness(index, np.minimum(steps, index.size)) for index in indexes]
    leaves, reorder = (np.concatenate(parts).astype(np.int32) for parts in zip(*found, strict=True))
    return leaves, reorder


def _tuned(index: GroupIndex, k: np.ndarray) -> _Thoroughness:
    """For k int [n] results: interpolated linearly between tuned points; in proportion to k beyond the last one.

    For 0 results, 0.
    """
    if index.structure == "brute_force":
        return _none(k)
    tuned = np.array([(point.k, point.leaves, point.reorder) for point in index.points], np.float64)
    ratio = np.where(k > 0, np.maximum(1.0, k / tuned[-1, 0]), 0.0)
    leaves, reorder = (np.ceil(ratio * np.interp(k, tuned[:, 0], tuned[:, column]) - _ROUNDING) for column in (1, 2))
    return np.minimum(leaves, len(index.leaf_sizes)), np.minimum(reorder, index.size)


def _least(index: GroupIndex, k: np.ndarray) -> _Thoroughness:
    """Enough leaves to hold k int [n] items, whichever leaves they are, and k items by hash."""
    if index.structure == "brute_force":
        return _none(k)
    leaves = np.searchsorted(np.cumsum(np.sort(index.leaf_sizes)), k) + 1
    return np.minimum(leaves, len(index.leaf_sizes)), np.minimum(k, index.size)


def _none(k: np.ndarray) -> _Thoroughness:
    return np.full(len(k), -1), np.full(len(k), -1)
