"""The transform graphs inside the servable: raw ids and raw user features in, indices and tensors out.

A transform graph is a SavedModel, so TensorFlow alone can load it. TFT, which pins a different TensorFlow than ScaNN's
ops do, is not needed to export and serve models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from contracts.config import Config, Feature
from contracts.config.request_features import RequestFeature, code_sizes
from contracts.layout import SAVED_MODEL, TRANSFORM_FN, Workdir
from contracts.names import Request
from trainer.catalogue import Catalogue


def user_feature_configs(config: Config) -> tuple[Feature, ...]:
    """The user features that a request may carry."""
    return config.data.user_features.features if config.data.user_features else ()


def raw_dtype(feature: Feature) -> tf.DType:
    """The dtype of a feature in a request."""
    return tf.float32 if feature.is_number else tf.string


class TransformGraph(tf.Module):
    """The function that Beam ran over a table, with its vocabularies, which are saved with it as assets."""

    def __init__(self, path: Path):
        """Loads the graph that TFT wrote to `path`.

        Raises:
            ValueError: there is none.
        """
        super().__init__(name="transform_graph")
        saved_model = path / TRANSFORM_FN
        if not (saved_model / SAVED_MODEL).exists():
            raise ValueError(f"no transform graph at {path}: it must hold {TRANSFORM_FN}; run the transform stage")
        self._loaded = tf.saved_model.load(str(saved_model))
        (self._inputs,), _ = self._loaded.transform_fn.structured_input_signature

    def __call__(self, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Raw inputs by name, [batch_size] or, for vectors, [batch_size, dim] -> outputs by name.

        An input that is left out is fed one missing value, so its output has one row and no meaning: each
        output depends only on the input of the same name.
        """
        missing = {
            name: tf.fill([1, *spec.shape[1:]], tf.constant(math.nan if spec.dtype.is_floating else "", spec.dtype))
            for name, spec in self._inputs.items()
            if name not in raw
        }
        return self._loaded.transform_fn({**{name: raw[name] for name in self._inputs if name in raw}, **missing})

    def of_arrays(self, raw: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """As calling the graph, for arrays [num_rows]."""
        return {name: output.numpy() for name, output in self({n: tf.constant(v) for n, v in raw.items()}).items()}


class VocabularyLookup(tf.Module):
    """item_id -> item_index, or user_id -> user_index."""

    def __init__(self, vocabulary: Path, size: int):
        """Reads the vocabulary when the servable is loaded.

        Args:
            vocabulary: one of `ItemStatistics`, which is saved with the servable as an asset.
            size: how many ids it has. A server that finds fewer, for example while the file is still being copied,
                refuses the version: otherwise it would take the missing ids for unknown ones.
        """
        super().__init__(name="vocabulary_lookup")
        self._table = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(
                str(vocabulary.absolute()),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
                vocab_size=size,
            ),
            default_value=-1,
        )

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        """String, any shape -> int64, same shape; 0 for "" and for unknown ids."""
        return self._table.lookup(ids) + 1


class UserFeatures(tf.Module):
    """user_id and raw features -> transformed features.

    A feature that the request leaves out ("" or NaN) takes the value stored for user_id; for an
    unknown user, it is missing (zeros).

    The transform graph accepts a vocabulary that lacks lines. So `_verified` holds a table of each file that requires
    all of its lines, as `VocabularyLookup` does; nothing is looked up in it.
    """

    def __init__(self, config: Config, workdir: Workdir, catalogue: Catalogue):
        super().__init__(name="user_features")
        self.configs = user_feature_configs(config)
        if not self.configs:  # nothing is looked up, and a servable need not hold the ids of all users
            return
        self._graph = TransformGraph(workdir.transform.user_graph)
        self._lookup = VocabularyLookup(workdir.item_statistics.user_vocabulary, catalogue.num_users)
        self._verified = [VocabularyLookup(path, size) for path, size in _feature_vocabularies(workdir)]
        self._stored = {
            feature.name: tf.Variable(catalogue.user_features[feature.name], trainable=False, name=feature.name)
            for feature in self.configs
        }

    def __call__(self, user_id: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """User ids, string [batch_size], and raw features by name -> [batch_size] or [batch_size, width] by name."""
        if not self.configs:
            return {}
        outputs = self._graph({Request.USER_ID: user_id, **raw})
        user_index = self._lookup(user_id)
        return {
            feature.name: self._given_or_stored(raw[feature.name], outputs[feature.name], feature.name, user_index)
            for feature in self.configs
        }

    def _given_or_stored(self, raw: tf.Tensor, given: tf.Tensor, name: str, user_index: tf.Tensor) -> tf.Tensor:
        stored = tf.gather(self._stored[name], user_index)
        is_given = tf.math.is_finite(raw) if raw.dtype.is_floating else raw != ""
        if raw.shape.rank == 2:  # a vector is given whole or not at all
            is_given = tf.reduce_all(is_given, axis=1)
        is_given = tf.reshape(is_given, [-1] + [1] * (stored.shape.rank - 1))
        return tf.where(is_given, tf.cast(tf.reshape(given, tf.shape(stored)), stored.dtype), stored)


def _feature_vocabularies(workdir: Workdir) -> list[tuple[Path, int]]:
    """The vocabularies of the user features, with their numbers of lines."""
    assets = sorted((workdir.transform.user_graph / TRANSFORM_FN).glob("assets/*"))
    ids = workdir.item_statistics.user_vocabulary.name  # the graph's copy, which the servable does not use
    return [(path, path.read_bytes().count(b"\n")) for path in assets if path.name != ids]


class RequestCodes(tf.Module):
    """Request features, as text -> the code in `EventColumn.REQUEST`."""

    def __init__(self, features: Sequence[RequestFeature]):
        super().__init__(name="request_codes")
        self._sizes = code_sizes(features)
        self._tables = {
            feature.name: tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    tf.constant(feature.values), tf.range(1, len(feature.values) + 1, dtype=tf.int64)
                ),
                default_value=0,
            )
            for feature in features
        }

    def __call__(self, request: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """All inputs by name -> int64 [batch_size]; an unlisted value counts as none."""
        code = tf.zeros(tf.shape(request[Request.USER_ID]), tf.int64)
        for (name, table), size in zip(self._tables.items(), self._sizes, strict=True):
            code = code * size + table.lookup(request[name])
        return code
