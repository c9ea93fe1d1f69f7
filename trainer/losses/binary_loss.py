"""The binary objective: each positive and each uniform negative judged alone."""

from __future__ import annotations

import tensorflow as tf


def gbce_exponent(num_negatives: int, num_items: int, calibration: float) -> float:
    """beta of gBCE (Petrov and Macdonald, RecSys 2023, arXiv 2308.07192).

    beta = a (t (1 - 1/a) + 1/a) with a the sampling rate, negatives over items that could be drawn,
    and t the calibration: t = 0 gives 1, plain BCE; t = 1 gives a, which undoes the over-confidence
    that sampling few negatives brings.
    """
    rate = min(1.0, num_negatives / max(num_items - 1, 1))
    return rate * (calibration * (1 - 1 / rate) + 1 / rate)


def binary_loss(
    positive_logit: tf.Tensor, negative_logits: tf.Tensor, masked: tf.Tensor, positive_exponent: float
) -> tf.Tensor:
    """-beta log sigmoid(s_p) - sum_j log(1 - sigmoid(s_j)), averaged over 1 + the number of negatives.

    Args:
        positive_logit: float32 [num_positives].
        negative_logits: float32 [num_positives, num_negatives].
        masked: bool [num_positives, num_negatives]; True leaves a negative out.
        positive_exponent: beta, see `gbce_exponent`.

    Returns:
        float32 [num_positives].
    """
    negatives = tf.where(masked, 0.0, tf.nn.softplus(negative_logits))
    total = positive_exponent * tf.nn.softplus(-positive_logit) + tf.reduce_sum(negatives, axis=1)
    return total / (1 + negative_logits.shape[1])
