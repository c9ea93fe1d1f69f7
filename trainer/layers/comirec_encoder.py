"""Interests by self-attention."""

from __future__ import annotations

import tensorflow as tf

from trainer.layers.interest_encoder import InterestEncoder
from trainer.layers.random_dropout import RandomDropout

_HIDDEN_MULTIPLE = 4


class ComiRecEncoder(InterestEncoder):
    """ComiRec-SA (Cen et al., KDD 2020): interest k = sum_l softmax_l(w_k . tanh(W x_l)) x_l.

    A logit depends on its token alone, so the attention of every prefix is a masked softmax of the same
    logits. A positive trains the interest nearest to it (the paper's argmax).
    """

    def __init__(self, num_interests: int, dim: int, dropout: float, generator: tf.random.Generator):
        super().__init__(num_interests)
        self._hidden = tf.keras.layers.Dense(_HIDDEN_MULTIPLE * dim, activation="tanh", use_bias=False, name="hidden")
        self._heads = tf.keras.layers.Dense(num_interests, use_bias=False, name="heads")
        self._norm = tf.keras.layers.LayerNormalization(epsilon=1e-6, name="norm")
        self._dropout = RandomDropout(dropout, generator, name="dropout")

    def encode(self, inputs: tf.Tensor, training: bool) -> tf.Tensor:
        length = tf.shape(inputs)[1]
        logits = self._heads(self._dropout(self._hidden(inputs), training=training))
        logits = tf.transpose(logits, [0, 2, 1])[:, None]
        visible = tf.range(length)[None, :] <= tf.range(length)[:, None]
        weights = tf.nn.softmax(tf.where(visible[None, :, None, :], logits, logits.dtype.min))
        return self._norm(tf.einsum("btkl,bld->btkd", weights, inputs))

    def attend(self, interests: tf.Tensor, active: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
        affinity = tf.where(active, tf.einsum("pkd,pd->pk", interests, target), interests.dtype.min)
        return tf.gather(interests, tf.argmax(affinity, axis=1), batch_dims=1)
