"""Samplers of a step's whole-catalogue negatives, each with the probabilities that its logQ needs."""

from __future__ import annotations

import abc

import numpy as np
import tensorflow as tf
from typing_extensions import assert_never

from contracts.config import LossConfig
from trainer.catalogue import Catalogue


class NegativeSampler(abc.ABC):
    """Base: draws item_index by `probability`, float64 [num_items + 1], which sums to 1."""

    def __init__(self, probability: np.ndarray):
        self.probability = probability

    @abc.abstractmethod
    def draw(
        self, easy_negatives: tf.Tensor, targets: tf.Tensor, size: int, generator: tf.random.Generator
    ) -> tf.Tensor:
        """At most `size` draws.

        Args:
            easy_negatives: int64 [n], the windows' own draws, 0 if one could not be drawn.
            targets: int64 [num_positives], the step's positives.

        Returns:
            int64 [<= size].
        """


class WindowSampler(NegativeSampler):
    """A part of the draws that came with the windows."""

    def draw(
        self, easy_negatives: tf.Tensor, targets: tf.Tensor, size: int, generator: tf.random.Generator
    ) -> tf.Tensor:
        return evenly_spread(easy_negatives, size, generator)


class InBatchSampler(NegativeSampler):
    """A part of the step's positives.

    Its `probability` is an item's share of the targets, which exclude repeats and events before `windows.since`.
    """

    def draw(
        self, easy_negatives: tf.Tensor, targets: tf.Tensor, size: int, generator: tf.random.Generator
    ) -> tf.Tensor:
        return evenly_spread(targets, size, generator)


class CatalogueSampler(NegativeSampler):
    """Independent draws from any distribution by inversion, in O(log num_items) per draw."""

    def __init__(self, probability: np.ndarray):
        super().__init__(probability)
        self._cumulative = tf.constant(np.cumsum(probability[1:]))

    def draw(
        self, easy_negatives: tf.Tensor, targets: tf.Tensor, size: int, generator: tf.random.Generator
    ) -> tf.Tensor:
        uniform = generator.uniform([size], dtype=tf.float64) * self._cumulative[-1]
        place = tf.searchsorted(self._cumulative, uniform, side="right", out_type=tf.int64)
        return tf.minimum(place + 1, tf.size(self._cumulative, out_type=tf.int64))


def negative_sampler(catalogue: Catalogue, loss: LossConfig) -> NegativeSampler:
    """The sampler that `training.loss.negatives` names."""
    match loss.negatives:
        case "windows":
            in_all = catalogue.sampling_probability if catalogue.draw_shares is None else catalogue.draw_shares[1]
            return WindowSampler(in_all)
        case "uniform":
            return CatalogueSampler(uniform_probability(catalogue))
        case "popularity":
            return CatalogueSampler(_share(catalogue.train_count))
        case "in_batch":
            counts = catalogue.target_count  # None if loaded only to answer: it draws nothing then
            return InBatchSampler(_share(catalogue.train_count if counts is None else counts))
        case _:
            assert_never(loss.negatives)


def _share(counts: np.ndarray) -> np.ndarray:
    return counts / max(counts.sum(), 1)


def uniform_probability(catalogue: Catalogue) -> np.ndarray:
    """float64 [num_items + 1]: the same for all items, 0 for padding."""
    probability = np.full(catalogue.num_items + 1, 1 / catalogue.num_items)
    probability[0] = 0
    return probability


def evenly_spread(draws: tf.Tensor, size: int, generator: tf.random.Generator) -> tf.Tensor:
    """At most `size` of int64 [n] draws, evenly spaced from a random start; zeros among them are left out.

    All draws are equally likely to be kept. (A shuffle would move all of them to keep a few.)
    """
    number = tf.size(draws)
    kept = tf.minimum(number, size)
    stride = tf.cast(number, tf.float64) / tf.cast(tf.maximum(kept, 1), tf.float64)
    place = (tf.cast(tf.range(kept), tf.float64) + generator.uniform([], dtype=tf.float64)) * stride
    part = tf.gather(draws, tf.minimum(tf.cast(place, tf.int32), number - 1))
    return tf.gather(part, tf.where(part > 0)[:, 0])


def uniform_unseen(
    generator: tf.random.Generator, num_items: int, seen: tf.Tensor, row: tf.Tensor, number: int
) -> tf.Tensor:
    """Draws uniformly from the catalogue; 0 if an item of the positive's row of `seen` was drawn.

    Args:
        generator: source of the draws.
        num_items: size of the catalogue.
        seen: int64 [num_rows, length], 0 = padding.
        row: int64 [num_positives], the row of each positive.
        number: draws per positive.

    Returns:
        int64 [num_positives, number].
    """
    drawn = generator.uniform([tf.size(row), number], 1, num_items + 1, tf.int64)
    # By search, since comparing every draw with every item of its row takes hundreds of MB for long rows.
    width = num_items + 1
    taken = tf.sort(tf.reshape(seen + width * tf.range(tf.shape(seen, tf.int64)[0])[:, None], [-1]))
    wanted = drawn + width * row[:, None]
    place = tf.searchsorted(taken, tf.reshape(wanted, [-1]))
    nearest = tf.gather(taken, tf.minimum(place, tf.size(taken) - 1))
    return tf.where(tf.reshape(nearest, tf.shape(wanted)) == wanted, tf.zeros_like(drawn), drawn)
