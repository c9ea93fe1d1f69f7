"""What a history has been about so far."""

from __future__ import annotations

import tensorflow as tf


def running_mean(tokens: tf.Tensor) -> tf.Tensor:
    """Position t has the mean of tokens 0..t: float [batch_size, length, dim] -> the same shape."""
    count = tf.cast(tf.range(1, tf.shape(tokens)[1] + 1), tokens.dtype)
    return tf.cumsum(tokens, axis=1) / count[:, None]
