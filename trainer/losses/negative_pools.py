"""Candidates that a step's positives are compared with."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from contracts.config import LossConfig
from contracts.names import PADDING_INDEX
from trainer.catalogue import Catalogue
from trainer.layers.index_ops import count, is_member
from trainer.losses.negative_samplers import CatalogueSampler, evenly_spread, negative_sampler
from trainer.losses.width_classes import width_classes

LEFT_OUT = -1e9
"""Added to the logit of a candidate that does not count; finite, so that a row without others stays free of NaN."""


class StepCandidates(NamedTuple):
    """The candidates that a step's positives are compared with: from their own group, and from all groups.

    Attributes:
        item_index: int64 [num_candidates], in-group draws, then draws from all groups, sorted by group (if there are
            none, padding that counts as group 0 and is left out); or the whole catalogue, sorted by group.
        rows: int32 [num_groups, width], places in `item_index` of the candidates that a group's positives are compared
            with inside their group; a row shorter than the widest is filled up with arbitrary places.
        row_correction: float32 [num_groups, width], -log of how often an item is expected in its row;
            0 if a row holds every item of its group exactly once, `LEFT_OUT` beyond a row's end.
        row_sizes: int32 [num_groups], the length of each row.
        global_from: where the candidates from all groups begin in `item_index`.
        global_sizes: int32 [num_groups], how many of them each group has.
        global_correction: float32 [num_global], like `row_correction`.
    """

    item_index: tf.Tensor
    rows: tf.Tensor
    row_correction: tf.Tensor
    row_sizes: tf.Tensor
    global_from: tf.Tensor
    global_sizes: tf.Tensor
    global_correction: tf.Tensor

    def rows_of(self, groups: np.ndarray) -> StepCandidates:
        """The candidates with the rows of `groups` alone, in that order, as wide as the widest of them."""
        sizes = tf.gather(self.row_sizes, groups)
        width = tf.maximum(tf.reduce_max(sizes), 1)
        rows, correction = (tf.gather(table[:, :width], groups) for table in (self.rows, self.row_correction))
        return self._replace(rows=rows, row_correction=correction, row_sizes=sizes)


class NegativePools:
    """Builds a step's candidates: the whole catalogue if it is small, else drawn negatives.

    There are three kinds of draws:
    - in-group draws come with the windows;
    - easy draws, from the whole catalogue, come with the windows, too, or from another `NegativeSampler`, in which case
      there are no in-group draws;
    - fresh draws are made at each step and join the easy ones: the windows' draws repeat in every epoch, so an item
      that chance left out of them would otherwise never be a negative.

    A step keeps an evenly spread part of the windows' draws. A positive of group g is compared with the in-group draws
    of g and with all easy draws, among which an item of g is expected

        E[count_i] = n_g h_i + n_easy e_i + n_fresh q_i

    times, where n_g is the number of in-group draws kept for g, n_easy that of easy draws kept and n_fresh that of
    fresh draws; an item of another group is expected n_easy e_i + n_fresh q_i times. Fresh draws follow the sampling
    probability q. The windows' writer draws by q, too, but gives no user their own items, so items that many took are
    rarer among its draws: h and e are `Catalogue.draw_shares`. Weighting a draw by 1 / E[count_i] makes sums over draws
    unbiased estimates of sums over the catalogue (the balance heuristic of multiple importance sampling), whatever the
    mix of hard and easy. How many embeddings a step reads and updates depends on neither K nor the catalogue's size.

    Attributes:
        exact: whether candidates are the whole catalogue.
        width_classes: classes of groups by the number of candidates that a step is expected to have from each.
    """

    def __init__(self, catalogue: Catalogue, loss: LossConfig):
        self.num_groups = catalogue.num_groups
        self.exact = loss.is_exact(catalogue.num_items)
        hard_draws = catalogue.groups_match_windows and loss.negatives == "windows"
        self._in_group_pool = loss.in_group_pool if hard_draws else 0
        self._easy_pool = loss.easy_pool
        self._group_id = tf.constant(np.maximum(catalogue.group_id, 0))
        self._sampler = negative_sampler(catalogue, loss)
        of_windows = loss.negatives == "windows"
        fresh = catalogue.sampling_probability if of_windows else self._sampler.probability
        mass = _sum_by_group(catalogue, fresh)
        self._fresh_pool, self._fresh_sampler = loss.fresh_pool, CatalogueSampler(fresh)
        in_group = fresh / np.maximum(mass, 1e-30)[catalogue.group_id]
        if hard_draws and catalogue.draw_shares is not None:
            in_group = catalogue.draw_shares[0]
        # Each item's expected share of the draws of each kind.
        shares = np.stack([in_group, self._sampler.probability, fresh], axis=1)
        self._shares = tf.constant(shares, tf.float32)
        self._whole_catalogue = _whole_catalogue(catalogue) if self.exact else None
        positives = _sum_by_group(catalogue, catalogue.train_count / max(catalogue.train_count.sum(), 1))
        if self.exact:
            width = _sum_by_group(catalogue, np.ones(len(catalogue.group_id)))
        else:
            width = self._in_group_pool * positives + (loss.easy_pool + loss.fresh_pool) * mass
        self.width_classes = width_classes(width, positives)

    def __call__(
        self,
        in_group_negatives: tf.Tensor,
        easy_negatives: tf.Tensor,
        targets: tf.Tensor,
        generator: tf.random.Generator,
    ) -> StepCandidates:
        """Pools int64 [num_in_group] and [num_easy] draws of a batch of windows with int64 [num_positives] targets."""
        if self._whole_catalogue is not None:
            return self._whole_catalogue
        hard = evenly_spread(in_group_negatives, self._in_group_pool, generator)
        easy = self._sampler.draw(easy_negatives, targets, self._easy_pool, generator)
        fresh = self._fresh_sampler.draw(easy_negatives, targets, self._fresh_pool, generator)
        num_easy, num_fresh = tf.cast(tf.size(easy), tf.float32), tf.cast(tf.size(fresh), tf.float32)
        easy = tf.concat([easy, fresh], 0)
        num_hard = tf.size(hard)
        # Users who know all items leave nothing to draw: a step then gathers padding, which is left out.
        easy = tf.pad(easy, [[0, tf.cast(tf.equal(tf.size(easy), 0), tf.int32)]])
        easy = tf.gather(easy, tf.argsort(tf.gather(self._group_id, easy), stable=True))
        item_index = tf.concat([hard, easy], 0)
        group = tf.gather(self._group_id, item_index)
        easy_sizes = count(group[num_hard:], self.num_groups)
        hard_sizes = count(group[:num_hard], self.num_groups)
        sizes = easy_sizes + hard_sizes
        rows, filled = _to_rows(group, sizes)
        in_group_share, easy_share, fresh_share = tf.unstack(tf.gather(self._shares, item_index), axis=1)
        of_all = num_easy * easy_share + num_fresh * fresh_share
        of_group = tf.cast(tf.gather(hard_sizes, group), tf.float32) * in_group_share + of_all
        is_item = item_index != PADDING_INDEX
        return StepCandidates(
            item_index,
            rows,
            tf.where(filled, tf.gather(_log_q_correction(of_group, is_item), rows), LEFT_OUT),
            sizes,
            num_hard,
            easy_sizes,
            _log_q_correction(of_all, is_item)[num_hard:],
        )

    def own_items(self, candidates: StepCandidates, items: tf.Tensor) -> tf.Tensor | None:
        """Which candidates are items of a window's user: bool [num_windows, num_candidates]; None if `exact`.

        They are no negatives for that window's positives, which are compared with all of its user's items anyway
        (`WindowItems`).

        Args:
            items: int64 [num_windows, num_items], each window's items and those its user took before; 0 = padding.
        """
        return None if self.exact else is_member(items, candidates.item_index)


def global_correction(candidates: StepCandidates, own_items: tf.Tensor, window: tf.Tensor) -> tf.Tensor:
    """The correction added to the logits of draws from all groups: float32 [num_positives, num_global].

    Args:
        own_items: see `NegativePools.own_items`.
        window: int64 [num_positives].
    """
    of_window = _left_out(own_items[:, candidates.global_from :]) + candidates.global_correction
    return tf.gather(of_window, window)


def row_correction(
    candidates: StepCandidates, own_items: tf.Tensor | None, window: tf.Tensor, group_id: tf.Tensor
) -> tf.Tensor:
    """The correction added to the logits of a group's row: float32 [num_blocks, block_size or 1, width].

    Args:
        own_items: see `NegativePools.own_items`.
        window: int64 [num_blocks, block_size].
        group_id: int32 [num_blocks], the group that a block is compared with.
    """
    if own_items is None:
        return tf.gather(candidates.row_correction, group_id)[:, None, :]
    # Computed once for each pair of a window and a group of its positives: of many groups, a window has few.
    num_groups = tf.shape(candidates.rows, tf.int64)[0]
    pairs = window * num_groups + tf.cast(group_id, tf.int64)[:, None]
    pair, place = tf.unique(tf.reshape(pairs, [-1]))
    group = pair % num_groups
    is_own = tf.gather(tf.gather(own_items, pair // num_groups), tf.gather(candidates.rows, group), batch_dims=1)
    of_pair = _left_out(is_own) + tf.gather(candidates.row_correction, group)
    return tf.gather(of_pair, tf.reshape(place, tf.shape(window)))


def _log_q_correction(expected: tf.Tensor, is_item: tf.Tensor) -> tf.Tensor:
    """-log of how often a candidate is `expected`, `LEFT_OUT` for padding; float32 [num_candidates]."""
    return tf.where(is_item, -tf.math.log(tf.maximum(expected, 1e-30)), LEFT_OUT)


def _left_out(which: tf.Tensor) -> tf.Tensor:
    return tf.cast(which, tf.float32) * LEFT_OUT


def _to_rows(group: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Places of the elements of each group, int32 [num_groups, width], and which of them are filled, bool.

    Args:
        group: int32 [n].
        sizes: int32 [num_groups], elements of each.
    """
    order = tf.argsort(group, stable=True)
    column = tf.range(tf.maximum(tf.reduce_max(sizes), 1))
    place = tf.cumsum(sizes, exclusive=True)[:, None] + column
    return tf.gather(order, tf.minimum(place, tf.size(order) - 1)), column < sizes[:, None]


def _sum_by_group(catalogue: Catalogue, values: np.ndarray) -> np.ndarray:
    """Sums values [num_items + 1] by group: float64 [num_groups]."""
    return np.bincount(catalogue.group_id[1:], weights=values[1:], minlength=catalogue.num_groups)


def _whole_catalogue(catalogue: Catalogue) -> StepCandidates:
    """Every item once."""
    group = catalogue.group_id[1:]
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=catalogue.num_groups)
    column = np.arange(max(int(sizes.max()), 1))
    rows = np.minimum((np.cumsum(sizes) - sizes)[:, None] + column, len(order) - 1)
    return StepCandidates(
        tf.constant(order + 1),
        tf.constant(rows, tf.int32),
        tf.constant(np.where(column < sizes[:, None], 0, LEFT_OUT), tf.float32),
        tf.constant(sizes, tf.int32),
        tf.constant(0),
        tf.constant(sizes, tf.int32),
        tf.zeros([len(order)]),
    )
