"""Layer normalisation in as few passes over memory as TensorFlow's ops allow."""

from __future__ import annotations

import tensorflow as tf

_EPSILON = 1e-6


class LayerNorm(tf.keras.layers.Layer):
    """gamma (x - mean) / sqrt(variance + 1e-6) + beta over the last axis: Keras' layer with a closed-form gradient.

    Keras composes it of a dozen ops, each with its own gradient, and on CPU each op is a pass over memory.
    """

    def build(self, input_shape: tf.TensorShape) -> None:
        self.gamma = self.add_weight(name="gamma", shape=[input_shape[-1]], initializer="ones")
        self.beta = self.add_weight(name="beta", shape=[input_shape[-1]], initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        precise = tf.cast(inputs, tf.float32)
        # A served graph holds no custom gradients: loaders warn about them.
        outputs = standardized(precise) if training else _standardize(precise)[0]
        return tf.cast(outputs, inputs.dtype) * self.gamma + self.beta


@tf.custom_gradient
def standardized(inputs: tf.Tensor) -> tf.Tensor:
    """Rows of mean 0 and variance 1: float32 [..., dim] -> the same shape."""
    outputs, scale = _standardize(inputs)

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        return scale * (upstream - _mean(upstream) - outputs * _mean(outputs * upstream))

    return outputs, gradient


def _standardize(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Standardized rows, and 1 / their standard deviations."""
    centered = inputs - _mean(inputs)
    scale = tf.math.rsqrt(_mean(tf.square(centered)) + _EPSILON)
    return centered * scale, scale


def _mean(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_mean(values, axis=-1, keepdims=True)
