"""What a history has been about, in all and lately."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

_MOST_WINDOWS = 16
_RECENT = 2.0, 32.0
"""Events that the shortest and the longest window of recent ones hold."""
_WEIGHTS_OF_ALL = 0.5, 8.0
_WEIGHT_OF_RECENT = 3.0


class HistoryMeans(tf.keras.layers.Layer):
    """x_t + c * sum_i r^(t-i) x_i / sum_i r^(t-i), over tokens i up to t, r and c fixed for each dimension.

    What a user has liked so far a small log would not teach attention to take (FISSA, Lin et al., RecSys 2020), nor
    what he has liked lately (Mega, Ma et al., arXiv 2209.10655, whose rates are learned). How much each tells, and how
    much the last event does, differs from log to log. So they lie side by side, and a model finds what it needs: half
    of the dimensions take the mean of all (r = 1), some little of it and some much; the others one of recent events
    (r = 1 - 1 / window).
    """

    def __init__(self, max_length: int, dim: int):
        super().__init__(name="history_means")
        num_windows = math.gcd(dim, _MOST_WINDOWS)
        of_all = (num_windows + 1) // 2
        windows = np.append(np.full(of_all, np.inf), np.geomspace(*_RECENT, num_windows - of_all))
        age = np.subtract.outer(np.arange(max_length), np.arange(max_length))
        shares = np.where(age >= 0, (1 - 1 / windows)[:, None, None] ** np.maximum(age, 0), 0)
        self._shares = (shares / shares.sum(axis=2, keepdims=True)).astype(np.float32)
        weights = np.full(dim, _WEIGHT_OF_RECENT, np.float32)
        weights[: dim // num_windows * of_all] = np.geomspace(*_WEIGHTS_OF_ALL, dim // num_windows * of_all)
        self._weights = weights

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """float [batch_size, length, dim] -> the same shape; length up to max_length."""
        batch_size, length, dim = tf.shape(tokens)[0], tf.shape(tokens)[1], tokens.shape[2]
        num_windows = len(self._shares)
        # One product for each window, of all rows together.
        of_windows = tf.reshape(tokens, [batch_size, length, num_windows, dim // num_windows])
        columns = tf.reshape(tf.transpose(of_windows, [2, 1, 0, 3]), [num_windows, length, -1])
        means = tf.matmul(tf.constant(self._shares, tokens.dtype)[:, :length, :length], columns)
        means = tf.reshape(means, [num_windows, length, batch_size, dim // num_windows])
        means = tf.reshape(tf.transpose(means, [2, 1, 0, 3]), [batch_size, length, dim])
        return tokens + tf.constant(self._weights, tokens.dtype) * means
