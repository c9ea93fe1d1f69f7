"""Conditioning by concatenation."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.group_conditioning import GroupConditioning
from trainer.layers.random_dropout import RandomDropout


class ConcatConditioning(GroupConditioning):
    """e_{u,g} = h_u + V gelu(W [h_u; t_g] + b), V starting at zero.

    The group embedding joins the encoded query. (Joining it to the sequence before the encoder would
    cost one encoder pass per group.) W [h; t] = W_h h + W_t t, so the query's half is computed once
    for all groups.
    """

    def __init__(
        self,
        num_groups: int,
        dim: int,
        hidden_dim: int,
        dropout: float,
        generator: tf.random.Generator,
    ):
        super().__init__(num_groups, dim, "concat")
        self._query_kernel = self.add_weight(name="query_kernel", shape=[dim, hidden_dim])
        # t_g and W_t always appear as their product, which is therefore the parameter.
        self._group_hidden = self.add_weight(
            name="group_hidden",
            shape=[num_groups, hidden_dim],
            initializer=tf.keras.initializers.TruncatedNormal(stddev=0.02),
        )
        self._output_kernel = self.add_weight(name="output_kernel", shape=[hidden_dim, dim], initializer="zeros")
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def own_group(self, query: tf.Tensor, group_id: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self._residual(query, tf.gather(self._group_hidden, group_id), training)

    def all_groups(self, query: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self._residual(query[:, None, :], self._group_hidden, training)

    def _residual(self, query: tf.Tensor, group_hidden: tf.Tensor, training: bool) -> tf.Tensor:
        hidden = tf.nn.gelu(tf.matmul(query, self._query_kernel) + group_hidden)
        return query + tf.matmul(self._dropout(hidden, training=training), self._output_kernel)
