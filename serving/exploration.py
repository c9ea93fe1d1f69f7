"""Places for cold items: those without training events, which no score of a trained id favours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from serving.exact_index import ExactIndexSet
from serving.exclusion import Exclusions


@dataclass(frozen=True)
class Explored:
    """The cold items chosen for each row, best first.

    Attributes:
        scores: float32 [batch_size, width], -inf = absent.
        item_index: int32 [batch_size, width], 0 = absent.
        exclusions: what was excluded before, and these items, which the groups must not give again.
    """

    scores: tf.Tensor
    item_index: tf.Tensor
    exclusions: Exclusions


class Exploration(tf.Module):
    """The best cold items by the same score as all others, by exact search: they are few, and asked for rarely.

    They are chosen first, and the merge fills the other places. Where cold items are good enough to
    be in the list anyway, merge "score" gives the same list with and without.
    """

    def __init__(self, embeddings: np.ndarray, group_id: np.ndarray, is_cold: np.ndarray, num_groups: int):
        """Args:

        embeddings: float32 [num_items + 1, dim], by item_index.
        group_id: int32 [num_items + 1], -1 for padding.
        is_cold: bool [num_items + 1].
        num_groups: K.
        """
        super().__init__(name="exploration")
        self._group_id = np.where(is_cold, group_id, -1).astype(np.int32)
        members = [np.flatnonzero(self._group_id == group).astype(np.int32) for group in range(num_groups)]
        self._num_groups = num_groups
        self._index_set = ExactIndexSet(embeddings, members, name="cold_items") if any(map(len, members)) else None

    def choose(
        self, queries: tf.Tensor, offset: tf.Tensor, num_exploration: tf.Tensor, exclusions: Exclusions
    ) -> Explored:
        """The best `num_exploration` int32 [batch_size] cold items.

        `offset` float32 [batch_size, num_groups] is added to a group's scores; -inf leaves the group out.
        """
        rows = tf.shape(queries)[0]

        def nothing() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return tf.zeros([rows, 0]), tf.zeros([rows, 0], tf.int32), exclusions.keys

        def best() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            scores, items = self._best(queries, offset, num_exploration, exclusions)
            return scores, items, exclusions.adding(items).keys

        if self._index_set is None:
            scores, items, keys = nothing()
        else:
            scores, items, keys = tf.cond(tf.reduce_any(num_exploration > 0), best, nothing)
        return Explored(scores, items, Exclusions(keys, exclusions.num_rows, exclusions.num_items))

    def _best(
        self, queries: tf.Tensor, offset: tf.Tensor, num_exploration: tf.Tensor, exclusions: Exclusions
    ) -> tuple[tf.Tensor, tf.Tensor]:
        assert self._index_set is not None
        excluded = exclusions.count_by_group(tf.constant(self._group_id), self._num_groups)
        asked = (num_exploration > 0)[:, None] & tf.math.is_finite(offset)
        found = self._index_set.search(queries, tf.where(asked, num_exploration[:, None] + excluded, 0))
        scores = found.scores + tf.gather(offset, found.group, batch_dims=1)
        scores = tf.where(tf.math.is_finite(scores) & ~exclusions.contains(found.items), scores, -math.inf)
        width = tf.minimum(tf.reduce_max(num_exploration), tf.shape(scores)[1])
        scores, columns = tf.math.top_k(scores, width)
        scores = tf.where(tf.range(width) < num_exploration[:, None], scores, -math.inf)
        items = tf.gather(found.items, columns, batch_dims=1)
        return scores, tf.where(tf.math.is_finite(scores), items, 0)
