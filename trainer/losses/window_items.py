"""A window's items and those its user took before it, with which the window's positives are compared one by one.

Draws stand in for all other items. An item that the user took before a positive may count more or less than once (see
trainer/losses/seen_weight.py), in softmaxes over draws and over the whole catalogue alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import tensorflow as tf

from trainer.losses.log_partitions import log_sum_exp
from trainer.losses.negative_pools import LEFT_OUT


class WindowItems(NamedTuple):
    """The items of a step's windows, and those that their users took before the windows.

    Few items are as near to a positive as its user's other items. A softmax over the whole catalogue includes them all;
    draws hold hardly any, so a model that saw only draws would not learn to tell a user's items apart.

    Attributes:
        embeddings: float32 [num_windows, num_items, dim]: a window's own items, then the earlier ones.
        group: int32 [num_windows, num_items]; -1 for padding, for an id outside the catalogue, and for repeats of an
            item.
        own_group: int32 [num_windows, length], the group of the item at each place, repeats included.
        seen: bool [num_windows, length, num_items], whether an item was taken before a place; never the item at it.
    """

    embeddings: tf.Tensor
    group: tf.Tensor
    own_group: tf.Tensor
    seen: tf.Tensor

    @classmethod
    def of(
        cls,
        item_index: tf.Tensor,
        earlier_items: tf.Tensor,
        is_positive: tf.Tensor,
        embeddings: tf.Tensor,
        group: tf.Tensor,
    ) -> WindowItems:
        """Builds them for windows int64 [num_windows, length] and `earlier_items`, int64 [num_windows, num_earlier].

        Args:
            earlier_items: what each window's user took before it; no repeats in a row, except for padding.
            is_positive: bool [num_windows, length], events at the target level or above.
            embeddings, group: of the windows' items, then of the earlier ones; `group` is -1 for padding and for ids
                outside the catalogue.
        """
        items, length = tf.concat([item_index, earlier_items], 1), tf.shape(item_index)[1]
        place, column = tf.range(length)[:, None], tf.range(tf.shape(items)[1])
        same = item_index[:, :, None] == items[:, None, :]
        is_repeat = tf.reduce_any(same & (place < column), axis=1)
        again = tf.reduce_any(same[:, :, length:], axis=2)
        is_earlier = tf.concat([again, tf.ones_like(earlier_items, tf.bool)], 1)
        first_taken = tf.reduce_min(tf.where(same & is_positive[:, :, None], place, length), axis=1)
        seen = is_earlier[:, None, :] | (first_taken[:, None, :] < place)
        seen &= ~same
        return cls(embeddings, tf.where(is_repeat, -1, group), group[:, :length], seen)

    def scores(self, queries: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """Inner products of queries float32 [n, ..., dim] at `place`, int64 [n, 2], with the items of their windows.

        One product per window, so no query has its own copy of its window's items.

        Returns:
            float32 [num_windows, length, ..., num_items]; 0 where there is no query.
        """
        windows, num_items, dim = tf.unstack(tf.shape(self.embeddings, tf.int64))
        length, several = tf.shape(self.own_group, tf.int64)[1], queries.shape[1:-1]
        by_window = tf.scatter_nd(place, queries, tf.stack([windows, length, *several, dim]))
        rows = tf.reshape(by_window, tf.stack([windows, -1, dim]))
        products = tf.matmul(rows, self.embeddings, transpose_b=True)
        return tf.reshape(products, tf.stack([windows, length, *several, num_items]))

    def scores_by_group(self, heads: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
        """`scores` with each item scored by its own group's vector in `heads`, float32 [n, num_groups, dim].

        Returns:
            float32 [num_windows, length, num_items].
        """
        is_of_group = tf.range(heads.shape[1])[:, None] == self.group[:, None, None, :]
        return tf.reduce_sum(self.scores(heads, place) * tf.cast(is_of_group, heads.dtype), axis=2)

    def log_partitions(self, scores: tf.Tensor, place: tf.Tensor, seen_weight: float) -> tuple[tf.Tensor, tf.Tensor]:
        """log sum_j w_j e^{scores_j} over items j of the group of the item at a place, and over all others.

        Args:
            scores: float32 [num_windows, length, num_items].
            place: int64 [n, 2], of positives.
            seen_weight: w_j of the items taken before; the others have 1.

        Returns:
            float32 [n] each; about -1e9 without such items.
        """
        is_item, is_own = (self.group >= 0)[:, None, :], self._is_own
        weighted = scores + math.log(seen_weight) * tf.cast(self.seen, tf.float32)
        return _over(is_own & is_item, weighted, place), _over(~is_own & is_item, weighted, place)

    def seen_log_partitions(self, scores: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """log sum_j e^{scores_j} over the items taken before: those of the positive's own group, and all of them.

        Arguments and shapes as in `log_partitions`.
        """
        counted = self.seen & (self.group >= 0)[:, None, :]
        return _over(self._is_own & counted, scores, place), _over(counted, scores, place)

    @property
    def _is_own(self) -> tf.Tensor:
        return self.own_group[:, :, None] == self.group[:, None, :]


def _over(items: tf.Tensor, scores: tf.Tensor, place: tf.Tensor) -> tf.Tensor:
    return tf.gather_nd(log_sum_exp(scores + LEFT_OUT * tf.cast(~items, tf.float32)), place)
