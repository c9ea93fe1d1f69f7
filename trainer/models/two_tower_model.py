"""The two-tower model with one user vector per item group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs

from contracts.config import Config
from contracts.names import PADDING_INDEX
from trainer.catalogue import Catalogue
from trainer.input.training_windows import WindowBatch
from trainer.layers.context_mark import ContextMark
from trainer.layers.request_features import REQUEST
from trainer.losses.binary_loss import binary_loss, gbce_exponent
from trainer.losses.choice_loss import choice_loss
from trainer.losses.hierarchy_loss import PADDING_LEVEL, RANDOM_LEVEL, hierarchy_loss, highest_levels
from trainer.losses.log_partitions import log_sum_exp, z_loss
from trainer.losses.negative_pools import NegativePools
from trainer.losses.negative_samplers import uniform_unseen
from trainer.losses.seen_weight import seen_weight
from trainer.losses.softmax_terms import SoftmaxTerms
from trainer.models.model_parts import conditioning, oov_buckets, query_tower, random_generator
from trainer.replicas import mean_over_replicas
from trainer.towers.candidate_tower import CandidateTower, FixedCandidates
from trainer.towers.user_id_tower import USER_INDEX, UserIdTower
from trainer.towers.user_vectors import ConditionedVectors, UserVectors

_ITEMS_AT_ONCE = 16_384


def num_events(history_index: tf.Tensor) -> tf.Tensor:
    """int64 [batch_size, length], 0 = padding -> int32 [batch_size]."""
    return tf.reduce_sum(tf.cast(history_index != PADDING_INDEX, tf.int32), axis=1)


class TwoTowerModel(tfrs.Model):
    """Divide-and-conquer retrieval: s(u, i) = <e_{u,g(i)}, v_i>, each item scored by its own group's vector.

    The objective is a weighted sum of the terms below. Candidates are the whole catalogue or, if it is large, the items
    of the positive's own window, those that its user took before the window, and draws (`SoftmaxTerms`).
    - in-group: -log softmax of the positive among its own group's candidates.
    - global: -log softmax of the positive among the candidates of all groups. By default all are scored by the shared
      vector h_u, which the groups' vectors are made from; `training.loss.global_by=group` scores each by its own
      group's vector, s(u, i), and computes every group's vector. With one group, global and in-group are the
      single-vector softmax.
    - intent: -log p(g(positive) | u), for merges by quota. Its head reads h_u without training it, except in a model
      without any term that compares groups: there the intent does train h_u, and log p(g(i) | u) is part of the score
      (`Config.intent_in_score`).
    - z: (log Z by the group's vector - log Z by h_u)^2, with Z the in-group partition, so that scores of different
      groups are comparable. Without a global term by h_u, it is the variance of the log-partitions; with one group,
      there is no such term.
    - choice, hierarchy, binary: see `choice_loss`, `hierarchy_loss`, `binary_loss`.
    """

    ranked_by: Literal["group", "best_vector"] = "group"
    """Which of a user's vectors scores an item: that of the item's group, or the one that gives the highest score."""

    def __init__(self, config: Config, catalogue: Catalogue):
        super().__init__(name="two_tower_model")
        self.num_groups = self.num_vectors = catalogue.num_groups
        self._num_items = catalogue.num_items
        model = config.model
        self.embedding_dim = model.embedding_dim
        self._loss_config = config.training.loss
        self.intent_in_score = config.intent_in_score
        self._conditioning_dropout = model.conditioning_dropout if model.conditioning != "none" else 0.0
        # A bucket of unknown ids has no group.
        self._group_id = tf.constant(np.append(catalogue.group_id, np.full(model.oov_buckets, -1, np.int32)))
        self._user_features = {
            spec["name"]: tf.constant(catalogue.user_features[spec["name"]])
            for spec in (catalogue.feature_spec["user"] if model.use_user_features else [])
        }
        # Dropout and pools draw from here; train() keeps its state in the checkpoint.
        self.generator = random_generator(config.seed)
        self._candidate_tower = CandidateTower(
            catalogue, model.embedding_dim, model.use_item_features, model.use_cooccurrence, model.oov_buckets
        )
        self._oov_buckets = oov_buckets(config, catalogue, self.generator)
        self._target_level = config.data.feedback.target_level_index
        self._context_mark = ContextMark(model.embedding_dim) if config.data.feedback.has_context else None
        loss = config.training.loss
        self._softmax = SoftmaxTerms(
            NegativePools(catalogue, loss),
            self._candidate_tower,
            self._group_id,
            loss,
            self._target_level,
            seen_weight(loss, catalogue),
        )
        self._query_tower = query_tower(config, catalogue, self.generator)
        self._conditioning = conditioning(config, catalogue.num_groups, self.generator)
        has_intent = self._loss_config.intent_weight > 0
        self._intent = tf.keras.layers.Dense(self.num_groups, name="intent_logits") if has_intent else None
        # One forward pass creates every weight, so that a new model can be saved or restored at once.
        self._embed(tf.zeros([1, 1], tf.int64), self.features_of_users(tf.zeros([1], tf.int64)))

    def features_of_users(self, user_index: tf.Tensor, request: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The transformed features of users [batch_size]; unknown users (0) get zeros.

        `request`: int64 codes of request features, [batch_size], or [batch_size, length] for each position of a window;
        None: no request features.
        """
        features = {name: tf.gather(table, user_index) for name, table in self._user_features.items()}
        if request is not None:
            features[REQUEST] = tf.convert_to_tensor(request)
        return features | ({USER_INDEX: user_index} if isinstance(self._query_tower, UserIdTower) else {})

    def query_embeddings(
        self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The user's vector for each group, and the log-probability of each group.

        Args:
            history_index: int64 [batch_size, length <= windows.length], oldest first, left-aligned, 0 = padding,
                `bucket_index` for an unknown id; negative = an event below the target level. A row may be empty.
            user_features: name -> [batch_size] or [batch_size, width], transformed; see `features_of_users`.

        Returns:
            float32 [batch_size, num_groups, dim] and float32 [batch_size, num_groups].
        """
        return self._embed(tf.cast(history_index, tf.int64), user_features)

    def get_config(self) -> dict[str, Any]:
        """Returns an empty dict: a model is built from a `Config` and a catalogue, and only its weights are saved.

        Keras calls this whenever weights are written or read. Its own method returns the same, with a warning each
        time.
        """
        return {}

    @property
    def passes_of_an_answer(self) -> int:
        """Number of rows that the encoder computes per row of a request; an answer's memory grows with it."""
        return 1

    def candidate_embeddings(self, item_index: tf.Tensor) -> tf.Tensor:
        """int64 [num_items] -> float32 [num_items, dim]."""
        return self._candidate_tower(item_index)

    def catalogue_embeddings(self) -> np.ndarray:
        """float32 [num_items + 1, dim], by item_index, row 0 being padding."""
        starts = range(0, self._num_items + 1, _ITEMS_AT_ONCE)
        chunks = [tf.range(start, min(start + _ITEMS_AT_ONCE, self._num_items + 1), dtype=tf.int64) for start in starts]
        return np.concatenate([self.candidate_embeddings(chunk).numpy() for chunk in chunks])

    def fix_candidates(self) -> None:
        """Replaces the item tower with a table of its vectors: no features to look up, and nothing to train.

        With `model.oov_buckets` the tower stays: a cold item then has another vector in a history than as a candidate.
        """
        if self._oov_buckets is None:
            fixed = FixedCandidates(self.catalogue_embeddings())
            del self._candidate_tower
            self._candidate_tower = fixed

    def compute_loss(self, inputs: WindowBatch, training: bool = False) -> tf.Tensor:
        """The objective, a scalar. `tfrs.Model` requires this method; Keras's `fit` would train by it."""
        return self.loss_terms(inputs, training)["loss"]

    def loss_terms(self, batch: WindowBatch, training: bool) -> dict[str, tf.Tensor]:
        """The objective ("loss") and its terms before weighting, each a scalar.

        With several replicas, each returns its windows' part; the parts sum to what one device computes for all
        windows.
        """
        weights = self._loss_config
        place = tf.where(batch.is_target)
        target = tf.gather_nd(batch.item_index, place)
        items = self._candidate_tower(batch.item_index)
        vectors = self._vectors(batch, items, place, training)
        group = tf.gather(self._group_id, target)
        terms = {}
        if self._intent is not None:
            logits = self._intent(vectors.shared if self.intent_in_score else tf.stop_gradient(vectors.shared))
            terms["intent"] = mean_over_replicas(log_sum_exp(logits) - tf.gather(logits, group, batch_dims=1))
        if weights.in_group_weight or weights.global_weight:
            softmaxes = self._softmax(batch, items, place, target, vectors, self.generator)
            terms["in_group"] = mean_over_replicas(softmaxes.in_group)
            if self.num_groups > 1:  # With one group, there is no other whose scores could differ in scale.
                terms["z"] = z_loss(softmaxes.log_partition, softmaxes.center)
            if softmaxes.overall is not None:
                terms["global"] = mean_over_replicas(softmaxes.overall)
        if weights.binary_weight or weights.hierarchy_weight or weights.choice_weight:
            heads = vectors.all_groups()
        if weights.binary_weight:
            terms["binary"] = self._binary_term(batch, place, target, heads)
        if weights.hierarchy_weight:
            terms["hierarchy"] = self._hierarchy_term(batch, place, target, heads)
        if weights.choice_weight:
            terms["choice"] = self._choice_term(batch, place, target, heads)
        # A term with weight 0 is reported but left out of the sum, so that it costs no gradient.
        weight = {name: getattr(weights, f"{name}_weight") for name in terms}
        return {"loss": tf.add_n([weight[name] * term for name, term in terms.items() if weight[name]]), **terms}

    def _binary_term(self, batch: WindowBatch, place: tf.Tensor, target: tf.Tensor, heads: tf.Tensor) -> tf.Tensor:
        """Binary cross-entropy of <e, v> for each positive and uniform negatives drawn for it alone."""
        number = self._loss_config.binary_negatives
        negative = self._unseen(batch, place, number)
        logits = self._scores_of(tf.concat([target[:, None], negative], axis=1), heads)
        exponent = gbce_exponent(number, self._num_items, self._loss_config.binary_calibration)
        return mean_over_replicas(binary_loss(logits[:, 0], logits[:, 1:], negative == PADDING_INDEX, exponent))

    def _unseen(self, batch: WindowBatch, place: tf.Tensor, number: int) -> tf.Tensor:
        """int64 [num_positives, number], uniform draws that are in neither the window nor its user's earlier items."""
        seen = tf.concat([batch.item_index, batch.earlier_items], 1)
        return uniform_unseen(self.generator, self._num_items, seen, place[:, 0], number)

    def _hierarchy_term(self, batch: WindowBatch, place: tf.Tensor, target: tf.Tensor, heads: tf.Tensor) -> tf.Tensor:
        """Ranks each positive and its exposed negatives above items of lower levels: the window's, exposed, random."""
        window, exposed = place[:, 0], tf.gather_nd(batch.exposed_negatives, place)
        others = tf.gather(batch.item_index, window)  # the target among them, never below itself
        drawn = self._unseen(batch, place, self._loss_config.hierarchy_random)
        item_level = highest_levels(batch.item_index, tf.cast(batch.feedback_level, tf.int32))
        levels = [
            tf.gather_nd(item_level, place)[:, None],
            tf.zeros(tf.shape(exposed), tf.int32),
            tf.gather(item_level, window),
            tf.fill(tf.shape(drawn), RANDOM_LEVEL),
        ]
        items = tf.concat([target[:, None], exposed, others, drawn], axis=1)
        level = tf.where(items != PADDING_INDEX, tf.concat(levels, axis=1), PADDING_LEVEL)
        num_anchors = 1 + tf.shape(exposed)[1]
        return hierarchy_loss(self._scores_of(items, heads), level, num_anchors, self._loss_config.hierarchy)

    def _scores_of(self, items: tf.Tensor, heads: tf.Tensor) -> tf.Tensor:
        """<e_{u,g(i)}, v_i> for each positive's own items, int64 [num_positives, n]; float32 of the same shape."""
        group = tf.maximum(tf.gather(self._group_id, items), 0)
        return tf.einsum("pnd,pnd->pn", tf.gather(heads, group, batch_dims=1), self._candidate_tower(items))

    def _choice_term(self, batch: WindowBatch, place: tf.Tensor, target: tf.Tensor, heads: tf.Tensor) -> tf.Tensor:
        """Each positive among its own exposed negatives, and among its own mined ones."""
        losses = []
        for of_targets in (batch.exposed_negatives, batch.mined_negatives):
            negative = tf.gather_nd(of_targets, place)
            logits = self._scores_of(tf.concat([target[:, None], negative], axis=1), heads)
            masked = (negative == PADDING_INDEX) | (negative == target[:, None])
            losses.append(choice_loss(logits[:, 0], logits[:, 1:], masked))
        return tf.add_n(losses)

    def _vectors(self, batch: WindowBatch, items: tf.Tensor, place: tf.Tensor, training: bool) -> UserVectors:
        """The users' vectors before the positives at `place`, int64 [num_positives, 2].

        `items`: float32 [batch_size, length, dim], candidate embeddings of the windows' items.
        """
        shared = self._queries_of(batch, items, place, training)
        kept = None
        if training and self._conditioning_dropout:
            kept = self.generator.uniform([tf.shape(shared)[0]]) >= self._conditioning_dropout
        return ConditionedVectors(shared, self._conditioning, kept, training)

    def _queries_of(self, batch: WindowBatch, items: tf.Tensor, place: tf.Tensor, training: bool) -> tf.Tensor:
        """float32 [num_positives, dim]; arguments as in `_vectors`."""
        users = self.features_of_users(batch.user_index, batch.request)
        encoded = self._query_tower(self._history_before(batch, items, training), users, training=training)
        # Position t of the encoder has seen t events: it predicts event t, counted from 0.
        return tf.gather_nd(encoded, place)

    def _history_before(self, batch: WindowBatch, items: tf.Tensor, training: bool) -> tf.Tensor:
        """`_history_tokens` of all events but the last, which is only a target; `items` as in `_vectors`."""
        events, level = batch.item_index[:, :-1], batch.feedback_level[:, :-1]
        if self._oov_buckets is not None:
            tokens = self._event_tokens(events, training)
        else:  # a history reads the items' candidate embeddings; the gradient of a slice takes ten times a split's
            tokens, _ = tf.split(items, [tf.shape(events)[1], 1], axis=1)
        return self._marked(tokens, level < self._target_level)  # marks padding, too, which no event sees

    def _history_tokens(self, history_index: tf.Tensor) -> tf.Tensor:
        """Embeddings of int64 [batch_size, length] events, float32 [..., dim]; negative events are context."""
        item_index = history_index if self._context_mark is None else tf.abs(history_index)
        return self._marked(self._event_tokens(item_index), history_index < 0)

    def _event_tokens(self, item_index: tf.Tensor, training: bool = False) -> tf.Tensor:
        rows = None if self._oov_buckets is None else self._oov_buckets.rows(item_index, training)
        return self._candidate_tower(item_index, rows)

    def _marked(self, tokens: tf.Tensor, is_context: tf.Tensor) -> tf.Tensor:
        return tokens if self._context_mark is None else self._context_mark(tokens, is_context)

    def _log_intent(self, query: tf.Tensor) -> tf.Tensor:
        if self._intent is None:
            return tf.fill([tf.shape(query)[0], self.num_groups], -math.log(self.num_groups))
        return tf.nn.log_softmax(self._intent(query))

    def _embed(self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        query, _ = self._last_query(history_index, user_features)
        return self._conditioning.all_groups(query), self._log_intent(query)

    def _last_query(
        self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The query after the whole history, [batch_size, dim], and the number of its events, int32 [batch_size]."""
        length = num_events(history_index)
        return self._query_tower(self._history_tokens(history_index), user_features, num_events=length), length
