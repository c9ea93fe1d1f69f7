"""A step's user vectors: one per group for each positive, computed only when asked for."""

from __future__ import annotations

import abc

import tensorflow as tf

from trainer.layers.group_conditioning import GroupConditioning


class UserVectors(abc.ABC):
    """Base: the vectors e_{u,g} of the users of a step's positives.

    Attributes:
        shared: float32 [num_positives, dim], the query that belongs to no group.
    """

    def __init__(self, shared: tf.Tensor):
        self.shared = shared

    @abc.abstractmethod
    def conditioned(self, group_id: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The positives that have a vector made for their own group, and those vectors; the others use the shared one.

        Args:
            group_id: int32 [num_positives], each positive's own group.

        Returns:
            int64 [n, 1], places of those n positives, and float32 [n, dim].
        """

    @abc.abstractmethod
    def all_groups(self) -> tf.Tensor:
        """Vectors for all groups: float32 [num_positives, num_groups, dim]."""

    def own_group(self, group_id: tf.Tensor) -> tf.Tensor:
        """Vectors for one group each: int32 [num_positives] -> float32 [num_positives, dim]."""
        return tf.tensor_scatter_nd_update(self.shared, *self.conditioned(group_id))


class ConditionedVectors(UserVectors):
    """Vectors from a `GroupConditioning`; the shared one for every group if a positive's conditioning is dropped.

    Dropping is stochastic depth: what a group's vector learns stays near what all users' vectors learn.
    """

    def __init__(
        self, shared: tf.Tensor, conditioning: GroupConditioning, kept: tf.Tensor | None, training: bool = False
    ):
        """`kept`: bool [num_positives], False if a positive trains the shared vector; None keeps all."""
        super().__init__(shared)
        self._conditioning, self._kept, self._training = conditioning, kept, training

    def conditioned(self, group_id: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        query, place = self.shared, tf.range(tf.size(group_id, tf.int64))[:, None]
        if self._kept is not None:
            place = tf.where(self._kept)
            query, group_id = tf.gather_nd(query, place), tf.gather_nd(group_id, place)
        return place, self._conditioning.own_group(query, group_id, self._training)

    def all_groups(self) -> tf.Tensor:
        vectors = self._conditioning.all_groups(self.shared, self._training)
        return vectors if self._kept is None else tf.where(self._kept[:, None, None], vectors, self.shared[:, None, :])


class OneGroupVectors(UserVectors):
    """Vectors from an encoder that has read each window twice: without a group, and for one of the window's groups.

    The other groups are represented by the shared vector.
    """

    def __init__(self, shared: tf.Tensor, conditioned: tf.Tensor, group_id: tf.Tensor, num_groups: int):
        """`conditioned`: float32 [num_positives, dim], for the groups int32 [num_positives]."""
        super().__init__(shared)
        self._conditioned, self._group_id, self._num_groups = conditioned, group_id, num_groups

    def conditioned(self, group_id: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        place = tf.where(group_id == self._group_id)
        return place, tf.gather_nd(self._conditioned, place)

    def all_groups(self) -> tf.Tensor:
        is_its_group = tf.one_hot(self._group_id, self._num_groups, on_value=True, off_value=False)
        return tf.where(is_its_group[:, :, None], self._conditioned[:, None, :], self.shared[:, None, :])
