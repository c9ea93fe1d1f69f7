"""A causal transformer encoder."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.gelu import gelu
from trainer.layers.history_means import HistoryMeans
from trainer.layers.layer_norm import LayerNorm
from trainer.layers.random_dropout import RandomDropout
from trainer.layers.sequence_encoder import SequenceEncoder


class TransformerEncoder(SequenceEncoder):
    """Pre-norm causal self-attention blocks (Kang and McAuley, arXiv 1808.09781, with pre-norm).

    The blocks read each token together with the means of the tokens up to it, see `HistoryMeans`.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        max_length: int,
        dim: int,
        feed_forward_dim: int,
        dropout: float,
        generator: tf.random.Generator,
    ):
        super().__init__(name="encoder")
        self._means = HistoryMeans(max_length, dim)
        self._blocks = [
            _Block(num_heads, dim, feed_forward_dim, dropout, generator, name=f"block_{index}")
            for index in range(num_layers)
        ]
        self._norm = LayerNorm(name="norm")

    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        encoded = self._norm(self._encoded(inputs, None, training), training=training)
        return tf.reshape(encoded, [tf.shape(inputs)[0], tf.shape(inputs)[1], inputs.shape[2]])

    def encode_at(self, inputs: tf.Tensor, position: tf.Tensor, training: bool) -> tf.Tensor:
        return self._norm(self._encoded(inputs, position, training), training=training)

    def _encoded(self, inputs: tf.Tensor, position: tf.Tensor | None, training: bool) -> tf.Tensor:
        """[batch_size * length, dim]; with a `position`, [batch_size, dim]: the last block leaves the others out."""
        batch_size, length, dim = tf.shape(inputs)[0], tf.shape(inputs)[1], inputs.shape[2]
        # One row per position: a dense layer on rows is one product; on sequences, it adds a dozen ops.
        hidden = tf.reshape(self._means(inputs), [-1, dim])
        for block in self._blocks[:-1]:
            hidden = block(hidden, batch_size, length, training=training)
        return self._blocks[-1](hidden, batch_size, length, position, training=training)


class _Block(tf.keras.layers.Layer):
    """Attention and a feed-forward network, on [batch_size * length, dim]."""

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

    def call(
        self,
        inputs: tf.Tensor,
        batch_size: tf.Tensor,
        length: tf.Tensor,
        position: tf.Tensor | None = None,
        training: bool = False,
    ) -> tf.Tensor:
        """[batch_size * length, dim] -> the same shape, or [batch_size, dim] at `position`, int32 [batch_size]."""
        rows = None if position is None else tf.range(batch_size) * length + position
        attended = self._attend(self._attention_norm(inputs, training=training), batch_size, length, rows)
        own = inputs if rows is None else tf.gather(inputs, rows)
        hidden = own + self._dropout(attended, training=training)
        expanded = self._expand(self._feed_forward_norm(hidden, training=training))
        projected = self._contract(gelu(expanded, training))
        return hidden + self._dropout(projected, training=training)

    def _attend(self, inputs: tf.Tensor, batch_size: tf.Tensor, length: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        head_dim = self._dim // self._num_heads
        projected = self._query_key_value(inputs)
        of_heads = tf.reshape(projected, [batch_size, length, 3, self._num_heads, head_dim])
        query, key, value = tf.unstack(tf.transpose(of_heads, [2, 0, 3, 1, 4]), num=3)
        if rows is None:
            weights = _weights(query * head_dim**-0.5, key)
        else:
            query = tf.reshape(tf.gather(projected[:, : self._dim], rows), [batch_size, self._num_heads, 1, head_dim])
            weights = _weights_at(rows % length, query * head_dim**-0.5, key)
        merged = tf.reshape(tf.transpose(tf.matmul(weights, value), [0, 2, 1, 3]), [-1, self._dim])
        return self._attention_output(merged)


def _weights(query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """How much each position attends to those up to and including it, [batch_size, num_heads, length, length]."""
    place = tf.range(tf.shape(key)[2])
    # An added mask costs the gradient nothing. It has two dimensions, since one of four is fused into the product by a
    # oneDNN kernel that is a hundred times slower.
    mask = tf.where(place <= place[:, None], tf.zeros([], query.dtype), -1e9)
    return tf.nn.softmax(tf.matmul(query, key, transpose_b=True) + mask)


def _weights_at(position: tf.Tensor, query: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """`_weights` for one position per row, [batch_size], that of `query`: [batch_size, num_heads, 1, length]."""
    seen = (tf.range(tf.shape(key)[2]) <= position[:, None])[:, None, :]
    logits = tf.where(seen, tf.squeeze(tf.matmul(query, key, transpose_b=True), 2), -1e9)
    # The shape is stated, since TensorFlow's cost model loses it and warns about that at each load.
    return tf.nn.softmax(tf.ensure_shape(logits, [None, key.shape[1], None]))[:, :, None]
