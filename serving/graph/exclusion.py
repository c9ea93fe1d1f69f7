"""The items that a row must not get, as a sorted list of keys: exact, and cheap for long histories."""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf


@dataclass(frozen=True)
class Exclusions:
    """Items excluded per row.

    A (row, slot) pair is the number row * (num_items + 1) + slot; the distinct pairs are
    sorted once, and every lookup is a binary search.

    Attributes:
        keys: int64, distinct, ascending.
        num_rows: the batch size.
        num_items: the size of the catalogue.
    """

    keys: tf.Tensor
    num_rows: tf.Tensor
    num_items: int

    @classmethod
    def of(cls, slots: tf.Tensor, num_items: int) -> Exclusions:
        """Excludes slots int [batch_size, width], each from its row; 0 = padding, repeats are allowed."""
        none = cls(tf.zeros([0], tf.int64), tf.shape(slots)[0], num_items)
        return none.adding(slots)

    def adding(self, slots: tf.Tensor) -> Exclusions:
        """Returns these exclusions extended by slots int [batch_size, width], each from its row; 0 = padding."""
        keys = tf.boolean_mask(self._keys_of(slots), slots != 0)
        distinct, _ = tf.unique(tf.concat([self.keys, keys], 0))
        return Exclusions(tf.sort(distinct), self.num_rows, self.num_items)

    def count_by_group(self, group_of_slot: tf.Tensor, num_groups: int) -> tf.Tensor:
        """The number of distinct excluded items, int32 [batch_size, num_groups].

        Args:
            group_of_slot: int32 [num_items + 1], -1 = in no group.
            num_groups: K.
        """
        base = self.num_items + 1
        row, slot = self.keys // base, self.keys % base
        group = tf.cast(tf.gather(group_of_slot, slot), tf.int64)
        place = tf.where(group < 0, tf.constant(-1, tf.int64), row * num_groups + group)
        counts = tf.math.unsorted_segment_sum(tf.ones_like(place, tf.int32), place, self.num_rows * num_groups)
        return tf.reshape(counts, [-1, num_groups])

    def contains(self, slots: tf.Tensor) -> tf.Tensor:
        """Whether each of the slots, int [batch_size, width], is excluded: bool [batch_size, width]."""
        keys = tf.concat([self.keys, [tf.int64.max]], 0)
        wanted = tf.reshape(self._keys_of(slots), [-1])
        found = tf.gather(keys, tf.searchsorted(keys, wanted)) == wanted
        return tf.reshape(found, tf.shape(slots))

    def _keys_of(self, slots: tf.Tensor) -> tf.Tensor:
        rows = tf.range(tf.cast(self.num_rows, tf.int64))[:, None]
        return rows * (self.num_items + 1) + tf.cast(slots, tf.int64)
