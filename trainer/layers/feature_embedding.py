"""Side features of users or items as one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def feature_weight(feature: str) -> str:
    """The name of a feature's weights: unlike any other weight's, whatever the user's column is called."""
    return f"feature/{feature}"


class FeatureEmbedding(tf.keras.layers.Layer):
    """The sum of a vector per side feature.

    categorical: an embedding row; tokens: the mean of their rows; numeric: a direction times the
    value; vector: a linear map. Value 0 of a categorical or a token (missing, unknown) contributes nothing. A
    model starts as if there were no features.
    """

    def __init__(self, specs: list[dict[str, Any]], dim: int, name: str):
        super().__init__(name=name)
        self._specs = specs
        self._tables = {
            spec["name"]: self.add_weight(
                name=feature_weight(spec["name"]), shape=[_num_rows(spec), dim], initializer="zeros"
            )
            for spec in specs
        }

    def call(self, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Embeds features of shape [num_rows] or, for the kinds tokens and vector, [num_rows, width].

        Returns:
            float32 [num_rows, dim].

        Raises:
            ValueError: a feature is missing.
        """
        missing = [spec["name"] for spec in self._specs if spec["name"] not in features]
        if missing:
            raise ValueError(f"{self.name} needs the features {missing}; got {sorted(features)}")
        return tf.add_n([self._embed(spec, features[spec["name"]]) for spec in self._specs])

    def _embed(self, spec: dict[str, Any], values: tf.Tensor) -> tf.Tensor:
        table = self._tables[spec["name"]]
        if spec["kind"] == "numeric":
            return tf.cast(values, tf.float32)[:, None] * table
        if spec["kind"] == "vector":
            return tf.matmul(values, table)
        known = tf.cast(values > 0, tf.float32)[..., None]
        rows = tf.gather(table, values) * known
        if spec["kind"] == "categorical":
            return rows
        return tf.math.divide_no_nan(tf.reduce_sum(rows, axis=1), tf.reduce_sum(known, axis=1))


def _num_rows(spec: dict[str, Any]) -> int:
    if spec["kind"] == "numeric":
        return 1
    return int(spec["width"] if spec["kind"] == "vector" else spec["vocabulary_size"] + 1)
