"""A causal transformer encoder."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.gelu import gelu
from trainer.layers.layer_norm import LayerNorm
from trainer.layers.random_dropout import RandomDropout
from trainer.layers.sequence_encoder import SequenceEncoder


class TransformerEncoder(SequenceEncoder):
    """Pre-norm causal self-attention blocks (Kang and McAuley, arXiv 1808.09781, with pre-norm)."""

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        dim: int,
        feed_forward_dim: int,
        dropout: float,
        generator: tf.random.Generator,
        name: str = "encoder",
    ):
        super().__init__(name=name)
        self._blocks = [
            _Block(num_heads, dim, feed_forward_dim, dropout, generator, name=f"block_{index}")
            for index in range(num_layers)
        ]
        self._norm = LayerNorm(name="norm")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        hidden = inputs
        for block in self._blocks:
            hidden = block(hidden, training=training)
        return self._norm(hidden, training=training)


class _Block(tf.keras.layers.Layer):
    def __init__(
        self,
        num_heads: int,
        dim: int,
        feed_forward_dim: int,
        dropout: float,
        generator: tf.random.Generator,
        name: str,
    ):
        super().__init__(name=name)
        self._num_heads, self._dim = num_heads, dim
        self._attention_norm = LayerNorm(name="attention_norm")
        self._feed_forward_norm = LayerNorm(name="feed_forward_norm")
        self._query_key_value = tf.keras.layers.Dense(3 * dim, use_bias=False, name="query_key_value")
        self._attention_output = tf.keras.layers.Dense(dim, use_bias=False, name="attention_output")
        self._expand = tf.keras.layers.Dense(feed_forward_dim, name="expand")
        self._contract = tf.keras.layers.Dense(dim, name="contract")
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        attended = self._attend(self._attention_norm(inputs, training=training))
        hidden = inputs + self._dropout(attended, training=training)
        expanded = self._expand(self._feed_forward_norm(hidden, training=training))
        projected = self._contract(gelu(expanded, training))
        return hidden + self._dropout(projected, training=training)

    def _attend(self, inputs: tf.Tensor) -> tf.Tensor:
        batch_size, length = tf.shape(inputs)[0], tf.shape(inputs)[1]
        head_dim = self._dim // self._num_heads
        projected = tf.reshape(self._query_key_value(inputs), [batch_size, length, 3, self._num_heads, head_dim])
        query, key, value = tf.unstack(tf.transpose(projected, [2, 0, 3, 1, 4]), num=3)
        logits = tf.matmul(query * head_dim**-0.5, key, transpose_b=True)
        position = tf.range(length)
        # Position t always sees itself, so no row of the softmax is empty. Added, the mask costs the gradient nothing.
        future = tf.where(position[None, :] <= position[:, None], tf.zeros([], logits.dtype), -1e9)
        attended = tf.matmul(tf.nn.softmax(logits + future), value)
        merged = tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [batch_size, length, self._dim])
        return self._attention_output(merged)
