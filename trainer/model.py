"""The two-tower model with one user vector per item group."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_recommenders as tfrs

from contracts.config import Config
from trainer.candidate_tower import CandidateTower
from trainer.catalogue import Catalogue
from trainer.group_blocks import GroupBlocks
from trainer.input_pipeline import WindowBatch
from trainer.layers.concat_conditioning import ConcatConditioning
from trainer.layers.group_conditioning import GroupConditioning
from trainer.layers.mmoe_conditioning import MMoEConditioning
from trainer.layers.multiply_conditioning import MultiplyConditioning
from trainer.layers.shared_conditioning import SharedConditioning
from trainer.losses import group_log_partitions, is_member, log_partition, weighted_mean, z_loss
from trainer.negative_pools import CandidateGrid, NegativePools, SharedCandidates
from trainer.query_tower import QueryTower


class TwoTowerModel(tfrs.Model):
    """Divide-and-conquer retrieval: s(u, i) = <e_{u,g(i)}, v_i> + log p(g(i) | u).

    The objective is a weighted sum of
    - in-group: -log softmax of the positive among its own group's candidates;
    - global: -log softmax of s(u, positive) among s(u, candidates of all groups), each candidate
      scored by its own group's vector. With one group this is the single-vector softmax;
    - intent: -log p(g(positive) | u);
    - z: the variance of the in-group log-partitions, which makes groups' scores comparable.
    """

    def __init__(self, config: Config, catalogue: Catalogue):
        super().__init__(name="two_tower_model")
        self.num_groups = catalogue.num_groups
        self.embedding_dim = config.model.embedding_dim
        self._loss_config = config.training.loss
        self._conditioning_dropout = config.model.conditioning_dropout
        self._group_id = tf.constant(catalogue.group_id)
        self._user_features = {
            spec["name"]: tf.constant(catalogue.user_features[spec["name"]])
            for spec in (catalogue.feature_spec["user"] if config.model.use_user_features else [])
        }
        # Dropout and pools draw from here; train() keeps its state in the checkpoint.
        self.generator = tf.random.Generator.from_seed(config.seed)
        self._pools = NegativePools(catalogue, config.training.loss)
        self._candidate_tower = CandidateTower(catalogue, config.model.embedding_dim, config.model.use_item_features)
        self._query_tower = QueryTower(config, catalogue, self.generator)
        self._conditioning = _conditioning(config, catalogue.num_groups, self.generator)
        self._intent_hidden = tf.keras.layers.Dense(self.embedding_dim, activation="gelu", name="intent_hidden")
        self._intent_logits = tf.keras.layers.Dense(self.num_groups, name="intent_logits")
        # One forward pass creates every weight, so that a new model can be saved or restored at once.
        self._embed(tf.zeros([1, 1], tf.int64), self.features_of_users(tf.zeros([1], tf.int64)))

    def get_config(self) -> dict[str, int]:
        """What Keras notes beside weights. A model is built again from config and catalogue, not from this."""
        return {"num_groups": self.num_groups, "embedding_dim": self.embedding_dim}

    def features_of_users(self, user_index: tf.Tensor) -> dict[str, tf.Tensor]:
        """The transformed features of users [batch_size]; unknown users (0) get zeros."""
        return {name: tf.gather(table, user_index) for name, table in self._user_features.items()}

    def query_embeddings(
        self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The user's vector for each group, and the log-probability of each group.

        Args:
            history_index: int64 [batch_size, length <= windows.length], oldest first, left-aligned,
                0 = padding. A row may be empty.
            user_features: name -> [batch_size] or [batch_size, max_tokens], transformed.

        Returns:
            float32 [batch_size, num_groups, dim] and float32 [batch_size, num_groups].
        """
        return self._embed(tf.cast(history_index, tf.int64), user_features)

    def candidate_embeddings(self, item_index: tf.Tensor) -> tf.Tensor:
        """int64 [num_items] -> float32 [num_items, dim]."""
        return self._candidate_tower(item_index)

    def gate_entropy(self, batch: WindowBatch) -> tf.Tensor | None:
        """Mean entropy (nats) of the experts' gates over a batch; None without a mixture of experts.

        0 is an expert per group; log(num_experts) is gates that do not choose.
        """
        target, queries = self._target_queries(batch, training=False)
        blocks = GroupBlocks.of(tf.gather(self._group_id, target), self.num_groups)
        gates = self._conditioning.gates(tf.gather(queries, blocks.row), blocks.group_id)
        if gates is None:
            return None
        return weighted_mean(-tf.reduce_sum(gates * tf.math.log(gates + 1e-9), axis=-1), blocks.weight)

    def compute_loss(self, inputs: WindowBatch, training: bool = False) -> tf.Tensor:
        """The objective: a scalar."""
        return self.loss_terms(inputs, training)["loss"]

    def loss_terms(self, batch: WindowBatch, training: bool) -> dict[str, tf.Tensor]:
        """The objective ("loss") and its unweighted terms, each a scalar."""
        weights = self._loss_config
        place = self._target_places(batch)
        target, queries = self._target_queries(batch, training)
        group = tf.gather(self._group_id, target)
        positive = self._candidate_tower(target)
        log_intent = self._log_intent(queries)
        own_intent = tf.gather(log_intent, group, batch_dims=1)
        grid, shared = self._pools(batch.in_group_negatives, batch.easy_negatives, self.generator)
        terms = {"intent": -tf.reduce_mean(own_intent)}
        keep = self._keep_conditioning(tf.shape(queries)[0], training)
        if weights.global_weight:
            heads = queries[:, None, :] + keep[:, None] * (
                self._conditioning.all_groups(queries, training=training) - queries[:, None, :]
            )
            by_group = group_log_partitions(
                heads,
                self._candidate_tower(shared.item_index),
                shared.group_sizes,
                shared.log_expected_count,
                self._masked_shared(batch, shared, place, target),
            )
        if weights.global_weight and self._pools.exact:
            positive_logit = tf.reduce_sum(tf.gather(heads, group, batch_dims=1) * positive, axis=-1)
            own = tf.gather(by_group, group, batch_dims=1)
        else:
            positive_logit, own = self._own_group(batch, grid, queries, keep, positive, target, group, training)
        terms["in_group"] = tf.reduce_mean(own - positive_logit)
        terms["z"] = z_loss(own, tf.ones_like(own))
        if weights.global_weight:
            is_own = tf.one_hot(group, self.num_groups, on_value=True, off_value=False)
            partition = tf.reduce_logsumexp(tf.where(is_own, own[:, None], by_group) + log_intent, axis=1)
            terms["global"] = tf.reduce_mean(partition - positive_logit - own_intent)
        terms["loss"] = (
            weights.in_group_weight * terms["in_group"]
            + weights.global_weight * terms.get("global", 0.0)
            + weights.intent_weight * terms["intent"]
            + weights.z_weight * terms["z"]
        )
        return terms

    def _keep_conditioning(self, num_positives: tf.Tensor, training: bool) -> tf.Tensor:
        """float32 [num_positives, 1]: 0 where a positive is trained on the shared vector (stochastic depth)."""
        if not training or self._conditioning_dropout == 0:
            return tf.ones([num_positives, 1])
        return tf.cast(self.generator.uniform([num_positives, 1]) >= self._conditioning_dropout, tf.float32)

    def _own_group(
        self,
        batch: WindowBatch,
        grid: CandidateGrid,
        queries: tf.Tensor,
        keep: tf.Tensor,
        positive: tf.Tensor,
        target: tf.Tensor,
        group: tf.Tensor,
        training: bool,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Logit of each positive and log-partition of its own group's row of the grid, both [num_positives].

        Positives are laid out in blocks that share a group, so that a positive computes its own
        group's gate only and a block shares its group's candidates.
        """
        blocks = GroupBlocks.of(group, self.num_groups)
        query = tf.gather(queries, blocks.row)
        own = self._conditioning.own_group(query, blocks.group_id, training=training)
        own = query + tf.gather(keep, blocks.row) * (own - query)
        logit = tf.reduce_sum(own * tf.gather(positive, blocks.row), axis=-1)
        candidates = self._candidate_tower(grid.item_index)
        rows = tf.gather(grid.item_index, blocks.group_id)[:, None, :]
        masked = (rows == 0) | (rows == tf.gather(target, blocks.row)[:, :, None])
        if not self._pools.exact:
            window = tf.gather(self._target_places(batch)[:, 0], blocks.row)
            of_user = is_member(batch.item_index, tf.reshape(grid.item_index, [-1]))
            of_user = tf.reshape(of_user, tf.concat([tf.shape(of_user)[:1], tf.shape(grid.item_index)], 0))
            block_group = tf.broadcast_to(tf.cast(blocks.group_id, tf.int64)[:, None], tf.shape(window))
            masked |= tf.gather_nd(of_user, tf.stack([window, block_group], axis=-1))
        partition = log_partition(
            logit,
            tf.matmul(own, tf.gather(candidates, blocks.group_id), transpose_b=True),
            tf.gather(grid.log_expected_count, blocks.group_id)[:, None, :],
            masked,
        )
        at = blocks.place_of_row
        return tf.gather(tf.reshape(logit, [-1]), at), tf.gather(tf.reshape(partition, [-1]), at)

    def _masked_shared(
        self, batch: WindowBatch, shared: SharedCandidates, place: tf.Tensor, target: tf.Tensor
    ) -> tf.Tensor:
        """bool [num_positives or 1, num_candidates]: of draws, the positive itself and the user's other items."""
        if self._pools.exact:
            return tf.zeros([1, tf.size(shared.item_index)], tf.bool)
        of_user = tf.gather(is_member(batch.item_index, shared.item_index), place[:, 0])
        return of_user | (shared.item_index == target[:, None])

    def _target_queries(self, batch: WindowBatch, training: bool) -> tuple[tf.Tensor, tf.Tensor]:
        """Positives int64 [num_positives] and the queries before them, float32 [num_positives, dim]."""
        encoded = self._query_tower(
            self._candidate_tower(batch.item_index[:, :-1]),
            self.features_of_users(batch.user_index),
            training=training,
        )
        place = self._target_places(batch)
        # Position t of the encoder has seen t events: it predicts event t, counted from 0. The last
        # event is a target only.
        return tf.gather_nd(batch.item_index, place), tf.gather_nd(encoded, place)

    def _target_places(self, batch: WindowBatch) -> tf.Tensor:
        """int64 [num_positives, 2]: (window, position) of the positives."""
        return tf.where(batch.is_target)

    def _log_intent(self, query: tf.Tensor) -> tf.Tensor:
        return tf.nn.log_softmax(self._intent_logits(self._intent_hidden(query)))

    def _embed(self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        encoded = self._query_tower(self._candidate_tower(history_index), user_features)
        length = tf.reduce_sum(tf.cast(history_index > 0, tf.int32), axis=1)
        query = tf.gather(encoded, length, batch_dims=1)
        return self._conditioning.all_groups(query), self._log_intent(query)


def _conditioning(config: Config, num_groups: int, generator: tf.random.Generator) -> GroupConditioning:
    model = config.model
    if model.conditioning == "none":
        return SharedConditioning(num_groups, model.embedding_dim, name="shared")
    if model.conditioning == "multiply":
        return MultiplyConditioning(num_groups, model.embedding_dim)
    if model.conditioning == "concat":
        return ConcatConditioning(num_groups, model.embedding_dim, model.expert_hidden_dim, model.dropout, generator)
    return MMoEConditioning(
        num_groups, model.embedding_dim, model.num_experts, model.expert_hidden_dim, model.dropout, generator
    )
