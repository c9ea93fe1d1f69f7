"""Token conditioning by a Hadamard product."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.token_conditioning import TokenConditioning


class MultiplyTokens(TokenConditioning):
    """x_j := t_g * x_j for every token (arXiv 2302.02657); t_g starts at 1, so that training starts from h_u."""

    def __init__(self, num_groups: int, dim: int):
        super().__init__(num_groups, dim, "multiply_tokens")
        self._token_scale = self.add_weight(name="token_scale", shape=[num_groups, dim], initializer="ones")

    def call(self, tokens: tf.Tensor, group_id: tf.Tensor) -> tf.Tensor:
        scale = tf.concat([self._token_scale, tf.ones([1, self.dim])], axis=0)
        return tokens * tf.gather(scale, group_id)[:, None, :]
