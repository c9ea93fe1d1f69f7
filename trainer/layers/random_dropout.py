"""Dropout whose randomness is part of the checkpoint."""

from __future__ import annotations

import tensorflow as tf


class RandomDropout(tf.keras.layers.Layer):
    """Dropout drawn from a given generator.

    Keras' own dropout keeps its random state where no checkpoint reaches it, so that a resumed run
    would differ from an uninterrupted one.
    """

    def __init__(self, rate: float, generator: tf.random.Generator, name: str | None = None):
        super().__init__(name=name)
        self.rate = rate
        self._generator = generator

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self.rate == 0:
            return inputs
        keep = self._generator.uniform(tf.shape(inputs)) >= self.rate
        return tf.where(keep, inputs / (1.0 - self.rate), tf.zeros_like(inputs))
