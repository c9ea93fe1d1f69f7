"""What turns a sequence of tokens into queries."""

from __future__ import annotations

import abc

import tensorflow as tf


class SequenceEncoder(tf.keras.layers.Layer):
    """Base: a causal encoder, so that one pass over a window gives a query after every event.

    Sequences are left-aligned, padding is on the right: causality alone keeps padding out of every
    real position, and a row's outputs do not depend on how far its batch is padded.
    """

    @abc.abstractmethod
    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Encodes float32 [batch_size, length >= 1, dim]; position t sees positions 0..t only.

        Returns:
            float32 [batch_size, length, dim], or [batch_size, length, num_interests, dim] from an
            `InterestEncoder`.
        """
