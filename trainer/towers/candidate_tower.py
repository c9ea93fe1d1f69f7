"""The item tower."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.catalogue import Catalogue
from trainer.layers.feature_embedding import FeatureEmbedding, feature_weight


class CandidateTower(tf.keras.layers.Layer):
    """v_i = id embedding + side features + projected co-occurrence embedding.

    The tower owns the items' transformed features, so item_index is its only input. An item without training events
    starts with an id embedding of zero, so its features alone place it. After the items come `num_buckets` rows of
    `OOVBuckets`, which have no features.

    The co-occurrence embedding captures which items an item occurs with, which gradient steps do not learn from few
    events. Groups are made from it, so it exists before training starts.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        dim: int,
        use_features: bool,
        use_cooccurrence: bool,
        num_buckets: int,
    ):
        super().__init__(name="candidate_tower")
        self._num_items = catalogue.num_items
        seen = tf.constant(np.append(catalogue.train_count > 0, np.ones(num_buckets)), tf.float32)[:, None]
        self._id_table = self.add_weight(
            name="id_embedding",
            shape=[catalogue.num_items + 1 + num_buckets, dim],
            initializer=lambda shape, dtype: seen * tf.random.truncated_normal(shape, stddev=0.02, dtype=dtype),
        )
        specs = catalogue.feature_spec["item"] if use_features else []
        self._feature_tables = {
            spec["name"]: self._constant_table(feature_weight(spec["name"]), catalogue.item_features[spec["name"]])
            for spec in specs
        }
        self._features = FeatureEmbedding(specs, dim, name="item_features") if specs else None
        self._cooccurrence: tf.Variable | None = None
        if use_cooccurrence and catalogue.cooccurrence.shape[1]:
            self._cooccurrence = self._constant_table("cooccurrence", catalogue.cooccurrence)
            self._projection = self.add_weight(
                name="cooccurrence_projection", shape=[catalogue.cooccurrence.shape[1], dim], initializer="zeros"
            )

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
        # A bucket has the features of padding: none.
        flat = tf.reshape(tf.where(item_index > self._num_items, tf.zeros_like(item_index), item_index), [-1])
        if self._features is not None:
            features = self._features({name: tf.gather(table, flat) for name, table in self._feature_tables.items()})
            embedding += tf.reshape(features, tf.shape(embedding))
        if self._cooccurrence is not None:
            projected = tf.matmul(tf.gather(self._cooccurrence, flat), self._projection)
            embedding += tf.reshape(projected, tf.shape(embedding))
        return embedding


class FixedCandidates(tf.keras.layers.Layer):
    """A trained item tower reduced to what serving needs: its vectors, in one table."""

    def __init__(self, vectors: np.ndarray):
        """`vectors`: float32 [num_items + 1, dim], by item_index."""
        super().__init__(name="candidate_tower")
        self._table = self.add_weight(
            name="embeddings",
            shape=vectors.shape,
            initializer=lambda shape, dtype: tf.constant(vectors, dtype),
            trainable=False,
        )

    def call(self, item_index: tf.Tensor, id_row: tf.Tensor | None = None) -> tf.Tensor:
        """As `CandidateTower.call`; without buckets there is no `id_row`."""
        del id_row
        return tf.gather(self._table, item_index)
