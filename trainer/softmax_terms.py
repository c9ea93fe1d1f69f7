"""The softmax terms of the objective: positives against their own group's candidates, and against all groups'."""

from __future__ import annotations

import tensorflow as tf

from trainer.candidate_tower import CandidateTower
from trainer.group_blocks import GroupBlocks
from trainer.index_ops import repeat
from trainer.input_pipeline import WindowBatch
from trainer.losses import group_log_partitions, log_add_exp, log_sum_exp
from trainer.negative_pools import LEFT_OUT, Candidates, NegativePools, row_correction, shared_correction
from trainer.user_vectors import UserVectors


class SoftmaxTerms:
    """Scores positives and a step's candidates, each by its own group's vector."""

    def __init__(self, pools: NegativePools, candidate_tower: CandidateTower, use_global: bool):
        self._pools, self._tower, self._use_global = pools, candidate_tower, use_global
        self._num_groups = pools.num_groups

    def __call__(
        self,
        batch: WindowBatch,
        place: tf.Tensor,
        target: tf.Tensor,
        group: tf.Tensor,
        vectors: UserVectors,
        generator: tf.random.Generator,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        """Logits and log-partitions of the positives `target` of `group` at `place`, int64 [num_positives, 2].

        Returns:
            Each positive's logit, the log-partition of its own group and that of all groups (None without
            the global term), float32 [num_positives].
        """
        candidates = self._pools(batch.in_group_negatives, batch.easy_negatives, target, generator)
        own_items = self._pools.own_items(candidates, batch.item_index)
        embeddings, positive = self._tower(candidates.item_index), self._tower(target)
        if self._use_global and self._pools.exact:
            heads = vectors.all_groups()
            logit = tf.reduce_sum(tf.gather(heads, group, batch_dims=1) * positive, axis=-1)
            by_group = group_log_partitions(heads, embeddings, candidates.shared_sizes)
            return logit, tf.gather(by_group, group, batch_dims=1), log_sum_exp(by_group)
        queries = vectors.own_group(group)
        logit = tf.reduce_sum(queries * positive, axis=-1)
        own = self._own_partition(candidates, embeddings, own_items, place[:, 0], group, queries)
        # A whole group has the positive among it; of draws, its copies are left out.
        own = own if self._pools.exact else log_add_exp(logit, own)
        if not self._use_global or self._num_groups == 1:
            # Of one group, its row holds all that there is.
            return logit, own, own if self._use_global else None
        scores = vectors.scores(embeddings[candidates.shared_from :], candidates.shared_sizes)
        scores += shared_correction(candidates, own_items, place[:, 0])
        group_of_candidate = repeat(tf.range(self._num_groups), candidates.shared_sizes)
        others = tf.where(group_of_candidate == group[:, None], LEFT_OUT, scores)
        return logit, own, log_add_exp(own, log_sum_exp(others))

    def _own_partition(
        self,
        candidates: Candidates,
        embeddings: tf.Tensor,
        own_items: tf.Tensor | None,
        window: tf.Tensor,
        group: tf.Tensor,
        queries: tf.Tensor,
    ) -> tf.Tensor:
        """log-partition of each positive's row of candidates, float32 [num_positives].

        Positives are laid out in blocks that share a group's candidates.
        """
        blocks = GroupBlocks.of(group, self._num_groups)
        members = tf.gather(embeddings, tf.gather(candidates.rows, blocks.group_id))
        logits = tf.matmul(tf.gather(queries, blocks.row), members, transpose_b=True)
        logits += row_correction(candidates, own_items, tf.gather(window, blocks.row), blocks.group_id)
        return tf.gather(tf.reshape(log_sum_exp(logits), [-1]), blocks.place_of_row)
