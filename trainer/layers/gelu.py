"""The Gaussian error linear unit."""

from __future__ import annotations

import math

import tensorflow as tf


def gelu(inputs: tf.Tensor, training: bool) -> tf.Tensor:
    """x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415); in training, its gradient is one product."""
    # A served graph holds no custom gradients: loaders warn about them.
    return _gelu_and_slope(inputs) if training else tf.nn.gelu(inputs)


@tf.custom_gradient
def _gelu_and_slope(inputs: tf.Tensor) -> tf.Tensor:
    # The slope Phi(x) + x phi(x) reuses parts of the value; TensorFlow's goes back through each op.
    below = 0.5 + 0.5 * tf.math.erf(inputs * math.sqrt(0.5))
    slope = below + inputs * tf.exp(-0.5 * tf.square(inputs)) * (1 / math.sqrt(2 * math.pi))
    return inputs * below, lambda upstream: upstream * slope
