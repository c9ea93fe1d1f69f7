"""Encoders that turn a sequence of tokens into queries."""

from __future__ import annotations

import abc

import tensorflow as tf


class SequenceEncoder(tf.keras.layers.Layer):
    """Base: a causal encoder, so that one pass over a window gives a query after every event.

    Sequences are left-aligned with padding on the right: causality alone keeps padding out of every
    real position, and a row's outputs do not depend on how far its batch is padded.
    """

    def call(self, inputs: tf.Tensor, training: bool = False, position: tf.Tensor | None = None) -> tf.Tensor:
        """Encodes float32 [batch_size, length >= 1, dim]; position t sees positions 0..t only.

        Args:
            position: int32 [batch_size], the one position of each row to encode; None: all.

        Returns:
            float32 [batch_size, length, dim], or [batch_size, dim] at `position`. An `InterestEncoder` returns
            [num_interests, dim] in place of dim.
        """
        return self.encode(inputs, training) if position is None else self.encode_at(inputs, position, training)

    @abc.abstractmethod
    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        """Encodes every position, see `call`."""

    def encode_at(self, inputs: tf.Tensor, position: tf.Tensor, training: bool) -> tf.Tensor:
        """Encodes one position per row, see `call`; overridden by encoders that need not compute the others."""
        return tf.gather(self.encode(inputs, training), position, batch_dims=1)
