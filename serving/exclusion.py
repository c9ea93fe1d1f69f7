"""Which items a row may not be given, as a sorted list of keys: exact, and cheap for long histories."""

from __future__ import annotations

import tensorflow as tf


class Exclusions:
    """Items excluded per row.

    A (row, item) pair is the number row * (num_items + 1) + item_index; the distinct pairs are
    sorted once, and every question is a binary search.
    """

    def __init__(self, item_index: tf.RaggedTensor, num_items: int):
        """Args:

        item_index: int64 [batch_size, (any)], known items; repeats allowed.
        num_items: items of the catalogue.
        """
        self._base = num_items + 1
        self._num_rows = item_index.nrows()
        distinct, _ = tf.unique(item_index.value_rowids() * self._base + item_index.values)
        self._keys = tf.sort(distinct)

    def count_by_group(self, group_of_item: tf.Tensor, num_groups: int) -> tf.Tensor:
        """int32 [num_items + 1] -> int32 [batch_size, num_groups]: distinct items excluded."""
        row, item = self._keys // self._base, self._keys % self._base
        place = row * num_groups + tf.cast(tf.gather(group_of_item, item), tf.int64)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(place, tf.int32), place, self._num_rows * num_groups)
        return tf.reshape(counts, [-1, num_groups])

    def contains(self, item_index: tf.Tensor) -> tf.Tensor:
        """Int [batch_size, width] -> bool [batch_size, width]."""
        rows = tf.range(self._num_rows, dtype=tf.int64)[:, None]
        wanted = tf.reshape(rows * self._base + tf.cast(item_index, tf.int64), [-1])
        keys = tf.concat([self._keys, [tf.int64.max]], 0)
        found = tf.gather(keys, tf.searchsorted(keys, wanted)) == wanted
        return tf.reshape(found, tf.shape(item_index))
