"""The item tower."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.catalogue import Catalogue
from trainer.layers.feature_embedding import FeatureEmbedding


class CandidateTower(tf.keras.layers.Layer):
    """v_i = id embedding + side features.

    The tower owns the items' transformed features, so that item_index is its only input. An item
    without training events starts from an id embedding of zero: its features alone place it. After the items
    come `num_buckets` rows of `OOVBuckets`, which have no features.
    """

    def __init__(
        self, catalogue: Catalogue, dim: int, use_features: bool, num_buckets: int = 0, name: str = "candidate_tower"
    ):
        super().__init__(name=name)
        self._num_items = catalogue.num_items
        seen = tf.constant(np.append(catalogue.train_count > 0, np.ones(num_buckets)), tf.float32)[:, None]
        self._id_table = self.add_weight(
            name="id_embedding",
            shape=[catalogue.num_items + 1 + num_buckets, dim],
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

    def call(self, item_index: tf.Tensor, id_row: tf.Tensor | None = None) -> tf.Tensor:
        """int64 [...] -> float32 [..., dim]; `id_row`, of the same shape, replaces the items' rows of the id table."""
        embedding = tf.gather(self._id_table, item_index if id_row is None else id_row)
        if self._features is None:
            return embedding
        # A bucket has the features of padding: none.
        flat = tf.reshape(tf.where(item_index > self._num_items, tf.zeros_like(item_index), item_index), [-1])
        features = self._features({name: tf.gather(table, flat) for name, table in self._feature_tables.items()})
        return embedding + tf.reshape(features, tf.shape(embedding))
