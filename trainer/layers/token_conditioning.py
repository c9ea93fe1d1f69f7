"""Conditioning a sequence on a group before it is encoded."""

from __future__ import annotations

import abc

import tensorflow as tf


class TokenConditioning(tf.keras.layers.Layer):
    """Base: changes a sequence's tokens according to the group that its query is for.

    The encoder then reads the sequence once per group. Group `num_groups` is no group: tokens stay as they are.
    """

    def __init__(self, num_groups: int, dim: int, name: str):
        super().__init__(name=name)
        self.num_groups = num_groups
        self.dim = dim

    @abc.abstractmethod
    def call(self, tokens: tf.Tensor, group_id: tf.Tensor) -> tf.Tensor:
        """Conditions float32 [batch_size, 1 + length, dim], the start token first, on int32 [batch_size] groups."""
