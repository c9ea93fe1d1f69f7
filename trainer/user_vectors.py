"""A step's user vectors: one per group for each positive, computed only where they are asked for."""

from __future__ import annotations

import abc

import tensorflow as tf

from trainer.layers.group_conditioning import GroupConditioning
from trainer.losses import group_scores


class UserVectors(abc.ABC):
    """Base: the vectors e_{u,g} of the users of a step's positives.

    Attributes:
        shared: float32 [num_positives, dim], the query that belongs to no group.
    """

    def __init__(self, shared: tf.Tensor):
        self.shared = shared

    @abc.abstractmethod
    def own_group(self, group_id: tf.Tensor) -> tf.Tensor:
        """Vectors for one group each: int32 [num_positives] -> float32 [num_positives, dim]."""

    @abc.abstractmethod
    def all_groups(self) -> tf.Tensor:
        """Vectors for all groups: float32 [num_positives, num_groups, dim]."""

    def scores(self, candidates: tf.Tensor, group_sizes: tf.Tensor) -> tf.Tensor:
        """Inner products of candidates with each user's vector for the candidate's group.

        Args:
            candidates: float32 [num_candidates, dim], sorted by group.
            group_sizes: int32 [num_groups].

        Returns:
            float32 [num_positives, num_candidates].
        """
        return group_scores(self.all_groups(), candidates, group_sizes)


class ConditionedVectors(UserVectors):
    """Vectors by a `GroupConditioning`; the shared one for every group where a positive's conditioning is dropped.

    Dropping is stochastic depth: what a group's vector learns stays near what all users' vectors learn.
    """

    def __init__(
        self, shared: tf.Tensor, conditioning: GroupConditioning, kept: tf.Tensor | None = None, training: bool = False
    ):
        """`kept`: bool [num_positives], False where a positive trains the shared vector; None keeps all."""
        super().__init__(shared)
        self._conditioning, self._kept, self._training = conditioning, kept, training

    def own_group(self, group_id: tf.Tensor) -> tf.Tensor:
        vectors = self._conditioning.own_group(self.shared, group_id, self._training)
        if self._kept is None:
            return vectors
        # Arithmetic, because a broadcast selection is several times as slow, forward and backward.
        return self.shared + tf.cast(self._kept, tf.float32)[:, None] * (vectors - self.shared)

    def all_groups(self) -> tf.Tensor:
        vectors = self._conditioning.all_groups(self.shared, self._training)
        return vectors if self._kept is None else tf.where(self._kept[:, None, None], vectors, self.shared[:, None, :])

    def scores(self, candidates: tf.Tensor, group_sizes: tf.Tensor) -> tf.Tensor:
        if self._kept is None:
            return self._conditioning.scores(self.shared, candidates, group_sizes, self._training)
        place = tf.where(self._kept)
        query = tf.gather_nd(self.shared, place)
        conditioned = self._conditioning.scores(query, candidates, group_sizes, self._training)
        return tf.tensor_scatter_nd_update(tf.matmul(self.shared, candidates, transpose_b=True), place, conditioned)


class OneGroupVectors(UserVectors):
    """Vectors of an encoder that has read each window twice: without a group, and for one group of its own.

    The other groups are represented by the shared vector.
    """

    def __init__(self, shared: tf.Tensor, conditioned: tf.Tensor, group_id: tf.Tensor, num_groups: int):
        """`conditioned`: float32 [num_positives, dim], for the groups int32 [num_positives]."""
        super().__init__(shared)
        self._conditioned, self._group_id, self._num_groups = conditioned, group_id, num_groups

    def own_group(self, group_id: tf.Tensor) -> tf.Tensor:
        return tf.where((group_id == self._group_id)[:, None], self._conditioned, self.shared)

    def all_groups(self) -> tf.Tensor:
        is_its_group = tf.one_hot(self._group_id, self._num_groups, on_value=True, off_value=False)
        return tf.where(is_its_group[:, :, None], self._conditioned[:, None, :], self.shared[:, None, :])
