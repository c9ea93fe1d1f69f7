"""A model whose encoder reads the history anew for every group."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.input.training_windows import WindowBatch
from trainer.models.two_tower_model import TwoTowerModel, num_events
from trainer.towers.user_vectors import OneGroupVectors, UserVectors


class GroupFirstModel(TwoTowerModel):
    """e_{u,g} = encoder(history conditioned on g), by a `TokenConditioning`; h_u = encoder(history).

    A training step encodes each window twice, whatever K: for no group, and for one group drawn from those of its
    targets, in proportion to the number of targets. That group's vector scores the group's candidates for all the
    window's positives; h_u stands in for the other groups, and the intent is read from it. Every answer encodes the
    history K + 1 times, in one batch.
    """

    @property
    def passes_of_an_answer(self) -> int:
        return self.num_groups + 1

    def _vectors(self, batch: WindowBatch, items: tf.Tensor, place: tf.Tensor, training: bool) -> UserVectors:
        group = self.sampled_group(batch)
        users = self.features_of_users(batch.user_index, batch.request)
        history = self._history_before(batch, items, training)
        no_group = tf.fill(tf.shape(group), self.num_groups)
        encoded = self._encode(history, users, tf.stack([no_group, group]), training)
        shared, conditioned = tf.gather_nd(encoded[0], place), tf.gather_nd(encoded[1], place)
        return OneGroupVectors(shared, conditioned, tf.gather(group, place[:, 0]), self.num_groups)

    def sampled_group(self, batch: WindowBatch) -> tf.Tensor:
        """int32 [batch_size]: the group of one of each window's targets, drawn uniformly."""
        num_targets = tf.reduce_sum(tf.cast(batch.is_target, tf.int32), axis=1)
        uniform = self.generator.uniform(tf.shape(num_targets))
        drawn = tf.minimum(tf.cast(uniform * tf.cast(num_targets, tf.float32), tf.int32), num_targets - 1)
        rank = tf.cumsum(tf.cast(batch.is_target, tf.int32), axis=1, exclusive=True)
        place = tf.argmax(batch.is_target & (rank == drawn[:, None]), axis=1)
        return tf.gather(self._group_id, tf.gather(batch.item_index, place, batch_dims=1))

    def _encode(
        self,
        history: tf.Tensor,
        users: Mapping[str, tf.Tensor],
        group_id: tf.Tensor,
        training: bool,
        num_events: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """All readings of [batch_size, length, dim] histories in one batch of the encoder.

        Args:
            group_id: int32 [num_readings, batch_size].
            num_events: int32 [batch_size], see `QueryTower.call`.

        Returns:
            float32 [num_readings, batch_size, length + 1, dim], or [num_readings, batch_size, dim] after `num_events`.
        """
        readings = tf.shape(group_id)[0]
        history = tf.tile(history, [readings, 1, 1])
        users = {name: tf.tile(value, [readings] + [1] * (value.shape.rank - 1)) for name, value in users.items()}
        num_events = None if num_events is None else tf.tile(num_events, [readings])
        encoded = self._query_tower(
            history, users, training=training, group_id=tf.reshape(group_id, [-1]), num_events=num_events
        )
        return tf.reshape(encoded, tf.concat([tf.shape(group_id), tf.shape(encoded)[1:]], axis=0))

    def _embed(self, history_index: tf.Tensor, user_features: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        group_id = tf.repeat(tf.range(self.num_groups + 1)[:, None], tf.shape(history_index)[0], axis=1)
        history, length = self._history_tokens(history_index), num_events(history_index)
        last = tf.transpose(self._encode(history, user_features, group_id, False, length), [1, 0, 2])
        vectors = tf.ensure_shape(last[:, : self.num_groups], [None, self.num_groups, self.embedding_dim])
        return vectors, self._log_intent(last[:, self.num_groups])
