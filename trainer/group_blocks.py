"""Rows sorted by group and cut into blocks that share a group."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

BLOCK_SIZE = 16
"""Rows a block. Padding is at most this much a group, however skewed the groups are."""


class GroupBlocks(NamedTuple):
    """A layout of n rows in blocks.

    A matrix product of a block with its group's candidates shares them among the block's rows, so
    that no row has a copy of its own.

    Attributes:
        row: int32 [num_blocks, BLOCK_SIZE], which of the n rows; 0 where there is none.
        group_id: int32 [num_blocks].
        weight: float32 [num_blocks, BLOCK_SIZE], 1 for a row, 0 for padding.
        place_of_row: int32 [n], where each row lies in the flattened blocks.
    """

    row: tf.Tensor
    group_id: tf.Tensor
    weight: tf.Tensor
    place_of_row: tf.Tensor

    @classmethod
    def of(cls, group_id: tf.Tensor, num_groups: int) -> GroupBlocks:
        """Lays out rows of the groups `group_id`, int32 [n]."""
        order = tf.argsort(group_id, stable=True)
        ordered = tf.gather(group_id, order)
        sizes = tf.math.bincount(group_id, minlength=num_groups)
        blocks = (sizes + BLOCK_SIZE - 1) // BLOCK_SIZE
        first_row = tf.cumsum(sizes, exclusive=True)
        first_place = tf.cumsum(blocks, exclusive=True) * BLOCK_SIZE
        place = tf.range(tf.size(order)) + tf.gather(first_place - first_row, ordered)
        shape = tf.stack([tf.reduce_sum(blocks) * BLOCK_SIZE])
        row = tf.scatter_nd(place[:, None], order, shape)
        weight = tf.scatter_nd(place[:, None], tf.ones(tf.shape(order)), shape)
        return cls(
            row=tf.reshape(row, [-1, BLOCK_SIZE]),
            group_id=tf.repeat(tf.range(num_groups), blocks),
            weight=tf.reshape(weight, [-1, BLOCK_SIZE]),
            place_of_row=tf.scatter_nd(order[:, None], place, tf.shape(order)),
        )
