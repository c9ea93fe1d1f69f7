"""Tables of a servable, by item or by slot."""

from __future__ import annotations

import numpy as np
import tensorflow as tf


def table(values: np.ndarray, dtype: tf.DType, name: str) -> tf.Variable:
    """A table in a variable: a loader keeps several copies of a graph, and with it of its constants."""
    return tf.Variable(tf.constant(values, dtype), trainable=False, name=name)
