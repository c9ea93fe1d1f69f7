"""The user tower of matrix factorisation."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from trainer.layers.random_dropout import RandomDropout

USER_INDEX = "user_index"
"""Key of `user_features` that holds the users themselves, int64 [batch_size]; 0 = unknown."""


class UserIdTower(tf.keras.layers.Layer):
    """A vector per known user; the history is not read. An unknown user's vector is zero."""

    def __init__(self, num_users: int, dim: int, dropout: float, generator: tf.random.Generator):
        super().__init__(name="user_id_tower")
        self._table = self.add_weight(
            name="user_embedding",
            shape=[num_users + 1, dim],
            initializer=tf.keras.initializers.TruncatedNormal(stddev=0.02),
        )
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def call(
        self,
        history: tf.Tensor,
        user_features: Mapping[str, tf.Tensor],
        training: bool = False,
        num_events: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """As `QueryTower.call`: the same query at every position, [batch_size, length + 1, dim] or [batch_size, dim].

        Raises:
            ValueError: `user_features` does not say who the users are.
        """
        if USER_INDEX not in user_features:
            raise ValueError("model.user_tower=user_id knows users only by index and cannot be served: choose another")
        user = user_features[USER_INDEX]
        known = tf.cast(user > 0, tf.float32)[:, None]
        query = self._dropout(tf.gather(self._table, user) * known, training=training)
        return query if num_events is not None else tf.repeat(query[:, None, :], tf.shape(history)[1] + 1, axis=1)
