"""Interests by dynamic routing."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from trainer.layers.interest_encoder import InterestEncoder
from trainer.layers.random_dropout import RandomDropout

_ROUTING_ITERATIONS = 3
_ATTENTION_POWER = 2.0


class MINDEncoder(InterestEncoder):
    """Multi-interest network with dynamic routing (Li et al., CIKM 2019, arXiv 1904.08030).

    Behaviours are routed to K capsules through one shared bilinear map; a user with n events has
    max(1, min(K, log2 n)) of them. Every prefix of the sequence is routed separately, all in one
    matrix product per iteration. The routing logits start from fixed random values, so that the same
    history always gives the same interests. They are the same in every run, whatever its seed and window length,
    since a warm start carries over what was trained on them.
    """

    def __init__(
        self,
        num_interests: int,
        max_length: int,
        dim: int,
        feed_forward_dim: int,
        dropout: float,
        generator: tf.random.Generator,
    ):
        super().__init__(num_interests)
        self._bilinear = self.add_weight(name="bilinear", shape=[dim, dim])
        # By position first, so that longer windows only add values.
        routing_start = np.random.default_rng(0).normal(size=[max_length, num_interests]).T
        self._routing_start = self.add_weight(
            name="routing_start",
            shape=[num_interests, max_length],
            initializer=lambda shape, dtype: tf.constant(routing_start, dtype),
            trainable=False,
        )
        self._expand = tf.keras.layers.Dense(feed_forward_dim, activation="relu", name="expand")
        self._contract = tf.keras.layers.Dense(dim, name="contract")
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def active(self, num_events: tf.Tensor) -> tf.Tensor:
        # log2 n >= k, that is n >= 2^k, in integers: floating-point logarithms of powers of 2 are not exact.
        count = tf.reduce_sum(
            tf.cast(tf.cast(num_events, tf.int64)[..., None] >= 2 ** tf.range(1, 31, dtype=tf.int64), tf.int32), -1
        )
        return tf.range(self.num_interests) < tf.maximum(count, 1)[..., None]

    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        length = tf.shape(inputs)[1]
        mapped = tf.matmul(inputs, self._bilinear)
        fixed = tf.stop_gradient(mapped)
        visible = tf.linalg.band_part(tf.ones([length, length]), -1, 0)
        active = self.active(tf.range(length))[..., None]
        routing = self._routing_start[None, None, :, :length]
        capsules = self._capsules(fixed, routing, active, visible)
        for iteration in range(1, _ROUTING_ITERATIONS):
            routing = routing + tf.einsum("btkd,bld->btkl", capsules, fixed)
            # Gradients flow through the last iteration only, as in the authors' code.
            last = iteration == _ROUTING_ITERATIONS - 1
            capsules = self._capsules(mapped if last else fixed, routing, active, visible)
        return capsules + self._dropout(self._contract(self._expand(capsules)), training=training)

    def _capsules(self, mapped: tf.Tensor, routing: tf.Tensor, active: tf.Tensor, visible: tf.Tensor) -> tf.Tensor:
        """[batch_size, length, num_interests, dim]: squashed sums of the behaviours routed to each capsule."""
        weights = tf.nn.softmax(tf.where(active, routing, routing.dtype.min), axis=-2)
        batch_size, length = tf.shape(mapped)[0], tf.shape(mapped)[1]
        shape = [batch_size, length, self.num_interests, length]
        weights = tf.broadcast_to(weights * visible[:, None, :], shape)
        total = tf.einsum("btkl,bld->btkd", weights, mapped)
        square = tf.reduce_sum(tf.square(total), axis=-1, keepdims=True)
        return total * (square / (1.0 + square)) * tf.math.rsqrt(square + 1e-9)

    def attend(self, interests: tf.Tensor, active: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        affinity = tf.einsum("pkd,pd->pk", interests, target)
        # The sign survives the power, so that an opposed interest is not preferred.
        logits = tf.sign(affinity) * tf.abs(affinity) ** _ATTENTION_POWER
        weights = tf.nn.softmax(tf.where(active, logits, logits.dtype.min))
        return tf.einsum("pk,pkd->pd", weights, interests)
