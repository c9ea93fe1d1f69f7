"""Causal means of a history: of all events, and of recent ones."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

_MOST_WINDOWS = 8
_RECENT = 2.0, 32.0
"""Numbers of events in the shortest and the longest window of recent events."""
_WEIGHTS_OF_ALL = 0.5, 8.0
_WEIGHT_OF_RECENT = 3.0


class HistoryMeans(tf.keras.layers.Layer):
    """Adds to each token the mean of the tokens up to it, with exponential decay; nothing is learned.

        y_t = x_t + c * sum_{i <= t} r^(t-i) x_i / sum_{i <= t} r^(t-i),    r and c fixed for each dimension

    In the first half of the dimensions r = 1, the mean of all events, and c goes from .5 to 8. In the other half
    r = 1 - 1 / window, a mean of recent events, with windows from 2 to 32, and c = 3. The number of windows is the
    greatest common divisor of eight and the number of these dimensions: with 25 dimensions, there is one, of 2 events.

    Attention does not learn such means from a small log. The mean of all events follows FISSA (Lin et al., RecSys
    2020), those of recent events follow Mega (Ma et al., arXiv 2209.10655, whose rates are learned). How informative
    each of them is, and how informative the last event is, differs from log to log: given all of them side by side, the
    blocks that follow choose what they need.
    """

    def __init__(self, max_length: int, dim: int):
        super().__init__(name="history_means")
        self._dim_of_all, dim_of_recent = dim // 2, dim - dim // 2
        windows = np.geomspace(*_RECENT, math.gcd(dim_of_recent, _MOST_WINDOWS))
        self._shares_of_all = _shares(np.ones(1), max_length)
        self._shares_of_recent = _shares(1 - 1 / windows, max_length)
        weights_of_all = np.geomspace(*_WEIGHTS_OF_ALL, self._dim_of_all)
        self._weights = np.append(weights_of_all, np.full(dim_of_recent, _WEIGHT_OF_RECENT)).astype(np.float32)

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """float [batch_size, length, dim] -> the same shape; length up to max_length."""
        for_all, for_recent = tf.split(tokens, [self._dim_of_all, tokens.shape[2] - self._dim_of_all], axis=2)
        means = [_means(for_all, self._shares_of_all), _means(for_recent, self._shares_of_recent)]
        return tokens + tf.constant(self._weights, tokens.dtype) * tf.concat(means, axis=2)


def _shares(rates: np.ndarray, max_length: int) -> np.ndarray:
    """Each token's weight in the mean at each position, for each decay r: float [n] -> float32 [n, position, token]."""
    age = np.subtract.outer(np.arange(max_length), np.arange(max_length))
    shares = np.where(age >= 0, rates[:, None, None] ** np.maximum(age, 0), 0)
    return (shares / shares.sum(axis=2, keepdims=True)).astype(np.float32)


def _means(tokens: tf.Tensor, shares: np.ndarray) -> tf.Tensor:
    """Means of [batch_size, length, dim], the n shares each for dim / n adjacent dimensions: one product per share."""
    batch_size, length, dim = tf.shape(tokens)[0], tf.shape(tokens)[1], tokens.shape[2]
    parts = tf.reshape(tokens, [batch_size, length, len(shares), dim // len(shares)])
    columns = tf.reshape(tf.transpose(parts, [2, 1, 0, 3]), [len(shares), length, -1])
    means = tf.matmul(tf.constant(shares, tokens.dtype)[:, :length, :length], columns)
    means = tf.reshape(means, [len(shares), length, batch_size, dim // len(shares)])
    return tf.reshape(tf.transpose(means, [2, 1, 0, 3]), [batch_size, length, dim])
