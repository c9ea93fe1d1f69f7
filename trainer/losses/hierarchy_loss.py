"""Ordered feedback: what was bought above what was clicked, above what was shown, above the rest."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

from trainer.replicas import mean_over_replicas

RANDOM_LEVEL = -1
"""Level of an item that the user was never shown."""
PADDING_LEVEL = tf.int32.max
"""Level of a place without an item."""


def hierarchy_loss(
    logits: tf.Tensor, levels: tf.Tensor, num_anchors: int | tf.Tensor, kind: Literal["softmax", "pairwise"]
) -> tf.Tensor:
    """Compares each anchor with the items of lower levels, as Taobao does (arXiv 2210.04170).

    softmax: -log e^{s_a} / (e^{s_a} + sum_{level_b < level_a} e^{s_b}), one softmax per objective;
    pairwise: the mean over b of log(1 + e^{s_b - s_a}).
    An anchor with nothing below it adds nothing.

    Args:
        logits: float32 [num_positives, num_items]; the first `num_anchors` columns are anchors.
        levels: int32, of the same shape; `PADDING_LEVEL` is below nothing.
        num_anchors: at least 1.
        kind: which loss.

    Returns:
        A scalar: this replica's part of the mean over anchors that have something below them.
    """
    anchor, level = logits[:, :num_anchors], levels[:, :num_anchors]
    real = level < PADDING_LEVEL
    below = (levels[:, None, :] < level[:, :, None]) & real[:, :, None]
    if kind == "softmax":
        lower = tf.reduce_logsumexp(tf.where(below, logits[:, None, :], logits.dtype.min), axis=2)
        loss = tf.nn.softplus(lower - anchor)
    else:
        margins = tf.where(below, tf.nn.softplus(logits[:, None, :] - anchor[:, :, None]), 0.0)
        loss = tf.math.divide_no_nan(tf.reduce_sum(margins, axis=2), tf.reduce_sum(tf.cast(below, tf.float32), axis=2))
    counted = tf.cast(tf.reduce_any(below, axis=2), tf.float32)
    return mean_over_replicas(loss, counted)


def highest_levels(item_index: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    """The highest level of each place's item in its window: int64 and int32 [num_windows, length] -> int32, the same.

    An item that was clicked and later bought counts as bought, so that its click does not rank another purchase above
    it.
    """
    same = item_index[:, :, None] == item_index[:, None, :]
    return tf.reduce_max(tf.where(same, levels[:, None, :], tf.int32.min), axis=-1)
