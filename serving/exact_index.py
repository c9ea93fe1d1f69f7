"""Exact search of every group with plain TensorFlow ops: a servable of it loads in any runtime."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from serving.group_search import GroupResults, JobResults, SearchJobs, search_groups

_BLOCKS_FROM = 4096
"""Items from which a group's best are sought in two stages; below, the ops of the first cost what it saves."""

_BLOCK = 32


class ExactIndexSet(tf.Module):
    """K matrices of embeddings, each searched by a product and a top-k."""

    def __init__(self, embeddings: np.ndarray, members: Sequence[np.ndarray], name: str = "index_set"):
        """Of the embeddings of all items.

        Args:
            embeddings: float32 [num_items + 1, dim], by item_index.
            members: of each group, empty ones included, int32 [size], its items by item_index, in order of their slots.
            name: of the variables.
        """
        super().__init__(name=name)
        self.group_sizes = np.array([len(items) for items in members], np.int32)
        self._searched = np.flatnonzero(self.group_sizes)
        # A variable a group: a slice of one matrix is copied on every request unless it happens to be aligned.
        # [dim, size]: a product of one query with rows reads memory a fifth slower than one with columns.
        self._embeddings = [
            tf.Variable(np.ascontiguousarray(embeddings[members[group]].T), trainable=False, name=f"group_{group}")
            for group in self._searched.tolist()
        ]

    def search(self, query_embeddings: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        """As `ScannIndexSet.search`."""
        return search_groups(query_embeddings, offset, wanted, self.group_sizes, self._search_each, by_level=False)

    def _search_each(self, jobs: SearchJobs) -> JobResults:
        num_groups = len(self._embeddings)
        rows, k = tf.split(jobs.queries, jobs.num_rows, num=num_groups), tf.unstack(jobs.k, num=num_groups)
        found = []
        for queries, embeddings, wanted in zip(rows, self._embeddings, k, strict=True):
            found.append(_best(tf.matmul(queries, embeddings), wanted, embeddings.shape[1]))
        return JobResults.of(found)


def _best(scores: tf.Tensor, k: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The k best of float32 [num_rows, size]: their scores and columns, best first.

    They lie in the k blocks of the largest maxima. Maxima are taken faster than a heap is kept, so only the scores
    of those blocks are ranked. Columns of a block are `num_blocks` apart: a maximum along rows of them is one
    vector operation for many blocks.
    """
    if size < _BLOCKS_FROM:
        return tf.math.top_k(scores, k)
    num_blocks = -(-size // _BLOCK)
    # All blocks where k is more: a branch for that costs more than it saves.
    num_ranked = tf.clip_by_value(k, 1, num_blocks)
    padded = tf.pad(scores, [[0, 0], [0, num_blocks * _BLOCK - size]], constant_values=-math.inf)
    columns = tf.reshape(padded, [-1, _BLOCK, num_blocks])
    _, blocks = tf.math.top_k(tf.reduce_max(columns, axis=1), num_ranked, sorted=False)
    candidates = tf.gather(columns, blocks, axis=2, batch_dims=1)
    best, place = tf.math.top_k(tf.reshape(candidates, [-1, _BLOCK * num_ranked]), k)
    return best, place // num_ranked * num_blocks + tf.gather(blocks, place % num_ranked, batch_dims=1)
