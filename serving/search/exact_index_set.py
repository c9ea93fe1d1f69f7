"""Exact search of every group with plain TensorFlow ops: any runtime can load a servable that uses it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from serving.search.branches import Branches
from serving.search.group_search import GroupResults, JobResults, SearchJobs, search_groups
from serving.search.top_columns import best_in_order, block_size, kth_largest, top_of_many

_BLOCKS_FROM = 4096
"""Group size from which the best are sought in two stages; below it, the first stage costs what it saves."""

_BLOCK = 32
"""Scores per block, of which only the maximum is looked at first; in a batch, the most that a block may have."""

_ITEMS_AT_ONCE = 2**17
"""Items whose scores are ranked together. Ranking all items at once would keep all their scores in memory."""

_BOUND_FROM = 512
"""Group size from which finding a bound first makes ordering many rows cheaper."""


class ExactIndexSet(tf.Module):
    """K matrices of embeddings, each searched by a product and a top-k."""

    def __init__(self, embeddings: np.ndarray, members: Sequence[np.ndarray], name: str = "index_set"):
        """Takes the embeddings of all items.

        Args:
            embeddings: float32 [num_items + 1, dim], by item_index.
            members: for each group, empty ones included, int32 [size], its items by item_index, in slot order.
            name: of the variables.
        """
        super().__init__(name=name)
        self.group_sizes = np.array([len(items) for items in members], np.int32)
        self._searched = np.flatnonzero(self.group_sizes)
        # One variable per group: a slice of one matrix is copied on every request unless it happens to be aligned.
        # [dim, size]: a product of one query with rows reads memory a fifth slower than one with columns.
        self._embeddings = [
            tf.Variable(np.ascontiguousarray(embeddings[members[group]].T), trainable=False, name=f"group_{group}")
            for group in self._searched.tolist()
        ]

    def search(self, query_embeddings: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        """See `ScannIndexSet.search`."""
        return search_groups(query_embeddings, offset, wanted, self.group_sizes, self._search_each, by_level=False)

    def _search_each(self, jobs: SearchJobs) -> JobResults:
        rows = tf.split(jobs.queries, jobs.num_rows, num=len(self._embeddings))
        scores = [tf.matmul(queries, embeddings) for queries, embeddings in zip(rows, self._embeddings, strict=True)]
        is_batch = tf.cast(tf.reduce_any(jobs.num_rows > 1), tf.int32)
        return JobResults.joined(
            [JobResults(*ranking(is_batch, jobs.k[part], *scores[part])) for part, ranking in self._rankings]
        )

    @functools.cached_property
    def _rankings(self) -> Sequence[tuple[slice, Branches]]:
        """For each part of the groups, the rankings of one row per group and of many."""
        ends = np.cumsum(self.group_sizes[self._searched])
        first = np.flatnonzero(np.diff(ends // _ITEMS_AT_ONCE, prepend=-1)).tolist()
        parts = [slice(*part) for part in itertools.pairwise([*first, len(ends)])]
        returned = [tf.TensorSpec([None], dtype) for dtype in (tf.float32, tf.int32, tf.int32)]
        return [(part, Branches([_rank_row, _rank_rows], self._ranked(part), returned)) for part in parts]

    def _ranked(self, part: slice) -> list[tf.TensorSpec]:
        """The specs of a ranking's arguments."""
        sizes = self.group_sizes[self._searched][part].tolist()
        return [tf.TensorSpec([len(sizes)], tf.int32), *(tf.TensorSpec([None, size]) for size in sizes)]


def _rank_row(k: tf.Tensor, *scores: tf.Tensor) -> JobResults:
    """Ranks the k[g] best of each group g's scores, float32 [one row or none, size of g]; the sizes are static."""
    return JobResults.of([_best_of_row(*job) for job in zip(scores, tf.unstack(k, num=len(scores)), strict=True)])


def _rank_rows(k: tf.Tensor, *scores: tf.Tensor) -> JobResults:
    """As `_rank_row`, for many rows."""
    return JobResults.of([_best_of_rows(*job) for job in zip(scores, tf.unstack(k, num=len(scores)), strict=True)])


def _best_of_row(scores: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of float32 [num_rows, size], the size static: their scores and columns, best first.

    They lie in the k blocks with the largest maxima. Taking maxima is faster than keeping a heap, so only the scores
    of those blocks are ranked. Among equal scores the first columns win, as in a batch.
    """
    size = scores.shape[1]
    if size < _BLOCKS_FROM:
        return tf.math.top_k(scores, k)
    num_blocks = -(-size // _BLOCK)
    # All blocks if k is larger: a branch for that costs more than it saves.
    num_ranked = tf.clip_by_value(k, 1, num_blocks)
    padded = tf.pad(scores, [[0, 0], [0, num_blocks * _BLOCK - size]], constant_values=-math.inf)
    columns = tf.reshape(padded, [-1, num_blocks, _BLOCK])
    _, blocks = tf.math.top_k(tf.reduce_max(columns, axis=2), num_ranked, sorted=False)
    blocks = -tf.math.top_k(-blocks, num_ranked)[0]  # in order, and faster than with `tf.sort`
    candidates = tf.gather(columns, blocks, axis=1, batch_dims=1)
    best, place = tf.math.top_k(tf.reshape(candidates, [-1, _BLOCK * num_ranked]), k)
    return best, tf.gather(blocks, place // _BLOCK, batch_dims=1) * _BLOCK + place % _BLOCK


def _best_of_rows(scores: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As `_best_of_row`, with more ops, which take less time for many rows.

    The k-th largest maximum of a row's blocks is a bound: few more than the k best scores reach it, and all of those
    lie in blocks whose maximum reaches it. A bound is found faster than an order.
    """
    size = scores.shape[1]
    if size < _BOUND_FROM:
        return tf.math.top_k(scores, k)
    k = tf.maximum(k, 1)
    if size < _BLOCKS_FROM:
        return top_of_many(scores, k)
    width = block_size(size, k, _BLOCK)
    num_blocks = -(-size // width)
    # Padding comes after all columns of its row, and so is ordered after as many scores as are returned.
    padded = tf.pad(scores, [[0, 0], [0, num_blocks * width - size]], constant_values=-math.inf)
    blocks = tf.reshape(padded, tf.stack([-1, width]))
    maxima = tf.reshape(tf.reduce_max(blocks, axis=1), tf.stack([-1, num_blocks]))
    bound = kth_largest(maxima, k)
    row, block = tf.unstack(tf.cast(tf.where(maxima >= bound), tf.int32), axis=1)
    candidates = tf.gather(blocks, row * num_blocks + block)
    places = tf.where(candidates >= tf.gather(bound, row))
    candidate, within = tf.unstack(tf.cast(places, tf.int32), axis=1)
    columns = tf.gather(block, candidate) * width + within
    return best_in_order(tf.gather(row, candidate), columns, tf.gather_nd(candidates, places), tf.shape(scores)[0], k)
