"""A window's own items, with which its positives are compared one by one while draws stand for all other items."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.log_partitions import log_sum_exp
from trainer.negative_pools import LEFT_OUT


class WindowItems(NamedTuple):
    """The items of a step's windows.

    Few items are as near to a positive as its user's others, and a softmax over the whole catalogue has them all.
    Draws hold hardly any, so that a model that saw draws alone would not learn to tell a user's items apart.

    Attributes:
        embeddings: float32 [num_windows, length, dim].
        group: int32 [num_windows, length]; -1 of padding, of an id outside the catalogue, and of an item from its
            second time on.
        own_group: int32 [num_windows, length], of the item at each place, its second time as well.
    """

    embeddings: tf.Tensor
    group: tf.Tensor
    own_group: tf.Tensor

    @classmethod
    def of(cls, item_index: tf.Tensor, embeddings: tf.Tensor, group: tf.Tensor) -> WindowItems:
        """Of windows int64 [num_windows, length]; `group` is -1 of padding and of what is in no catalogue."""
        same = item_index[:, :, None] == item_index[:, None, :]
        place = tf.range(tf.shape(item_index)[1])
        is_repeat = tf.reduce_any(same & (place[None, :] < place[:, None]), axis=-1)
        return cls(embeddings, tf.where(is_repeat, -1, group), group)

    def scores(self, queries: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Inner products of queries float32 [n, ..., dim] at `place`, int64 [n, 2], with their windows' items.

        One product a window: no query has a copy of its window's items.

        Returns:
            float32 [num_windows, length, ..., length]; 0 where there is no query.
        """
        windows, length, dim = tf.unstack(tf.shape(self.embeddings, tf.int64))
        several = queries.shape[1:-1]
        by_window = tf.scatter_nd(place, queries, tf.stack([windows, length, *several, dim]))
        rows = tf.reshape(by_window, tf.stack([windows, -1, dim]))
        products = tf.matmul(rows, self.embeddings, transpose_b=True)
        return tf.reshape(products, tf.stack([windows, length, *several, length]))

    def scores_by_group(self, heads: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """`scores` where each item is scored by its own group's vector of `heads`, float32 [n, num_groups, dim].

        Returns:
            float32 [num_windows, length, length].
        """
        is_of_group = tf.range(heads.shape[1])[:, None] == self.group[:, None, None, :]
        return tf.reduce_sum(self.scores(heads, place) * tf.cast(is_of_group, heads.dtype), axis=2)

    def log_partitions(self, scores: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """log sum_j e^{scores_j} over a window's items j of the group of the item at a place, and over all others.

        Args:
            scores: float32 [num_windows, length, length].
            place: int64 [n, 2], of positives.

        Returns:
            float32 [n] each; about -1e9 without such items.
        """
        is_own = self.own_group[:, :, None] == self.group[:, None, :]
        is_other = ~is_own & (self.group >= 0)[:, None, :]
        own, others = (log_sum_exp(scores + LEFT_OUT * tf.cast(~which, tf.float32)) for which in (is_own, is_other))
        return tf.gather_nd(own, place), tf.gather_nd(others, place)
