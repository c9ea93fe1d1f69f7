"""The user tower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import tensorflow as tf
from typing_extensions import assert_never

from contracts.config import Config
from trainer.catalogue import Catalogue
from trainer.layers.comirec_encoder import ComiRecEncoder
from trainer.layers.concat_tokens import ConcatTokens
from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.layers.gru_encoder import GRUEncoder
from trainer.layers.mean_encoder import MeanEncoder
from trainer.layers.mind_encoder import MINDEncoder
from trainer.layers.multiply_tokens import MultiplyTokens
from trainer.layers.random_dropout import RandomDropout
from trainer.layers.request_features import REQUEST, RequestFeatures
from trainer.layers.sequence_encoder import SequenceEncoder
from trainer.layers.token_conditioning import TokenConditioning
from trainer.layers.transformer_encoder import TransformerEncoder


class QueryTower(tf.keras.layers.Layer):
    """Encodes a history, read through the item tower, into one query per position.

    A learned start token stands before the first event, so that position t has seen exactly t events, and a user
    without history has a trained query, too: the start token's. Tokens are scaled by sqrt(dim) before positions are
    added, as in "Attention is all you need" (arXiv 1706.03762).
    """

    def __init__(self, config: Config, catalogue: Catalogue, generator: tf.random.Generator):
        super().__init__(name="query_tower")
        model, dim = config.model, config.model.embedding_dim
        self._dim = dim
        self._start = self.add_weight(name="start", shape=[dim], initializer=_small())
        self._positions = self.add_weight(
            name="positions", shape=[config.windows.length + 1, dim], initializer=_small()
        )
        self._condition = _token_conditioning(config, catalogue.num_groups)
        self._dropout = RandomDropout(model.dropout, generator, name="input_dropout")
        with _precision(config):
            self.encoder = _sequence_encoder(config, generator)
        # Compiled or not, it is the same function. Serving does without: a stock TF Serving refuses a graph that asks
        # for XLA, and any other server would compile it anew for each request shape.
        is_compiled = config.training.jit_compile
        self._training_encoder = tf.function(self.encoder, jit_compile=True) if is_compiled else self.encoder
        specs = catalogue.feature_spec["user"] if model.use_user_features else []
        self._features = FeatureEmbedding(specs, dim, name="user_features") if specs else None
        told = config.data.request_features
        self._request = RequestFeatures(told, dim, generator) if told else None

    def call(
        self,
        history: tf.Tensor,
        user_features: Mapping[str, tf.Tensor],
        training: bool = False,
        group_id: tf.Tensor | None = None,
        num_events: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Queries after 0, 1, .. length events, or after `num_events`.

        Args:
            history: float32 [batch_size, length, dim], item embeddings, oldest first, left-aligned.
            user_features: name -> [batch_size] or [batch_size, width], transformed; `REQUEST` may be among them.
            group_id: int32 [batch_size], what a `TokenConditioning` conditions on; None: no group.
            num_events: int32 [batch_size]; if given, a row has only the query after this many of its first events.

        Returns:
            float32 [batch_size, length + 1, dim], or [batch_size, dim] after `num_events`; an `InterestEncoder`
            gives [num_interests, dim] in place of dim.
        """
        batch_size, length = tf.shape(history)[0], tf.shape(history)[1]
        start = tf.broadcast_to(self._start, [batch_size, 1, self._dim])
        tokens = tf.concat([start, history], axis=1)
        if self._condition is not None and group_id is not None:
            tokens = self._condition(tokens, group_id)
        tokens = tokens * self._dim**0.5 + self._positions[: length + 1]
        tokens = self._dropout(tokens, training=training)
        encode = self._training_encoder if training else self.encoder
        encoded = tf.cast(encode(tokens, training=training, position=num_events), tf.float32)
        if self._features is not None:
            features = self._dropout(self._features(user_features), training=training)
            encoded += tf.reshape(features, [batch_size, *[1] * (encoded.shape.rank - 2), self._dim])
        if self._request is not None and REQUEST in user_features:
            encoded = self._request(encoded, user_features[REQUEST], training=training)
        return encoded


@contextmanager
def _precision(config: Config) -> Iterator[None]:
    """Layers built inside compute in bfloat16 if the config says so; their weights stay float32."""
    policy = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16" if config.training.mixed_precision else "float32")
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)


def _sequence_encoder(config: Config, generator: tf.random.Generator) -> SequenceEncoder:
    model, dim = config.model, config.model.embedding_dim
    feed_forward_dim, max_length = model.feed_forward_multiple * dim, config.windows.length + 1
    match model.user_tower:
        case "transformer":
            return TransformerEncoder(
                model.num_layers, model.num_heads, max_length, dim, feed_forward_dim, model.dropout, generator
            )
        case "gru":
            return GRUEncoder(model.num_layers, dim, model.dropout, generator)
        case "mean":
            return MeanEncoder(model.num_layers, dim, feed_forward_dim, model.dropout, generator)
        case "mind":
            return MINDEncoder(model.num_interests, max_length, dim, feed_forward_dim, model.dropout, generator)
        case "comirec":
            return ComiRecEncoder(model.num_interests, dim, model.dropout, generator)
        case "user_id":
            raise ValueError("model.user_tower=user_id reads no history: build it with `model_parts.query_tower`")
        case _:
            assert_never(model.user_tower)


def _token_conditioning(config: Config, num_groups: int) -> TokenConditioning | None:
    dim = config.model.embedding_dim
    match config.model.conditioning:
        case "concat_tokens":
            return ConcatTokens(num_groups, dim)
        case "multiply_tokens":
            return MultiplyTokens(num_groups, dim)
        case "mmoe" | "concat" | "multiply" | "none":
            return None
        case _:
            assert_never(config.model.conditioning)


def _small() -> tf.keras.initializers.Initializer:
    # One instance per weight: an instance used twice gives both the same values.
    return tf.keras.initializers.TruncatedNormal(stddev=0.02)
