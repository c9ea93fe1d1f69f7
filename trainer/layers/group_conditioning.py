"""Turning a user's single encoded query into one vector per group."""

from __future__ import annotations

import abc

import tensorflow as tf


class GroupConditioning(tf.keras.layers.Layer):
    """Base: turns an encoded query h_u into e_{u,g}, the user's vector for group g.

    Two entry points give the same vectors. Training needs a positive's own group only; serving needs all groups, and
    so does a loss that scores candidates by their groups' vectors.
    """

    def __init__(self, num_groups: int, dim: int, name: str):
        super().__init__(name=name)
        self.num_groups = num_groups
        self.dim = dim

    @abc.abstractmethod
    def own_group(self, query: tf.Tensor, group_id: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors for one group each.

        Args:
            query: float32 [num_positives, dim].
            group_id: int32 [num_positives], the group that each query is for.

        Returns:
            float32 [num_positives, dim].
        """

    @abc.abstractmethod
    def all_groups(self, query: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors for all groups: float32 [batch_size, dim] -> [batch_size, num_groups, dim]."""
