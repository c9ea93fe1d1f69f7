"""All groups' indexes in one graph: one search call answers for every group."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

from serving.group_index import GroupIndex
from serving.group_search import Found, Jobs, Results, search_groups

_CONSTANT_MAX_BYTES = 4096
"""Tensors up to this size are constants: reading a variable costs more than a small search."""

_CHUNKS = 8
"""A quarter of the groups, asked by a single row, is one chunk."""

_NEVER = np.iinfo(np.int32).max


def is_constant(tensor: np.ndarray) -> bool:
    """Whether a tensor of an index is a constant of the graph, rather than a variable."""
    return tensor.dtype.kind in "OS" or tensor.nbytes <= _CONSTANT_MAX_BYTES


class ScannIndexSet(tf.Module):
    """K ScaNN indexes as raw ops.

    Every group's op carries a `shared_name` of its own, unique to this object. Without one, ops in
    functions of their own (as TFRS's ScaNN layers are) share a resource under `tf.saved_model.load`
    and answer from each other's index; a name rules that out however the graph is cut up.
    """

    def __init__(self, indexes: Sequence[GroupIndex], item_index: Sequence[np.ndarray], num_groups: int):
        """Args:

        indexes: the groups that are not empty, in order of group_id.
        item_index: of each index, int32 [size], the item_index of its rows.
        num_groups: K, empty groups included.
        """
        super().__init__(name="index_set")
        self._groups = np.array([index.group_id for index in indexes], np.int32)
        sizes = np.array([index.size for index in indexes], np.int32)
        self.group_sizes = np.zeros(num_groups, np.int32)
        self.group_sizes[self._groups] = sizes
        self._sizes = sizes
        self._offset_of_group = (np.cumsum(self.group_sizes) - self.group_sizes).astype(np.int32)
        self._item_index = tf.Variable(np.concatenate(item_index), trainable=False, dtype=tf.int32, name="item_index")
        self._tuned = _tuned_points(indexes)
        self._num_leaves = np.array([len(index.leaf_sizes) for index in indexes], np.int32)
        self._coverage = _coverage(indexes)
        export_name = uuid.uuid4().hex
        self._shared_names = [f"{export_name}/group-{index.group_id}" for index in indexes]
        self._variables: list[dict[str, tf.Variable]] = []
        self._constants: list[dict[str, np.ndarray]] = []
        for index in indexes:
            large = {name: tensor for name, tensor in index.tensors.items() if not is_constant(tensor)}
            self._variables.append(
                {k: tf.Variable(v, trainable=False, name=f"group_{index.group_id}_{k}") for k, v in large.items()}
            )
            self._constants.append({k: v for k, v in index.tensors.items() if k not in large})

    def search(self, query_embeddings: tf.Tensor, wanted: tf.Tensor) -> Found:
        """The best items of every group, by item_index; see `search_groups`."""
        found = search_groups(query_embeddings, wanted, self.group_sizes, self._search_each, in_order=False)
        items = tf.gather(self._item_index, found.items + tf.gather(self._offset_of_group, found.group))
        return replace(found, items=items)

    def _search_each(self, jobs: Jobs) -> Results:
        """Jobs name their index by its resource handle, so a request decides which are searched at all.

        An op call costs as much as a small search: jobs are cut into chunks, and a chunk that begins with
        a job that no row asks for is not entered. Few tensors cross into a chunk, since each costs as well.
        """
        num_jobs = 2 * len(self._groups)
        handles = tf.gather(tf.stack([self._handle(position) for position in range(len(self._groups))]), jobs.place)
        leaves, reorder = self._searches(jobs.place, jobs.k)
        last_row = tf.cumsum(jobs.num_rows)

        def search(start: int, stop: int) -> list[tf.Tensor]:
            part = slice(start, stop)
            first_row = last_row[start] - jobs.num_rows[start]
            queries = tf.split(jobs.queries[first_row : last_row[stop - 1]], jobs.num_rows[part], num=stop - start)
            columns = [tf.unstack(values[part], num=stop - start) for values in (handles, jobs.k, reorder, leaves)]
            found = [
                scann_ops.scann_search_batched(handle, rows, k, num_reorder, num_leaves, False)
                for rows, handle, k, num_reorder, num_leaves in zip(queries, *columns, strict=True)
            ]
            results = Results.of([(one.distances, one.indices) for one in found])
            return [results.scores, results.items, results.sizes]

        def nothing(start: int, stop: int) -> list[tf.Tensor]:
            return [tf.zeros([0]), tf.zeros([0], tf.int32), tf.zeros([stop - start], tf.int32)]

        chunks = []
        size = -(-num_jobs // _CHUNKS)
        for start in range(0, num_jobs, size):
            bounds = start, min(start + size, num_jobs)
            chunks.append(tf.cond(jobs.is_asked[start], partial(search, *bounds), partial(nothing, *bounds)))
        return Results(*(tf.concat(parts, 0) for parts in zip(*chunks, strict=True)))

    def _handle(self, position: int) -> Any:
        tensors = {name: tf.constant(value) for name, value in self._constants[position].items()}
        tensors.update({name: variable.read_value() for name, variable in self._variables[position].items()})
        return scann_ops.tensors_to_scann(**tensors, shared_name=self._shared_names[position])

    def _searches(self, place: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Indexes and k int32 [num_jobs] -> leaves to search and items to fetch by hash, -1 where there are none.

        Those of the first point that was tuned for k or more; beyond the last, more in proportion. The
        leaves are always enough to hold k items, whichever they are.
        """
        tuned = tf.gather(self._tuned, place)
        point = tf.reduce_sum(tf.cast(tuned[:, :, 0] < k[:, None], tf.int32), 1)
        tuned_k, leaves, reorder = tf.unstack(
            tf.gather(tuned, tf.minimum(point, self._tuned.shape[1] - 1), batch_dims=1), axis=1
        )
        ratio = tf.maximum(1.0, tf.cast(k, tf.float32) / tf.cast(tuned_k, tf.float32))
        scaled = [tf.cast(tf.math.ceil(ratio * tf.cast(values, tf.float32)), tf.int32) for values in (leaves, reorder)]
        enough = tf.searchsorted(tf.gather(self._coverage, place), k[:, None])[:, 0] + 1
        num_leaves, sizes = tf.gather(self._num_leaves, place), tf.gather(self._sizes, place)
        return (
            tf.where(leaves > 0, tf.minimum(tf.maximum(scaled[0], enough), num_leaves), -1),
            tf.where(reorder > 0, tf.minimum(scaled[1], sizes), -1),
        )


def _tuned_points(indexes: Sequence[GroupIndex]) -> np.ndarray:
    """int32 [num_indexes, most points, 3]: k, leaves and reorder of each point, the last one repeated."""
    width = max((len(index.points) for index in indexes), default=1)
    rows = [[(point.k, point.leaves, point.reorder) for point in index.points] for index in indexes]
    return np.array([row + row[-1:] * (width - len(row)) for row in rows], np.int32)


def _coverage(indexes: Sequence[GroupIndex]) -> np.ndarray:
    """int32 [num_indexes, max leaves]: the fewest items that l + 1 leaves hold, padded by the largest int.

    A tree that searches fewer leaves than needed returns fewer results than asked for; the sum of
    its smallest leaves bounds that from below.
    """
    width = max(1, *(len(index.leaf_sizes) for index in indexes)) if indexes else 1
    coverage = np.full([len(indexes), width], _NEVER, np.int32)
    for row, index in enumerate(indexes):
        coverage[row, : len(index.leaf_sizes)] = np.cumsum(np.sort(index.leaf_sizes))
    return coverage
