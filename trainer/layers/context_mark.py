"""What tells context from positives in a history."""

from __future__ import annotations

import tensorflow as tf


class ContextMark(tf.keras.layers.Layer):
    """The token of an event below the target level: a share of its item's and a vector, both learned, at first zero.

    So what was shown enters as far as it tells something: of a log whose exposures tell nothing, hardly at all.
    """

    def __init__(self, dim: int):
        super().__init__(name="context_mark")
        self._mark = self.add_weight(name="mark", shape=[dim], initializer="zeros")
        self._share = self.add_weight(name="share", shape=[], initializer="zeros")

    def call(self, tokens: tf.Tensor, is_context: tf.Tensor) -> tf.Tensor:
        """float32 [batch_size, length, dim] and bool [batch_size, length] -> float32 [batch_size, length, dim]."""
        return tf.where(is_context[..., None], self._share * tokens + self._mark, tokens)
