"""Conditioning by a mixture of experts with one gate per group."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.gelu import gelu
from trainer.layers.group_blocks import GroupBlocks
from trainer.layers.group_conditioning import GroupConditioning
from trainer.layers.random_dropout import RandomDropout


class MMoEConditioning(GroupConditioning):
    """e_{u,g} = h_u + sum_n gate_g(h_u)_n expert_n(h_u), gate_g(h) = softmax(G_g h + b_g).

    Multi-gate mixture of experts (Ma et al., KDD 2018) on top of a shared encoder. All experts are one matrix product.
    Their output starts at zero, so that training starts from the single vector, and dropout applies to their hidden
    units: without both, the groups' vectors overfit sparse logs.
    """

    def __init__(
        self,
        num_groups: int,
        dim: int,
        num_experts: int,
        hidden_dim: int,
        dropout: float,
        generator: tf.random.Generator,
    ):
        super().__init__(num_groups, dim, "mmoe")
        self._num_experts, self._hidden_dim = num_experts, hidden_dim
        self._expert_kernel = self.add_weight(name="expert_kernel", shape=[dim, num_experts * hidden_dim])
        self._expert_bias = self.add_weight(name="expert_bias", shape=[num_experts * hidden_dim], initializer="zeros")
        self._expert_output = self.add_weight(
            name="expert_output", shape=[num_experts, hidden_dim, dim], initializer="zeros"
        )
        self._gate_kernel = self.add_weight(
            name="gate_kernel",
            shape=[num_groups, dim, num_experts],
            initializer=tf.keras.initializers.TruncatedNormal(stddev=0.02),
        )
        # Gates start apart, not equal: equal gates give all groups the same gradient.
        self._gate_bias = self.add_weight(
            name="gate_bias",
            shape=[num_groups, num_experts],
            initializer=tf.keras.initializers.TruncatedNormal(stddev=1.0),
        )
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def _gates(self, query: tf.Tensor, group_id: tf.Tensor) -> tf.Tensor:
        """[num_queries, num_experts], of each query's group."""
        # Queries of a group share its gate: each block is multiplied by one gate, and no other gate is computed.
        blocks = GroupBlocks.of(group_id, self.num_groups)
        # Tensors, not variables: their gradients are dense, and there are few groups.
        kernel, bias = tf.identity(self._gate_kernel), tf.identity(self._gate_bias)
        logits = tf.matmul(blocks.lay_out(query), tf.gather(kernel, blocks.group_id))
        return tf.nn.softmax(blocks.in_order(logits) + tf.gather(bias, group_id))

    def own_group(self, query: tf.Tensor, group_id: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = self._hidden(query, training)
        # Gates scale the hidden units, then one matrix product sums over experts and units.
        gated = hidden * self._gates(query, group_id)[..., None]
        flat = tf.reshape(gated, [-1, self._num_experts * self._hidden_dim])
        return query + tf.matmul(flat, tf.reshape(self._expert_output, [-1, self.dim]))

    def all_groups(self, query: tf.Tensor, training: bool = False) -> tf.Tensor:
        return query[:, None, :] + tf.matmul(tf.nn.softmax(self._gate_logits(query)), self._experts(query, training))

    def _experts(self, query: tf.Tensor, training: bool) -> tf.Tensor:
        """[num_queries, dim] -> [num_queries, num_experts, dim]."""
        return tf.einsum("bnh,nhd->bnd", self._hidden(query, training), self._expert_output)

    def _gate_logits(self, query: tf.Tensor) -> tf.Tensor:
        """[num_queries, dim] -> [num_queries, num_groups, num_experts], for all groups in one product."""
        kernel = tf.reshape(tf.transpose(self._gate_kernel, [1, 0, 2]), [self.dim, -1])
        return tf.reshape(tf.matmul(query, kernel), [-1, *self._gate_bias.shape]) + self._gate_bias

    def _hidden(self, query: tf.Tensor, training: bool) -> tf.Tensor:
        """[num_queries, dim] -> [num_queries, num_experts, hidden_dim]."""
        hidden = gelu(tf.matmul(query, self._expert_kernel) + self._expert_bias, training)
        return tf.reshape(self._dropout(hidden, training=training), [-1, self._num_experts, self._hidden_dim])
