"""Exact search of every group with plain TensorFlow ops: a servable of it loads in any runtime."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from serving.index_set import Found


class ExactIndexSet(tf.Module):
    """K matrices of embeddings, each searched by a product and a top-k."""

    def __init__(self, embeddings: np.ndarray, item_index: Sequence[np.ndarray]):
        """Args:

        embeddings: float32 [num_items + 1, dim], by item_index.
        item_index: of each group, empty ones included, int32 [size], its items.
        """
        super().__init__(name="index_set")
        self.group_sizes = np.array([len(members) for members in item_index], np.int32)
        # A variable a group: a slice of one matrix is copied on every request unless it happens to be aligned.
        self._embeddings = [
            tf.Variable(embeddings[members], trainable=False, name=f"group_{group}")
            for group, members in enumerate(item_index)
        ]
        self._item_index = tf.Variable(np.concatenate(item_index), trainable=False, dtype=tf.int32, name="item_index")
        self._offsets = np.cumsum(self.group_sizes) - self.group_sizes

    def search(self, query_embeddings: tf.Tensor, num_neighbors: tf.Tensor) -> Found:
        """As `ScannIndexSet.search`."""
        queries = tf.unstack(query_embeddings, num=len(self.group_sizes), axis=1)
        k = tf.unstack(tf.clip_by_value(num_neighbors, 1, np.maximum(self.group_sizes, 1)))
        scores, rows, groups = [], [], []
        for group in np.flatnonzero(self.group_sizes):
            products = tf.matmul(queries[group], self._embeddings[group], transpose_b=True)
            best, row = tf.math.top_k(products, k[group])
            scores.append(best)
            rows.append(row + self._offsets[group])
            groups.append(tf.fill([k[group]], tf.cast(group, tf.int32)))
        return Found(tf.concat(scores, 1), tf.gather(self._item_index, tf.concat(rows, 1)), tf.concat(groups, 0))
