"""Exact search of every group with plain TensorFlow ops: a servable of it loads in any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import tensorflow as tf

from serving.group_search import Found, Jobs, Results, search_groups


class ExactIndexSet(tf.Module):
    """K matrices of embeddings, each searched by a product and a top-k."""

    def __init__(self, embeddings: np.ndarray, item_index: Sequence[np.ndarray], name: str = "index_set"):
        """Args:

        embeddings: float32 [num_items + 1, dim], by item_index.
        item_index: of each group, empty ones included, int32 [size], its items.
        name: of the variables.
        """
        super().__init__(name=name)
        self.group_sizes = np.array([len(members) for members in item_index], np.int32)
        self._searched = np.flatnonzero(self.group_sizes)
        # A variable a group: a slice of one matrix is copied on every request unless it happens to be aligned.
        self._embeddings = [
            tf.Variable(embeddings[item_index[group]], trainable=False, name=f"group_{group}")
            for group in self._searched.tolist()
        ]
        self._item_index = tf.Variable(np.concatenate(item_index), trainable=False, dtype=tf.int32, name="item_index")
        self._offsets = (np.cumsum(self.group_sizes) - self.group_sizes).astype(np.int32)

    def search(self, query_embeddings: tf.Tensor, wanted: tf.Tensor) -> Found:
        """As `ScannIndexSet.search`."""
        found = search_groups(query_embeddings, wanted, self.group_sizes, self._search_each, in_order=True)
        items = tf.gather(self._item_index, found.items + tf.gather(self._offsets, found.group))
        return replace(found, items=items)

    def _search_each(self, jobs: Jobs) -> Results:
        num_groups = len(self._embeddings)
        rows, k = tf.split(jobs.queries, jobs.num_rows, num=num_groups), tf.unstack(jobs.k, num=num_groups)
        found = []
        for queries, embeddings, wanted in zip(rows, self._embeddings, k, strict=True):
            found.append(tf.math.top_k(tf.matmul(queries, embeddings, transpose_b=True), wanted))
        return Results.of(found)
