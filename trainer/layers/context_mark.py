"""A mark that distinguishes context from positives in a history."""

from __future__ import annotations

import tensorflow as tf


class ContextMark(tf.keras.layers.Layer):
    """The token of an event below the target level: a share of its item's plus a vector, both learned from zero.

    So exposures count as far as they are informative: in a log in which they are not, hardly at all.
    """

    def __init__(self, dim: int):
        super().__init__(name="context_mark")
        self._mark = self.add_weight(name="mark", shape=[dim], initializer="zeros")
        self._share = self.add_weight(name="share", shape=[], initializer="zeros")

    def call(self, tokens: tf.Tensor, is_context: tf.Tensor) -> tf.Tensor:
        """float32 [batch_size, length, dim] and bool [batch_size, length] -> float32 [batch_size, length, dim]."""
        return tf.where(is_context[..., None], self._share * tokens + self._mark, tokens)
