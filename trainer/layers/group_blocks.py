"""Rows sorted by group and cut into blocks that share a group."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from trainer.layers.index_ops import count, repeat

_LEAST_BLOCK = 8
_BLOCKS_A_GROUP = 2


class GroupBlocks(NamedTuple):
    """A layout of n rows in blocks, a few per group: padding is at most a block per group, however skewed groups are.

    A matrix product of a block with its group's candidates shares them among the block's rows, so
    that no row needs its own copy.

    Attributes:
        row: int32 [num_blocks, block_size], which of the n rows; 0 where there is none.
        group_id: int32 [num_blocks].
        place_of_row: int32 [n], where each row lies in the flattened blocks.
    """

    row: tf.Tensor
    group_id: tf.Tensor
    place_of_row: tf.Tensor

    def lay_out(self, values: tf.Tensor) -> tf.Tensor:
        """Lays out rows float32 [n, dim] in their blocks, [num_blocks, block_size, dim]; empty places hold row 0."""

        @tf.custom_gradient
        def in_blocks(values: tf.Tensor) -> tf.Tensor:
            # Each row has one place that counts, so its gradient is read, not summed.
            return tf.gather(values, self.row), self.in_order

        return in_blocks(values)

    def in_order(self, blocks: tf.Tensor) -> tf.Tensor:
        """Turns blocks [num_blocks, block_size, ...] back into rows [n, ...]."""
        return tf.gather(tf.reshape(blocks, [-1, *blocks.shape[2:]]), self.place_of_row)

    @classmethod
    def of(cls, group_id: tf.Tensor, num_groups: int) -> GroupBlocks:
        """Lays out rows of the groups `group_id`, int32 [n]."""
        number = tf.size(group_id)
        if num_groups == 1:
            row = tf.range(number)
            return cls(row=row[None], group_id=tf.zeros([1], tf.int32), place_of_row=row)
        block_size = tf.maximum(_LEAST_BLOCK, number // (_BLOCKS_A_GROUP * num_groups))
        order = tf.argsort(group_id, stable=True)
        ordered = tf.gather(group_id, order)
        sizes = count(group_id, num_groups)
        blocks = (sizes + block_size - 1) // block_size
        first_row = tf.cumsum(sizes, exclusive=True)
        first_place = tf.cumsum(blocks, exclusive=True) * block_size
        place = tf.range(number) + tf.gather(first_place - first_row, ordered)
        row = tf.scatter_nd(place[:, None], order, tf.stack([tf.reduce_sum(blocks) * block_size]))
        return cls(
            row=tf.reshape(row, [-1, block_size]),
            group_id=repeat(tf.range(num_groups), blocks),
            place_of_row=tf.scatter_nd(order[:, None], place, tf.shape(order)),
        )
