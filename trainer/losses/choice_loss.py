"""Softmax of a positive among the items that it was really chosen from."""

from __future__ import annotations

import tensorflow as tf

from trainer.replicas import mean_over_replicas


def choice_loss(positive_logit: tf.Tensor, negative_logits: tf.Tensor, masked: tf.Tensor) -> tf.Tensor:
    """-log e^{s_p} / (e^{s_p} + sum_j e^{s_j}) over a positive's own negatives j: a conditional logit.

    Exposed negatives are a uniform sample of what the user chose from, mined ones of the positive's nearest
    items. The correction for a sampled set D is log pi(D | i), with pi the probability of drawing D if i were the
    positive (McFadden 1978). It is the same for all i in D and cancels: always for exposures, and for mined items
    if nearness is mutual. Hence there is no logQ, and one softmax per kind.

    Args:
        positive_logit: float32 [num_positives].
        negative_logits: float32 [num_positives, num_negatives].
        masked: bool [num_positives, num_negatives]; True leaves a negative out.

    Returns:
        A scalar: this replica's part of the mean over positives that have a negative.
    """
    others = tf.reduce_logsumexp(tf.where(masked, negative_logits.dtype.min, negative_logits), axis=1)
    counted = tf.cast(tf.reduce_any(~masked, axis=1), tf.float32)
    return mean_over_replicas(tf.nn.softplus(others - positive_logit), counted)
