"""Token conditioning by a token of the group."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.token_conditioning import TokenConditioning


class ConcatTokens(TokenConditioning):
    """[start + t_g, x_1, .., x_n]: the group's embedding joins the sequence (arXiv 2302.02657).

    It is added to the start token, which every position sees, so no position shifts. t_g starts at 0.
    """

    def __init__(self, num_groups: int, dim: int):
        super().__init__(num_groups, dim, "concat_tokens")
        self._token_offset = self.add_weight(name="token_offset", shape=[num_groups, dim], initializer="zeros")

    def call(self, tokens: tf.Tensor, group_id: tf.Tensor) -> tf.Tensor:
        offset = tf.concat([self._token_offset, tf.zeros([1, self.dim])], axis=0)
        first = tokens[:, :1] + tf.gather(offset, group_id)[:, None, :]
        return tf.concat([first, tokens[:, 1:]], axis=1)
