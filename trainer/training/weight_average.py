"""The running average of a model's weights, which is validated and shipped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import tensorflow as tf

SNAPSHOTS_PER_EPOCH = 4
"""Averaging at every step, as Keras's `use_ema` does, would read whole tables when a step touches only a few rows."""


class WeightAverage(tf.Module):
    """The exponential average of snapshots of the weights along training (Izmailov et al., arXiv 1803.05407).

    At a high learning rate, the last weights lie beside the optimum that they circle; their average lies nearer, and
    its validations differ less from one epoch to the next, so that a plateau really is one. Snapshots weigh alike
    until there are as many as the average is long.
    """

    def __init__(self, weights: Sequence[tf.Variable], epochs: float):
        """`epochs`: the average's length; 0: the last snapshot alone."""
        super().__init__()
        self._weights = list(weights)
        self._decay = 1 - 1 / max(1.0, epochs * SNAPSHOTS_PER_EPOCH)
        self._averages = [tf.Variable(weight, trainable=False) for weight in self._weights]
        self._snapshots = tf.Variable(0, dtype=tf.int64, trainable=False)

    def add(self) -> None:
        """Takes a snapshot of the weights into the average."""
        taken = int(self._snapshots.numpy())
        decay = min(self._decay, taken / (taken + 1))
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.assign(decay * average + (1 - decay) * weight)
        self._snapshots.assign_add(1)

    def restart(self) -> None:
        """Forgets all snapshots."""
        self._snapshots.assign(0)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block, the model's weights are the average; without snapshots, its own."""
        is_any = int(self._snapshots.numpy()) > 0
        if is_any:
            self._swap()
        try:
            yield
        finally:
            if is_any:
                self._swap()

    def _swap(self) -> None:
        for average, weight in zip(self._averages, self._weights, strict=True):
            weight_before = tf.identity(weight)
            weight.assign(average)
            average.assign(weight_before)
