"""The item tower."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.catalogue import Catalogue
from trainer.layers.feature_embedding import FeatureEmbedding


class CandidateTower(tf.keras.layers.Layer):
    """v_i = id embedding + side features.

    The tower owns the items' transformed features, so that item_index is its only input. An item
    without training events starts from an id embedding of zero: its features alone place it.
    """

    def __init__(self, catalogue: Catalogue, dim: int, use_features: bool, name: str = "candidate_tower"):
        super().__init__(name=name)
        seen = tf.constant(catalogue.train_count > 0, tf.float32)[:, None]
        self._id_table = self.add_weight(
            name="id_embedding",
            shape=[catalogue.num_items + 1, dim],
            initializer=lambda shape, dtype: seen * tf.random.truncated_normal(shape, stddev=0.02, dtype=dtype),
        )
        specs = catalogue.feature_spec["item"] if use_features else []
        self._feature_tables = {
            spec["name"]: self._constant_table(spec["name"], catalogue.item_features[spec["name"]]) for spec in specs
        }
        self._features = FeatureEmbedding(specs, dim, zero_init=True, name="item_features") if specs else None

    def _constant_table(self, name: str, values: np.ndarray) -> tf.Variable:
        return self.add_weight(
            name=f"{name}_of_items",
            shape=values.shape,
            dtype=tf.as_dtype(values.dtype),
            initializer=lambda shape, dtype: tf.constant(values, dtype),
            trainable=False,
        )

    def call(self, item_index: tf.Tensor) -> tf.Tensor:
        """int64 [...] -> float32 [..., dim]."""
        embedding = tf.gather(self._id_table, item_index)
        if self._features is None:
            return embedding
        flat = tf.reshape(item_index, [-1])
        features = self._features({name: tf.gather(table, flat) for name, table in self._feature_tables.items()})
        return embedding + tf.reshape(features, tf.shape(embedding))
