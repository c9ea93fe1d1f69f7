"""Features of a request, such as its page or device, which change its query."""

from __future__ import annotations

import math
from collections.abc import Sequence

import tensorflow as tf

from contracts.config.request_features import RequestFeature, code_sizes

REQUEST = "request"
"""Key of `user_features` that holds the codes of request features, int64 [batch_size] or, for each query of a window,
[batch_size, length + 1]; see `code_sizes`."""

_UNKNOWN_RATE = 0.1
"""Share of training windows that are trained on without any request feature and, for each feature, the share of the
others that are trained on without it: a request may leave features out."""


class RequestFeatures(tf.keras.layers.Layer):
    """Scales and shifts a query by a vector for each feature's value, which starts at zero.

    A value that is in no training event changes nothing, and neither does a feature that is left out.
    """

    def __init__(self, features: Sequence[RequestFeature], dim: int, generator: tf.random.Generator):
        super().__init__(name="request_features")
        self._generator = generator
        self._sizes = code_sizes(features)
        self._tables = [
            self.add_weight(name=request_weight(feature.name), shape=[size, 2 * dim], initializer="zeros")
            for feature, size in zip(features, self._sizes, strict=True)
        ]

    def call(self, query: tf.Tensor, request: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Applies the features of requests to their queries.

        Args:
            query: float32 [batch_size, dim], or [batch_size, length, dim] for each position of a window, or either with
                several interests, [..., num_interests, dim].
            request: int64 [batch_size] or [batch_size, length], codes.
        """
        is_told = tf.ones([len(self._sizes), 1], tf.float32)
        if training:
            kept = self._generator.uniform([1 + len(self._sizes), tf.shape(request)[0]]) >= _UNKNOWN_RATE
            is_told = tf.cast(kept[:1] & kept[1:], tf.float32)
        is_told = tf.reshape(is_told, [len(self._sizes), -1] + [1] * request.shape.rank)
        changes, stride = [], math.prod(self._sizes)
        for size, table, told in zip(self._sizes, self._tables, tf.unstack(is_told), strict=True):
            stride //= size
            value = request // stride % size
            changes.append(told * tf.cast(value > 0, tf.float32)[..., None] * tf.gather(table, value))
        change = tf.add_n(changes)
        if query.shape.rank > change.shape.rank:
            change = change[..., None, :]
        scale, shift = tf.split(change, 2, axis=-1)
        return query * (1.0 + scale) + shift


def request_weight(name: str) -> str:
    """The name of the table of a feature's values."""
    return f"request_{name}"
