"""Dropout whose randomness is part of the checkpoint."""

from __future__ import annotations

import tensorflow as tf


class RandomDropout(tf.keras.layers.Layer):
    """Dropout drawn from a given generator, at a rate rounded to 256ths, at most 255 of them.

    Keras' own dropout keeps its random state where no checkpoint reaches it, so a resumed run would
    differ from an uninterrupted one. One random byte decides about each element: random numbers are
    the most expensive part of dropout, and each of them yields four bytes.
    """

    def __init__(self, rate: float, generator: tf.random.Generator, name: str | None = None):
        super().__init__(name=name)
        self._dropped = min(round(rate * 256), 255)
        self._generator = generator

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or self._dropped == 0:
            return inputs
        shape = tf.shape(inputs)
        size = tf.reduce_prod(shape)
        words = self._generator.uniform_full_int([(size + 3) // 4], tf.uint32)
        bits = tf.reshape(tf.reshape(tf.bitcast(words, tf.uint8), [-1])[:size], shape)
        scale = tf.constant(256 / (256 - self._dropped), inputs.dtype)
        return inputs * tf.where(bits >= self._dropped, scale, tf.zeros([], inputs.dtype))
