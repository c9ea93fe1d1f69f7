"""Rows of the item table for items that training never saw, by a hash of their ids."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.catalogue import Catalogue


def bucket_index(item_ids: tf.Tensor, num_items: int, num_buckets: int) -> tf.Tensor:
    """String [...] -> int64 [...]: the row of each id's bucket, after the rows of the vocabulary's items."""
    return num_items + 1 + tf.strings.to_hash_bucket_fast(item_ids, num_buckets)


class OOVBuckets:
    """Chooses the row of the id table that an event of a history reads.

    Ids that appear after training and items without training events read the row of their bucket, so that a history
    keeps its length and order, and the graph its shapes. Buckets learn from events that, at random, read the bucket's
    row instead of their own. Candidates always read their own row.
    """

    def __init__(self, catalogue: Catalogue, num_buckets: int, rate: float, generator: tf.random.Generator):
        self._rate, self._generator = rate, generator
        of_items = bucket_index(tf.constant(catalogue.item_ids, tf.string), catalogue.num_items, num_buckets)
        buckets = np.arange(catalogue.num_items + 1, catalogue.num_items + 1 + num_buckets)
        bucket = np.concatenate([[0], of_items.numpy(), buckets])
        trained = np.concatenate([catalogue.is_trained, np.zeros(num_buckets, bool)])
        self._bucket = tf.constant(bucket)
        self._row = tf.constant(np.where(trained, np.arange(len(bucket)), bucket))

    def rows(self, item_index: tf.Tensor, training: bool) -> tf.Tensor:
        """Rows for int64 [...] events, which are items or, for unknown ids, buckets; 0 stays 0."""
        row = tf.gather(self._row, item_index)
        if not training:
            return row
        hidden = self._generator.uniform(tf.shape(item_index)) < self._rate
        return tf.where(hidden, tf.gather(self._bucket, item_index), row)
