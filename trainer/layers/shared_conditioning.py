"""No conditioning: divide only."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.group_conditioning import GroupConditioning


class SharedConditioning(GroupConditioning):
    """e_{u,g} = h_u for every group: the single vector."""

    def own_group(self, query: tf.Tensor, group_id: tf.Tensor, training: bool = False) -> tf.Tensor:
        return query

    def all_groups(self, query: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.repeat(query[:, None, :], self.num_groups, axis=1)
