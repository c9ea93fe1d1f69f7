"""The transform graphs inside the servable: raw ids and raw user features in, indices and tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from contracts.config import Config, Feature
from contracts.layout import Transform
from contracts.names import PADDING_INDEX, EventColumn, Request
from trainer.catalogue import Catalogue

ITEM_INDEX = "item_index"
USER_INDEX = "user_index"


def user_feature_configs(config: Config) -> tuple[Feature, ...]:
    """The user features that a request may carry."""
    return config.data.user_features.features if config.data.user_features else ()


def raw_dtype(feature: Feature) -> tf.DType:
    """The dtype of a feature in a request."""
    return tf.float32 if feature.kind == "numeric" else tf.string


class ItemLookup(tf.Module):
    """item_id -> item_index, by the transform graph's own vocabulary."""

    def __init__(self, transform: Transform):
        super().__init__(name="item_lookup")
        self._graph = tft.TFTransformOutput(str(transform.item_graph)).transform_features_layer()

    def __call__(self, item_ids: tf.Tensor) -> tf.Tensor:
        """String, any shape -> int64, same shape; 0 for "" and for unknown ids."""
        flat = tf.reshape(item_ids, [-1])
        index = tf.reshape(self._graph({EventColumn.ITEM_ID: flat})[ITEM_INDEX], tf.shape(item_ids))
        return tf.where(item_ids == "", tf.constant(PADDING_INDEX, tf.int64), tf.cast(index, tf.int64))


class UserFeatures(tf.Module):
    """user_id and raw features -> transformed features.

    A feature that the request leaves out ("" or NaN) is the stored one of user_id; of an unknown
    user, it is missing (zeros).
    """

    def __init__(self, config: Config, transform: Transform, catalogue: Catalogue):
        super().__init__(name="user_features")
        self.configs = user_feature_configs(config)
        self._graph = tft.TFTransformOutput(str(transform.user_graph)).transform_features_layer()
        self._stored = {
            feature.name: tf.Variable(catalogue.user_features[feature.name], trainable=False, name=feature.name)
            for feature in self.configs
        }

    def __call__(self, user_id: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """String [batch_size] and name -> [batch_size] -> name -> [batch_size] or [batch_size, max_tokens]."""
        if not self.configs:
            return {}
        fed: dict[str, Any] = {Request.USER_ID: user_id, **raw}
        outputs = self._graph(fed)
        user_index = tf.where(user_id == "", tf.constant(PADDING_INDEX, tf.int64), outputs[USER_INDEX])
        return {
            feature.name: self._given_or_stored(raw[feature.name], outputs[feature.name], feature.name, user_index)
            for feature in self.configs
        }

    def _given_or_stored(self, raw: tf.Tensor, given: tf.Tensor, name: str, user_index: tf.Tensor) -> tf.Tensor:
        stored = tf.gather(self._stored[name], user_index)
        is_given = tf.math.is_finite(raw) if raw.dtype.is_floating else raw != ""
        is_given = tf.reshape(is_given, [-1] + [1] * (stored.shape.rank - 1))
        return tf.where(is_given, tf.cast(tf.reshape(given, tf.shape(stored)), stored.dtype), stored)
