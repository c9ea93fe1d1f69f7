"""A recurrent encoder."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.random_dropout import RandomDropout
from trainer.layers.sequence_encoder import SequenceEncoder


class GRUEncoder(SequenceEncoder):
    """Stacked gated recurrent units with residual connections (GRU4Rec, Hidasi et al., ICLR 2016)."""

    def __init__(self, num_layers: int, dim: int, dropout: float, generator: tf.random.Generator):
        super().__init__(name="encoder")
        # A cell in the generic RNN is plain TensorFlow ops; Keras' GRU would save a cuDNN variant, too. Without a name,
        # cells are numbered across the process, but a warm start finds weights by name.
        self._layers = [
            tf.keras.layers.RNN(tf.keras.layers.GRUCell(dim, name="cell"), return_sequences=True, name=f"gru_{index}")
            for index in range(num_layers)
        ]
        self._norms = [
            tf.keras.layers.LayerNormalization(epsilon=1e-6, name=f"norm_{index}") for index in range(num_layers + 1)
        ]
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        hidden = inputs
        for layer, norm in zip(self._layers, self._norms, strict=False):
            hidden = hidden + self._dropout(layer(norm(hidden)), training=training)
        return self._norms[-1](hidden)
