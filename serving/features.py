"""The transform graphs inside the servable: raw ids and raw user features in, indices and tensors out.

A transform graph is a SavedModel, so TensorFlow alone loads it: TFT pins another TensorFlow than
ScaNN's ops, and is not needed where models are exported and served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from contracts.config import Config, Feature
from contracts.layout import Transform
from contracts.names import PADDING_INDEX, EventColumn, Request
from trainer.catalogue import Catalogue

ITEM_INDEX = "item_index"
USER_INDEX = "user_index"
_TRANSFORM_FN = "transform_fn"


def user_feature_configs(config: Config) -> tuple[Feature, ...]:
    """The user features that a request may carry."""
    return config.data.user_features.features if config.data.user_features else ()


def raw_dtype(feature: Feature) -> tf.DType:
    """The dtype of a feature in a request."""
    return tf.float32 if feature.kind == "numeric" else tf.string


class TransformGraph(tf.Module):
    """The function that Beam ran over a table, with its vocabularies, which are saved along as assets."""

    def __init__(self, path: Path):
        """Loads the graph that TFT wrote to `path`.

        Raises:
            ValueError: there is none.
        """
        super().__init__(name="transform_graph")
        saved_model = path / _TRANSFORM_FN
        if not (saved_model / "saved_model.pb").exists():
            raise ValueError(f"no transform graph at {path}: it must hold {_TRANSFORM_FN}; run the transform stage")
        self._loaded = tf.saved_model.load(str(saved_model))
        (self._inputs,), _ = self._loaded.transform_fn.structured_input_signature

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs [batch_size] by name -> outputs by name.

        An input that is left out is fed one missing value, so an output that is made of it has one
        row and no meaning: each output is made of the input of its name alone.
        """
        missing = {
            name: tf.constant([math.nan if spec.dtype.is_floating else ""], spec.dtype)
            for name, spec in self._inputs.items()
            if name not in raw
        }
        return self._loaded.transform_fn({**{name: raw[name] for name in self._inputs if name in raw}, **missing})


class ItemLookup(tf.Module):
    """item_id -> item_index, by the transform graph's own vocabulary."""

    def __init__(self, transform: Transform):
        super().__init__(name="item_lookup")
        self._graph = TransformGraph(transform.item_graph)

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
        self._graph = TransformGraph(transform.user_graph)
        self._stored = {
            feature.name: tf.Variable(catalogue.user_features[feature.name], trainable=False, name=feature.name)
            for feature in self.configs
        }

    def __call__(self, user_id: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """String [batch_size] and name -> [batch_size] -> name -> [batch_size] or [batch_size, max_tokens]."""
        if not self.configs:
            return {}
        outputs = self._graph({Request.USER_ID: user_id, **raw})
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
