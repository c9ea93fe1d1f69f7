"""The servable as one `tf.Module`: transform graphs, towers, an index per group, the merge."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import Parameter
from inspect import Signature as PythonSignature
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from contracts.config import Config
from contracts.names import PADDING_INDEX, Request, Response, Signature
from serving.exclusion import Exclusions
from serving.features import ItemLookup, UserFeatures, raw_dtype
from serving.index_set import Found
from serving.merge import LOG_PROBABILITY_FLOOR, group_budgets, select
from trainer.catalogue import Catalogue
from trainer.model import TwoTowerModel


class IndexSet(Protocol):
    """What finds the best items of every group."""

    group_sizes: np.ndarray

    def search(self, query_embeddings: tf.Tensor, num_neighbors: tf.Tensor) -> Found: ...


class Retriever(tf.Module):
    """Raw request in, raw candidates out; see `contracts.names` for the signatures."""

    def __init__(
        self,
        config: Config,
        catalogue: Catalogue,
        model: TwoTowerModel,
        item_lookup: ItemLookup,
        user_features: UserFeatures,
        index_set: IndexSet,
    ):
        super().__init__(name="retriever")
        self._serving = config.serving
        self._tower_length = config.windows.length
        self._num_groups = catalogue.num_groups
        self._num_items = catalogue.num_items
        # Keras would trace and save every layer's own functions; the variables are all a graph needs.
        self._embed_queries = model.query_embeddings
        self._embed_items = model.candidate_embeddings
        self._model_variables = list(model.variables)
        self._item_lookup = item_lookup
        self._user_features = user_features
        self._index_set = index_set
        ids = np.concatenate([np.array([""], object), catalogue.item_ids])
        self._item_ids = tf.Variable(tf.constant(ids, tf.string), trainable=False, name="item_ids")
        self._group_id = tf.Variable(catalogue.group_id, trainable=False, dtype=tf.int32, name="group_id")

    def signatures(self) -> dict[str, Any]:
        """Functions to save. Every input but the history has a default, baked into the signature."""
        optional = {
            Request.USER_ID: tf.TensorSpec([None], tf.string, Request.USER_ID),
            **{f.name: tf.TensorSpec([None], raw_dtype(f), f.name) for f in self._user_features.configs},
            Request.NUM_CANDIDATES: tf.TensorSpec([None], tf.int32, Request.NUM_CANDIDATES),
            Request.ALPHA: tf.TensorSpec([None], tf.float32, Request.ALPHA),
        }
        history = tf.TensorSpec([None, None], tf.string, Request.HISTORY)

        def candidate_embedding(item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
            return self.embed_candidates(item_ids)

        return {
            Signature.SERVING_DEFAULT: _with_defaults(self.retrieve, history, optional),
            Signature.QUERY_EMBEDDING: _with_defaults(self.embed_query, history, optional),
            Signature.CANDIDATE_EMBEDDING: tf.function(
                candidate_embedding, input_signature=[tf.TensorSpec([None], tf.string, Request.ITEM_IDS)]
            ),
        }

    def retrieve(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """serving_default: inputs by name -> outputs by name."""
        batch_size = tf.shape(request[Request.HISTORY])[0]
        request = _at_least_one_row(request)
        history = self._known_history(request)
        queries, log_intent = self._embed(history, request)
        num_candidates, alpha = self._controls(request)

        exclusions = Exclusions(history, self._num_items)
        excluded = exclusions.count_by_group(self._group_id, self._num_groups)
        available = self._index_set.group_sizes - excluded
        budgets = group_budgets(self._serving.merge, num_candidates, alpha, log_intent, available)
        fetched = tf.reduce_max(tf.where(budgets > 0, budgets + excluded, 0), axis=0)

        found = self._index_set.search(queries, fetched)
        scores = found.scores + alpha[:, None] * tf.gather(log_intent, found.column_group, axis=1)
        allowed = tf.math.is_finite(scores) & ~exclusions.contains(found.item_index)
        scores, columns = select(scores, found.column_group, allowed, budgets, num_candidates)

        present = tf.math.is_finite(scores)
        item_index = tf.where(present, tf.gather(found.item_index, columns, batch_dims=1), PADDING_INDEX)
        response = {
            Response.ITEM_IDS: tf.gather(self._item_ids, item_index),
            Response.SCORES: scores,
            Response.GROUP_IDS: tf.gather(self._group_id, item_index),
        }
        return {name: value[:batch_size] for name, value in response.items()}

    def embed_query(self, request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """query_embedding: inputs by name -> outputs by name."""
        batch_size = tf.shape(request[Request.HISTORY])[0]
        request = _at_least_one_row(request)
        queries, log_intent = self._embed(self._known_history(request), request)
        return {
            Response.EMBEDDINGS: queries[:batch_size],
            Response.INTENT: tf.exp(log_intent[:batch_size]),
        }

    def embed_candidates(self, item_ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """candidate_embedding: string [N]; an unknown id has a vector of zeros and group -1."""
        item_index = self._item_lookup(item_ids)
        embeddings = self._embed_items(item_index)
        return {
            Response.EMBEDDINGS: tf.where((item_index != PADDING_INDEX)[:, None], embeddings, 0.0),
            Response.GROUP_IDS: tf.gather(self._group_id, item_index),
        }

    def _known_history(self, request: dict[str, tf.Tensor]) -> tf.RaggedTensor:
        """int64 [batch_size, (known items)], oldest first."""
        item_index = self._item_lookup(request[Request.HISTORY])
        return tf.ragged.boolean_mask(item_index, item_index != PADDING_INDEX)

    def _embed(self, history: tf.RaggedTensor, request: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """float32 [batch_size, num_groups, dim] and floored log p(group | user) [batch_size, num_groups]."""
        raw = {feature.name: request[feature.name] for feature in self._user_features.configs}
        recent = history[:, -self._tower_length :].to_tensor(PADDING_INDEX)
        queries, log_intent = self._embed_queries(recent, self._user_features(request[Request.USER_ID], raw))
        return queries, tf.maximum(log_intent, LOG_PROBABILITY_FLOOR)

    def _controls(self, request: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """num_candidates and alpha per row, the config's where a row has none; M at most the catalogue."""
        wanted, alpha = request[Request.NUM_CANDIDATES], request[Request.ALPHA]
        wanted = tf.where(wanted > 0, wanted, self._serving.num_candidates)
        return (
            tf.minimum(wanted, self._num_items),
            tf.where(tf.math.is_finite(alpha), alpha, self._serving.alpha),
        )


def _with_defaults(
    body: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    history: tf.TensorSpec,
    optional: dict[str, tf.TensorSpec],
) -> Any:
    """A tf.function whose arguments are the request's inputs, all but the history with default tensors.

    TensorFlow writes default arguments that are tensors into the signature, which a session and
    TF Serving fill in. They are of shape [1] and apply to every row.
    """

    def function(*arguments: tf.Tensor) -> dict[str, tf.Tensor]:
        request = dict(zip([Request.HISTORY, *optional], arguments, strict=True))
        rows = tf.shape(request[Request.HISTORY])[:1]
        return body({k: v if k == Request.HISTORY else tf.broadcast_to(v, rows) for k, v in request.items()})

    parameters = [Parameter(Request.HISTORY, Parameter.POSITIONAL_OR_KEYWORD, annotation=history)]
    for name, spec in optional.items():
        default = tf.constant([_missing(name, spec.dtype)], spec.dtype)
        parameters.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=spec))
    function.__signature__ = PythonSignature(parameters)  # type: ignore[attr-defined]
    return tf.function(function, input_signature=[history, *optional.values()])


def _missing(name: str, dtype: tf.DType) -> str | int | float:
    """The value of an input that means "not given"."""
    if name == Request.NUM_CANDIDATES:
        return 0
    return "" if dtype == tf.string else math.nan


def _at_least_one_row(request: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """An empty batch becomes one row of padding: ScaNN's trees fail on an empty batch."""
    extra = tf.cast(tf.equal(tf.shape(request[Request.HISTORY])[0], 0), tf.int32)
    return {name: tf.pad(value, [[0, extra]] + [[0, 0]] * (value.shape.rank - 1)) for name, value in request.items()}
