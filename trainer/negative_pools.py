"""Candidates that a step's positives are compared with, laid out as one row a group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from contracts.config import LossConfig
from trainer.catalogue import Catalogue
from trainer.losses import is_member
from trainer.negative_samplers import negative_sampler

_NEVER = -1e9
"""log expected count of an item that cannot be drawn: finite, so that masked places stay free of NaN."""


class CandidateGrid(NamedTuple):
    """What a positive is compared with inside its own group.

    Attributes:
        item_index: int64 [num_groups, width]; 0 where a row is shorter than the widest.
        log_expected_count: float32 [num_groups, width], how often an item is expected in its row,
            log; 0 where a row holds every item of its group exactly once.
    """

    item_index: tf.Tensor
    log_expected_count: tf.Tensor


class SharedCandidates(NamedTuple):
    """What every positive of a step is compared with, sorted by group.

    Attributes:
        item_index: int64 [num_candidates].
        group_sizes: int32 [num_groups], candidates of each group.
        log_expected_count: float32 [num_candidates], as in `CandidateGrid`.
    """

    item_index: tf.Tensor
    group_sizes: tf.Tensor
    log_expected_count: tf.Tensor


class NegativePools:
    """Builds a step's candidates: the whole catalogue where it is small, drawn negatives where not.

    In-group draws come with the windows and follow q(i | g); easy draws follow q(i), and come with
    them too or from another `NegativeSampler`, which then has no in-group draws beside it.
    A positive of group g sees g's in-group draws and all easy draws. An item of g is then expected

        E[count_i] = n_g q_i / Q_g + n_easy q_i,    Q_g = sum of q over group g,

    times, n_g being the in-group draws kept for g and n_easy the easy draws kept; an item of another
    group n_easy q_i times. Weighing a draw by 1 / E[count_i] makes sums over draws unbiased
    estimates of sums over the catalogue (the balance heuristic of multiple importance sampling),
    whatever the mix of hard and easy. What is neglected: the windows' writer rejects a user's own
    items, which other users then see less of. The cost a positive depends neither on K nor on the
    size of the catalogue.
    """

    def __init__(self, catalogue: Catalogue, loss: LossConfig):
        self.num_groups = catalogue.num_groups
        self.exact = catalogue.num_items <= loss.exact_softmax_max_items
        hard_draws = catalogue.groups_match_windows and loss.negatives == "windows"
        self._in_group_pool = loss.in_group_pool if hard_draws else 0
        self._easy_pool = loss.easy_pool
        self._group_id = tf.constant(catalogue.group_id)
        self._sampler = negative_sampler(catalogue, loss)
        probability = self._sampler.probability
        mass = np.zeros(catalogue.num_groups)
        np.add.at(mass, catalogue.group_id[1:], probability[1:])
        self._log_probability = tf.constant(np.log(np.maximum(probability, 1e-30)), tf.float32)
        self._group_mass = tf.constant(np.maximum(mass, 1e-30), tf.float32)
        self._whole_catalogue = _whole_catalogue(catalogue) if self.exact else None

    def __call__(
        self,
        in_group_negatives: tf.Tensor,
        easy_negatives: tf.Tensor,
        targets: tf.Tensor,
        generator: tf.random.Generator,
    ) -> tuple[CandidateGrid, SharedCandidates]:
        """Pools int64 [num_in_group] and [num_easy] draws of a batch of windows with int64 [num_positives] targets."""
        if self._whole_catalogue is not None:
            return self._whole_catalogue
        hard, hard_group = self._in_group_draws(in_group_negatives, generator)
        easy = self._sampler.draw(easy_negatives, targets, self._easy_pool, generator)
        easy_group = tf.gather(self._group_id, easy)
        order = tf.argsort(easy_group, stable=True)
        easy, easy_group = tf.gather(easy, order), tf.gather(easy_group, order)
        num_easy = tf.cast(tf.size(easy), tf.float32)
        shared = SharedCandidates(
            easy,
            tf.math.bincount(easy_group, minlength=self.num_groups),
            tf.math.log(num_easy + 1e-30) + tf.gather(self._log_probability, easy),
        )
        item_index = _to_rows(tf.concat([hard, easy], 0), tf.concat([hard_group, easy_group], 0), self.num_groups)
        num_hard = tf.cast(tf.math.bincount(hard_group, minlength=self.num_groups), tf.float32)
        log_draws = tf.math.log(num_hard / self._group_mass + num_easy + 1e-30)
        log_count = log_draws[:, None] + tf.gather(self._log_probability, item_index)
        return CandidateGrid(item_index, tf.where(item_index > 0, log_count, _NEVER)), shared

    def masked(self, shared: SharedCandidates, items: tf.Tensor, window: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        """bool [num_positives or 1, num_candidates]: of draws, the positive itself and its window's other items.

        Args:
            items: int64 [num_windows, length].
            window, target: int64 [num_positives].
        """
        if self.exact:
            return tf.zeros([1, tf.size(shared.item_index)], tf.bool)
        of_user = tf.gather(is_member(items, shared.item_index), window)
        return of_user | (shared.item_index == target[:, None])

    def _in_group_draws(self, negatives: tf.Tensor, generator: tf.random.Generator) -> tuple[tf.Tensor, tf.Tensor]:
        """A random `in_group_pool` of each group's draws, and their groups."""
        if self._in_group_pool == 0:
            return negatives[:0], tf.zeros([0], tf.int32)
        negatives = tf.boolean_mask(negatives, negatives > 0)
        group = tf.gather(self._group_id, negatives)
        # By group, and at random within a group: one sort does both.
        order = tf.argsort(tf.cast(group, tf.float32) + generator.uniform(tf.shape(group)))
        negatives, group = tf.gather(negatives, order), tf.gather(group, order)
        kept = _rank_in_group(group, self.num_groups) < self._in_group_pool
        return negatives[kept], group[kept]


def _rank_in_group(sorted_group: tf.Tensor, num_groups: int) -> tf.Tensor:
    """Place of each element among those of its group; `sorted_group` is int32 [n], ascending."""
    first = tf.cumsum(tf.math.bincount(sorted_group, minlength=num_groups), exclusive=True)
    return tf.range(tf.size(sorted_group)) - tf.gather(first, sorted_group)


def _to_rows(items: tf.Tensor, group: tf.Tensor, num_groups: int) -> tf.Tensor:
    """[n] items and their groups -> [num_groups, width], padded with 0."""
    order = tf.argsort(group, stable=True)
    items, group = tf.gather(items, order), tf.gather(group, order)
    width = tf.maximum(tf.reduce_max(tf.math.bincount(group, minlength=num_groups)), 1)
    place = tf.stack([group, _rank_in_group(group, num_groups)], axis=1)
    return tf.scatter_nd(place, items, tf.stack([num_groups, width]))


def _whole_catalogue(catalogue: Catalogue) -> tuple[CandidateGrid, SharedCandidates]:
    """Every item once."""
    group = catalogue.group_id[1:]
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=catalogue.num_groups)
    rank = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = np.zeros((catalogue.num_groups, max(int(sizes.max()), 1)), np.int64)
    rows[group[order], rank] = order + 1
    grid = CandidateGrid(tf.constant(rows), tf.zeros(rows.shape))
    shared = SharedCandidates(tf.constant(order + 1), tf.constant(sizes, tf.int32), tf.zeros([len(order)]))
    return grid, shared
