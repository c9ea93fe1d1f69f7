"""Encoders that turn a sequence of tokens into several interest vectors."""

from __future__ import annotations

import abc

import tensorflow as tf

from trainer.layers.sequence_encoder import SequenceEncoder


class InterestEncoder(SequenceEncoder):
    """Base: a `SequenceEncoder` with `num_interests` vectors per position; the best of them ranks an item."""

    def __init__(self, num_interests: int):
        super().__init__(name="encoder")
        self.num_interests = num_interests

    def active(self, num_events: tf.Tensor) -> tf.Tensor:
        """Which interests count: int [...] events seen -> bool [..., num_interests], at least one True."""
        return tf.ones(tf.concat([tf.shape(num_events), [self.num_interests]], 0), tf.bool)

    @abc.abstractmethod
    def attend(self, interests: tf.Tensor, active: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """Label-aware attention: the one vector that a positive trains.

        Args:
            interests: float32 [num_positives, num_interests, dim].
            active: bool [num_positives, num_interests].
            target: float32 [num_positives, dim], the positive's own embedding.

        Returns:
            float32 [num_positives, dim].
        """
