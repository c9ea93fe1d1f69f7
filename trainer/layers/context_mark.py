"""What tells context from positives in a history."""

from __future__ import annotations

import tensorflow as tf


class ContextMark(tf.keras.layers.Layer):
    """Adds one learned vector to the tokens of events below the target level; at first it is zero."""

    def __init__(self, dim: int):
        super().__init__(name="context_mark")
        self._mark = self.add_weight(name="mark", shape=[dim], initializer="zeros")

    def call(self, tokens: tf.Tensor, is_context: tf.Tensor) -> tf.Tensor:
        """float32 [batch_size, length, dim] and bool [batch_size, length] -> float32 [batch_size, length, dim]."""
        return tokens + tf.where(is_context[..., None], self._mark, 0.0)
