"""The servable as one `tf.Module`: transform graphs, towers, an index per group, the merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from contracts.config import Config
from contracts.names import PADDING_INDEX, Request, Response, Signature
from serving.graph.controls import Controls
from serving.graph.exclusion import Exclusions
from serving.graph.exploration import Exploration, ExploredItems
from serving.graph.graph_inputs import merge_inputs, query_inputs, with_defaults
from serving.graph.history import context_marks, is_repeat, latest_context
from serving.graph.merge import LOG_PROBABILITY_FLOOR, is_by_score, is_dealt, plan_groups, select
from serving.graph.tables import table
from serving.graph.transform_graphs import RequestCodes, UserFeatures, VocabularyLookup
from serving.search.group_search import GroupResults
from serving.search.score_rounds import search_in_rounds
from serving.search.slots import items_by_slot, slots_by_item
from trainer.catalogue import Catalogue
from trainer.layers.request_features import REQUEST
from trainer.models.two_tower_model import TwoTowerModel
from trainer.towers.oov_buckets import bucket_index

_NUM_IDENTITIES = 2**60  # enough hashes that no two ids share one
_LARGEST_QUERY = 1e18
"""Limit on the absolute value of a dimension. Below it, no product with an item passed by `require_sound` overflows."""


class IndexSet(Protocol):
    """Finds the best items of every group."""

    group_sizes: np.ndarray

    def search(self, query_embeddings: tf.Tensor, offset: tf.Tensor, wanted: tf.Tensor) -> GroupResults:
        """See `ScannIndexSet.search`."""


class Retriever(tf.Module):
    """Raw request in, raw candidates out; see `contracts.names` for the signatures."""

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        model: TwoTowerModel,
        item_lookup: VocabularyLookup,
        user_features: UserFeatures,
        members: Sequence[np.ndarray],
        index_set: IndexSet,
        exploration: Exploration,
    ):
        """Takes a trained model and what was built from it.

        Args:
            config: the config that the model was trained with.
            catalogue: of all items.
            model: the trained one.
            item_lookup: item_id -> item_index.
            user_features: what the model knows about a user besides the history.
            members: for each group, int32 [size], its items by item_index, in slot order.
            index_set: of all items.
            exploration: of the cold ones.
        """
        super().__init__(name="retriever")
        self._serving = config.serving
        self._intent_in_score = config.intent_in_score
        self._tower_length = config.windows.length
        self._drops_repeats = config.windows.repeats == "drop"
        self._reads_context = config.data.feedback.has_context
        self._query_inputs = query_inputs(config)
        self._num_buckets = config.model.oov_buckets
        self._num_groups = catalogue.num_groups
        self._num_items = catalogue.num_items
        # Keras would trace and save every layer's own functions; the variables are all a graph needs.
        self._embed_queries = model.query_embeddings
        self._embed_items = model.candidate_embeddings
        self._model_variables = list(model.variables)
        self._item_lookup = item_lookup
        self._user_features = user_features
        self._request_codes = RequestCodes(config.data.request_features)
        self._index_set = index_set
        self._exploration = exploration
        self._slot_of_item = table(slots_by_item(members, catalogue.num_items), tf.int32, "slot_of_item")
        self._group_of_item = table(catalogue.group_id, tf.int32, "group_of_item")
        items, ids = items_by_slot(members), np.concatenate([np.array([""], object), catalogue.item_ids])
        self._id_of_slot = table(ids[items], tf.string, "id_of_slot")
        self._group_of_slot = table(catalogue.group_id[items], tf.int32, "group_of_slot")

    def signatures(self) -> dict[str, Any]:
        """Functions to save. Every input of the first two has a default, baked into the signature."""
        inputs = [*self._query_inputs, *merge_inputs(self._num_groups)]
        return {
            Signature.SERVING_DEFAULT: with_defaults(self.retrieve, inputs),
            Signature.QUERY_EMBEDDING: with_defaults(self.embed_query, self._query_inputs),
            Signature.CANDIDATE_EMBEDDING: tf.function(
                self.embed_candidates,
                input_signature=[tf.TensorSpec([None], tf.string, Request.ITEM_IDS)],
                autograph=False,
            ),
        }

    def retrieve(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """serving_default: inputs by name -> outputs by name."""
        history = self._item_lookup(request[Request.HISTORY])
        queries, log_intent = self._embed(history, request)
        controls = Controls.of(request, self._serving, self._num_items, self._exploration.share)
        offset = controls.log_boost + log_intent if self._intent_in_score else controls.log_boost
        excluded_ids = self._item_lookup(request[Request.EXCLUDE_ITEM_IDS])
        had = tf.where(context_marks(request), tf.zeros_like(history), history) if self._reads_context else history
        excluded = tf.gather(self._slot_of_item, tf.concat([had, excluded_ids], 1))
        exclusions = Exclusions.of(excluded, self._num_items)
        explored = self._exploration.choose(queries, offset, controls.num_exploration, exclusions)
        scores, slots = self._merged(queries, log_intent, offset, controls, explored)
        return {
            Response.ITEM_IDS: tf.gather(self._id_of_slot, slots),
            Response.SCORES: scores,
            Response.GROUP_IDS: tf.gather(self._group_of_slot, slots),
        }

    def _merged(
        self,
        queries: tf.Tensor,
        log_intent: tf.Tensor,
        offset: tf.Tensor,
        controls: Controls,
        explored: ExploredItems,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Scores and slots [batch_size, max M]; the groups fill the places that exploration leaves."""
        exclusions = explored.exclusions
        excluded = exclusions.count_by_group(self._group_of_slot, self._num_groups)
        num_merged = controls.num_candidates - tf.reduce_sum(tf.cast(tf.math.is_finite(explored.scores), tf.int32), 1)
        log_weight = controls.alpha[:, None] * log_intent + controls.log_boost
        preference = log_intent + controls.log_boost
        available = self._index_set.group_sizes - excluded
        plan = plan_groups(controls.merge, num_merged, controls.max_groups, log_weight, preference, available)
        # An index knows nothing of exclusions: excluded items may come first, so it is asked for that many more.
        wanted = tf.where(plan.budgets > 0, plan.budgets + excluded, 0)

        def is_allowed(found: GroupResults) -> tf.Tensor:
            return tf.math.is_finite(found.scores) & ~exclusions.contains(found.slots)

        search, by_score = self._index_set.search, is_by_score(controls.merge)
        found = search_in_rounds(search, is_allowed, queries, offset, wanted, excluded, by_score, num_merged)
        scores, columns = select(found, controls.merge, plan, num_merged)
        slots = tf.where(tf.math.is_finite(scores), tf.gather(found.slots, columns, batch_dims=1), 0)
        return tf.cond(
            tf.shape(explored.scores)[1] > 0,
            lambda: _with_explored(scores, slots, explored, controls),
            lambda: (scores, slots),
        )

    def embed_query(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """query_embedding: inputs by name -> outputs by name."""
        queries, log_intent = self._embed(self._item_lookup(request[Request.HISTORY]), request)
        return {Response.EMBEDDINGS: queries, Response.INTENT: tf.exp(log_intent)}

    def embed_candidates(self, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """candidate_embedding: string [N]; an unknown id has a vector of zeros and group -1."""
        item_index = self._item_lookup(item_ids)
        embeddings = self._embed_items(item_index)
        return {
            Response.EMBEDDINGS: tf.where((item_index != PADDING_INDEX)[:, None], embeddings, 0.0),
            Response.GROUP_IDS: tf.gather(self._group_of_item, item_index),
        }

    def _embed(self, history: tf.Tensor, request: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """float32 [batch_size, num_groups, dim] and floored log p(group | user) [batch_size, num_groups].

        Args:
            history: int64 [batch_size, length], item_index, oldest first, 0 = padding or unknown, anywhere.
            request: all inputs by name.
        """
        identity = history
        if self._num_buckets:
            ids = request[Request.HISTORY]
            is_unknown = (history == PADDING_INDEX) & (ids != "")
            # Two ids that share a bucket are different items, and neither is a repeat of the other.
            identity = tf.where(is_unknown, bucket_index(ids, self._num_items, _NUM_IDENTITIES), history)
            history = tf.where(is_unknown, bucket_index(ids, self._num_items, self._num_buckets), history)
        is_kept = history != PADDING_INDEX
        is_context = context_marks(request) if self._reads_context else None
        if self._drops_repeats or is_context is not None:
            repeats = is_repeat(identity, is_context)
            # `windows.repeats=keep` keeps repeated positives; training never reads repeated context.
            is_kept &= ~(repeats if self._drops_repeats else repeats & is_context)
        if is_context is not None:
            history = tf.where(is_context, -history, history)
        known = tf.ragged.boolean_mask(history, is_kept)
        if is_context is not None:
            known = latest_context(known)
        recent = known[:, -self._tower_length :].to_tensor(PADDING_INDEX)
        raw = {feature.name: request[feature.name] for feature in self._user_features.configs}
        features = self._user_features(request[Request.USER_ID], raw)
        features[REQUEST] = self._request_codes(request)
        queries, log_intent = self._embed_queries(recent, features)
        # A feature far out of range can overflow a tower, or a product with an item, on which ScaNN ends the process;
        # with zeros, the intent and the boosts decide the answer.
        queries = tf.where(tf.abs(queries) < _LARGEST_QUERY, queries, 0.0)
        log_intent = tf.where(tf.math.is_nan(log_intent), -math.log(self._num_groups), log_intent)
        return queries, tf.maximum(log_intent, LOG_PROBABILITY_FLOOR)


def _with_explored(
    scores: tf.Tensor, slots: tf.Tensor, explored: ExploredItems, controls: Controls
) -> tuple[tf.Tensor, tf.Tensor]:
    """Joins the merged list and the explored items into one of M: by score or, in dealt lists, explored ones last."""
    all_scores = tf.concat([scores, explored.scores], 1)
    all_slots = tf.concat([slots, explored.slots], 1)
    as_they_stand = -tf.range(tf.shape(all_scores)[1], dtype=tf.int32)
    key = tf.where(is_dealt(controls.merge)[:, None], tf.cast(as_they_stand, tf.float32), all_scores)
    key = tf.where(tf.math.is_finite(all_scores), key, -math.inf)
    _, columns = tf.math.top_k(key, tf.reduce_max(controls.num_candidates))
    return tf.gather(all_scores, columns, batch_dims=1), tf.gather(all_slots, columns, batch_dims=1)
