"""Conditioning by a Hadamard product."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.group_conditioning import GroupConditioning


class MultiplyConditioning(GroupConditioning):
    """e_{u,g} = t_g * h_u, on the encoded query; t_g starts at 1, so that training starts from h_u."""

    def __init__(self, num_groups: int, dim: int):
        super().__init__(num_groups, dim, "multiply")
        self._group_scale = self.add_weight(name="group_scale", shape=[num_groups, dim], initializer="ones")

    def own_group(self, query: tf.Tensor, group_id: tf.Tensor, training: bool = False) -> tf.Tensor:
        return query * tf.gather(self._group_scale, group_id)

    def all_groups(self, query: tf.Tensor, training: bool = False) -> tf.Tensor:
        return query[:, None, :] * self._group_scale
