"""How a sequence is told which group it is read for, before it is encoded."""

from __future__ import annotations

import abc

import tensorflow as tf


class TokenConditioning(tf.keras.layers.Layer):
    """Base: changes a sequence's tokens by the group that its query is to be about.

    The encoder then reads the sequence once a group. Group `num_groups` is none: tokens stay as they are.
    """

    def __init__(self, num_groups: int, dim: int, name: str):
        super().__init__(name=name)
        self.num_groups = num_groups
        self.dim = dim

    @abc.abstractmethod
    def call(self, tokens: tf.Tensor, group_id: tf.Tensor) -> tf.Tensor:
        """Conditions float32 [batch_size, 1 + length, dim], the start token first, on int32 [batch_size] groups."""
