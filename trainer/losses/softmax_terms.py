"""The softmax terms of the objective: positives against their own group's candidates, and against all groups'."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from contracts.config import LossConfig
from trainer.input.training_windows import WindowBatch
from trainer.layers.group_blocks import GroupBlocks
from trainer.layers.index_ops import repeat
from trainer.losses.log_partitions import (
    group_log_partitions,
    group_scores,
    log_add_exp,
    log_sum_exp,
    log_sum_exp_of_products,
    reweighted,
    shared_log_partitions,
)
from trainer.losses.negative_pools import LEFT_OUT, NegativePools, StepCandidates, global_correction, row_correction
from trainer.losses.window_items import WindowItems
from trainer.towers.candidate_tower import CandidateTower
from trainer.towers.user_vectors import UserVectors


class Softmaxes(NamedTuple):
    """The softmaxes of each positive, float32 [num_positives].

    Attributes:
        in_group: -log softmax among its own group's candidates, by its own group's vector.
        overall: -log softmax among the candidates of all groups; None without the global term.
        log_partition: log Z of its own group's candidates, by its own group's vector.
        center: the same by the shared vector; None if the shared vector does not rank all groups.
    """

    in_group: tf.Tensor
    overall: tf.Tensor | None
    log_partition: tf.Tensor
    center: tf.Tensor | None


class _Step(NamedTuple):
    """The inputs of a step's softmaxes.

    Attributes:
        candidates: what positives are compared with; `embeddings`, float32 [num_candidates, dim], are theirs.
        own_items: see `NegativePools.own_items`.
        windows: items of the windows, including the positives, and those that their users took before.
        place: int64 [num_positives, 2], window and position of each positive.
        group: int32 [num_positives], the positives' groups.
        positive: float32 [num_positives, dim], the positives' embeddings.
    """

    candidates: StepCandidates
    embeddings: tf.Tensor
    own_items: tf.Tensor | None
    windows: WindowItems
    place: tf.Tensor
    group: tf.Tensor
    positive: tf.Tensor


class SoftmaxTerms:
    """Scores positives and a step's candidates.

    Candidates are the whole catalogue, or draws. Draws stand in for all items except those of the positive's window,
    itself included, and those that its user took before the window, with which it is compared one by one
    (`WindowItems`). An item that the user took before a positive counts `seen_weight` times.
    """

    def __init__(
        self,
        pools: NegativePools,
        candidate_tower: CandidateTower,
        group_id: tf.Tensor,
        loss: LossConfig,
        target_level: int,
        seen_weight: float,
    ):
        """`group_id`: int32 [num_items + 1 + num_buckets], -1 for padding and for buckets."""
        self._pools, self._tower, self._use_global = pools, candidate_tower, loss.global_weight > 0
        self._group_id, self._target_level, self._seen_weight = group_id, target_level, seen_weight
        self._num_groups = pools.num_groups
        class_of_group, place_in_class = np.zeros([2, pools.num_groups], np.int32)
        for number, groups in enumerate(pools.width_classes):
            class_of_group[groups], place_in_class[groups] = number, np.arange(len(groups))
        self._class_of_group, self._place_in_class = tf.constant(class_of_group), tf.constant(place_in_class)
        # With one group, its vector ranks all items.
        self._shared_ranks_all = self._use_global and loss.global_by == "shared" and pools.num_groups > 1

    def __call__(
        self,
        batch: WindowBatch,
        items: tf.Tensor,
        place: tf.Tensor,
        target: tf.Tensor,
        vectors: UserVectors,
        generator: tf.random.Generator,
    ) -> Softmaxes:
        """The softmaxes of the positives `target` at `place`, int64 [num_positives, 2].

        `items`: float32 [num_windows, length, dim], embeddings of the windows' items.
        """
        candidates = self._pools(batch.in_group_negatives, batch.easy_negatives, target, generator)
        every_item = tf.concat([batch.item_index, batch.earlier_items], 1)
        own_items = self._pools.own_items(candidates, every_item)
        embeddings = self._tower(candidates.item_index)
        windows = WindowItems.of(
            batch.item_index,
            batch.earlier_items,
            batch.feedback_level >= self._target_level,
            tf.concat([items, self._embedded(batch.earlier_items)], 1),
            tf.gather(self._group_id, every_item),
        )
        group, positive = tf.gather_nd(windows.own_group, place), tf.gather_nd(items, place)
        step = _Step(candidates, embeddings, own_items, windows, place, group, positive)
        if self._shared_ranks_all:
            return self._with_shared(step, vectors)
        if self._use_global and self._pools.exact:
            return self._by_every_group(step, vectors)
        return self._by_own_group(step, vectors)

    def _with_shared(self, step: _Step, vectors: UserVectors) -> Softmaxes:
        """The shared vector decides between groups, the vector of the positive's own group within that group.

        No other group's vector is computed. If the two vectors agree on the group's partition, exp <e_{u,g}, v>
        is p(g | u) by the shared vector times p(item | g, u) by the group's, up to a constant per user.
        """
        shared, positive, sizes = vectors.shared, step.positive, step.candidates.global_sizes
        logit = tf.reduce_sum(shared * positive, axis=-1)
        # The same for the positives that have a vector made for their group; `at` is their window and position.
        place, conditioned = vectors.conditioned(step.group)
        conditioned_logit = tf.reduce_sum(conditioned * tf.gather_nd(positive, place), axis=-1)
        at, group = tf.gather_nd(step.place, place), tf.gather_nd(step.group, place)
        if self._pools.exact:
            by_group = shared_log_partitions(shared, step.embeddings, sizes)
            center, everything = tf.gather(by_group, step.group, batch_dims=1), log_sum_exp(by_group)
            seen_of_own, seen = step.windows.seen_log_partitions(step.windows.scores(shared, step.place), step.place)
            center = reweighted(center, seen_of_own, self._seen_weight)
            everything = reweighted(everything, seen, self._seen_weight)
            seen_of_own, _ = step.windows.seen_log_partitions(step.windows.scores(conditioned, at), at)
            partition = self._own_partition(step, at[:, 0], group, conditioned)
            partition = reweighted(partition, seen_of_own, self._seen_weight)
        else:
            # One layout in blocks for both vectors, since the group's draws are the same.
            both = (step.place[:, 0], at[:, 0]), (step.group, group), (shared, conditioned)
            rows = self._own_partition(step, *[tf.concat(of_both, 0) for of_both in both])
            own, others = self._of_windows(step, step.windows.scores(shared, step.place), step.place)
            center = log_add_exp(own, rows[: tf.size(logit)])
            own, _ = self._of_windows(step, step.windows.scores(conditioned, at), at)
            partition = log_add_exp(own, rows[tf.size(logit) :])
            number = tf.shape(step.embeddings)[0]
            _, draws = tf.split(step.embeddings, [step.candidates.global_from, number - step.candidates.global_from])
            of_draws = log_sum_exp_of_products(shared, draws, self._correction_of_others(step))
            everything = log_add_exp(log_add_exp(center, others), of_draws)
        return Softmaxes(
            tf.tensor_scatter_nd_update(center - logit, place, partition - conditioned_logit),
            everything - logit,
            tf.tensor_scatter_nd_update(tf.stop_gradient(center), place, partition),
            center,
        )

    def _by_every_group(self, step: _Step, vectors: UserVectors) -> Softmaxes:
        """Scores each item of the catalogue by its own group's vector, for which all groups' vectors are computed."""
        heads = vectors.all_groups()
        logit = tf.reduce_sum(tf.gather(heads, step.group, batch_dims=1) * step.positive, axis=-1)
        by_group = group_log_partitions(heads, step.embeddings, step.candidates.global_sizes)
        scores = step.windows.scores_by_group(heads, step.place)
        seen_of_own, seen = step.windows.seen_log_partitions(scores, step.place)
        own = reweighted(tf.gather(by_group, step.group, batch_dims=1), seen_of_own, self._seen_weight)
        everything = reweighted(log_sum_exp(by_group), seen, self._seen_weight)
        return Softmaxes(own - logit, everything - logit, own, None)

    def _by_own_group(self, step: _Step, vectors: UserVectors) -> Softmaxes:
        """Scores a positive's own group by that group's vector; a global term over draws uses the others', too."""
        candidates = step.candidates
        queries = vectors.own_group(step.group)
        logit = tf.reduce_sum(queries * step.positive, axis=-1)
        own = self._own_partition(step, step.place[:, 0], step.group, queries)
        scores = step.windows.scores(queries, step.place)
        if self._pools.exact:
            own = reweighted(own, step.windows.seen_log_partitions(scores, step.place)[0], self._seen_weight)
        else:
            own = log_add_exp(self._of_windows(step, scores, step.place)[0], own)
        if self._pools.exact or not self._use_global or self._num_groups == 1:
            # With one group, its row holds all candidates.
            return Softmaxes(own - logit, own - logit if self._use_global else None, own, None)
        heads = vectors.all_groups()
        scores = group_scores(heads, step.embeddings[candidates.global_from :], candidates.global_sizes)
        _, others = self._of_windows(step, step.windows.scores_by_group(heads, step.place), step.place)
        of_draws = log_sum_exp(scores + self._correction_of_others(step))
        everything = log_add_exp(log_add_exp(own, others), of_draws)
        return Softmaxes(own - logit, everything - logit, own, None)

    def _embedded(self, items: tf.Tensor) -> tf.Tensor:
        """The tower's vectors of int64 [...], each item's computed once: users of dense logs share many items."""
        distinct, at = tf.unique(tf.reshape(items, [-1]))
        return tf.gather(self._tower(distinct), tf.reshape(at, tf.shape(items)))

    def _of_windows(self, step: _Step, scores: tf.Tensor, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return step.windows.log_partitions(scores, place, self._seen_weight)

    def _correction_of_others(self, step: _Step) -> tf.Tensor:
        """The correction of scores of draws from all groups but the own one, float32 [num_positives, num_shared]."""
        group_of_candidate = repeat(tf.range(self._num_groups), step.candidates.global_sizes)
        is_own = tf.range(self._num_groups)[:, None] == group_of_candidate
        # Computed once for each pair of a window and a group of its positives, of which there are few if groups are.
        pair, place = tf.unique(step.place[:, 0] * self._num_groups + tf.cast(step.group, tf.int64))
        of_group = tf.gather(tf.cast(is_own, tf.float32) * LEFT_OUT, pair % self._num_groups)
        of_pair = of_group + global_correction(step.candidates, step.own_items, pair // self._num_groups)
        return tf.gather(of_pair, place)

    def _own_partition(self, step: _Step, window: tf.Tensor, group: tf.Tensor, queries: tf.Tensor) -> tf.Tensor:
        """log-partition of each query's row of candidates, float32 [num_queries].

        Args:
            window, group, queries: int64 [num_queries], int32 [num_queries] and float32 [num_queries, dim].
        """
        classes = self._pools.width_classes
        if len(classes) == 1:
            return _partition_in_blocks(step, step.candidates, self._num_groups, window, group, queries)
        of_class = tf.gather(self._class_of_group, group)
        place_in_class = tf.gather(self._place_in_class, group)
        rows = (tf.dynamic_partition(each, of_class, len(classes)) for each in (window, place_in_class, queries))
        found = [
            _partition_in_blocks(step, step.candidates.rows_of(groups), len(groups), *of_rows)
            for groups, *of_rows in zip(classes, *rows, strict=True)
        ]
        places = tf.dynamic_partition(tf.range(tf.size(group)), of_class, len(classes))
        return tf.dynamic_stitch(places, found)


def _partition_in_blocks(
    step: _Step, candidates: StepCandidates, num_groups: int, window: tf.Tensor, group: tf.Tensor, queries: tf.Tensor
) -> tf.Tensor:
    """log-partition of each query's row of `candidates`, laid out in blocks that share a group's candidates."""
    blocks = GroupBlocks.of(group, num_groups)
    members = tf.gather(step.embeddings, tf.gather(candidates.rows, blocks.group_id))
    correction = row_correction(candidates, step.own_items, tf.gather(window, blocks.row), blocks.group_id)
    return blocks.in_order(log_sum_exp_of_products(blocks.lay_out(queries), members, correction))
