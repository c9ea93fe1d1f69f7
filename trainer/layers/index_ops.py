"""Index arithmetic in a few ops instead of TensorFlow's dozens: a step's small tensors cost by the op."""

from __future__ import annotations

import tensorflow as tf


def count(values: tf.Tensor, size: int) -> tf.Tensor:
    """How often each of 0..size-1 occurs: int32 [n] -> int32 [size]."""
    return tf.raw_ops.DenseBincount(input=values, size=size, weights=tf.zeros([0], tf.int32))


def repeat(values: tf.Tensor, times: tf.Tensor) -> tf.Tensor:
    """Repeats element r of [n] values times[r] times; `times` is int32 [n]."""
    place = tf.range(tf.reduce_sum(times))
    row = tf.raw_ops.UpperBound(sorted_inputs=tf.cumsum(times)[None], values=place[None])[0]
    return tf.gather(values, row)


def is_member(rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Whether each value occurs in each row.

    Args:
        rows: int64 [num_rows, length].
        values: int64 [num_values].

    Returns:
        bool [num_rows, num_values].
    """
    num_rows, length = tf.unstack(tf.shape(rows))
    elements = tf.reshape(rows, [-1])
    distinct, place = tf.unique(tf.concat([elements, values], 0))
    row_id = tf.range(tf.size(elements)) // length
    occurrences = tf.stack([row_id, place[: tf.size(elements)]], axis=1)
    has = tf.tensor_scatter_nd_update(
        tf.zeros([num_rows, tf.size(distinct)], tf.bool), occurrences, tf.ones([tf.size(elements)], tf.bool)
    )
    return tf.gather(has, place[tf.size(elements) :], axis=1)
