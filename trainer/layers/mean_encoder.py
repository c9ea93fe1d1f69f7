"""Mean pooling with a feed-forward network on top."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.random_dropout import RandomDropout
from trainer.layers.sequence_encoder import SequenceEncoder


class MeanEncoder(SequenceEncoder):
    """h_t = f(mean of tokens 0..t), f residual feed-forward blocks (Covington et al., RecSys 2016)."""

    def __init__(
        self,
        num_layers: int,
        dim: int,
        feed_forward_dim: int,
        dropout: float,
        generator: tf.random.Generator,
    ):
        super().__init__(name="encoder")
        self._norms = [
            tf.keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_{index}") for index in range(num_layers + 1)
        ]
        self._expand = [
            tf.keras.layers.Dense(feed_forward_dim, activation="gelu", name=f"expand_{index}")
            for index in range(num_layers)
        ]
        self._contract = [tf.keras.layers.Dense(dim, name=f"contract_{index}") for index in range(num_layers)]
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        count = tf.cast(tf.range(1, tf.shape(inputs)[1] + 1), inputs.dtype)
        hidden = tf.cumsum(inputs, axis=1) / count[:, None]
        for norm, expand, contract in zip(self._norms, self._expand, self._contract, strict=False):
            hidden = hidden + self._dropout(contract(expand(norm(hidden))), training=training)
        return self._norms[-1](hidden)
