"""The training objective's terms, on logits of positives against a grid of candidates."""

from __future__ import annotations

import tensorflow as tf

from trainer.replicas import mean_over_replicas, sum_over_replicas


def log_partition(
    positive_logit: tf.Tensor, candidate_logits: tf.Tensor, log_expected_count: tf.Tensor, masked: tf.Tensor
) -> tf.Tensor:
    """log(e^{s_p} + sum_j e^{s_j} / E[count_j]) over the candidates that are not masked.

    This is the logQ correction (Bengio and Senecal 2008; Yi et al., RecSys 2019): the correction is
    *subtracted* from a drawn candidate's logit. The positive is there with certainty and gets none,
    and its copies among the draws are masked. The sum estimates the softmax's whole partition
    without bias.

    Args:
        positive_logit: float32 [...].
        candidate_logits: float32 [..., num_candidates].
        log_expected_count: float32, broadcastable to candidate_logits.
        masked: bool, broadcastable to candidate_logits; True leaves a candidate out.

    Returns:
        float32 [...].
    """
    corrected = tf.where(masked, candidate_logits.dtype.min, candidate_logits - log_expected_count)
    return tf.reduce_logsumexp(tf.stack([positive_logit, tf.reduce_logsumexp(corrected, axis=-1)]), axis=0)


def group_log_partitions(
    queries: tf.Tensor, candidates: tf.Tensor, group_sizes: tf.Tensor, log_expected_count: tf.Tensor, masked: tf.Tensor
) -> tf.Tensor:
    """log sum_j e^{<e_{u,g}, v_j>} / E[count_j] over the candidates j of each group g.

    One matrix product a group: every candidate meets its own group's vector only, nothing is padded.

    Args:
        queries: float32 [num_positives, num_groups, dim].
        candidates: float32 [num_candidates, dim], sorted by group.
        group_sizes: int32 [num_groups].
        log_expected_count: float32 [num_candidates].
        masked: bool, broadcastable to [num_positives, num_candidates]; True leaves a candidate out.

    Returns:
        float32 [num_positives, num_groups]; -inf for a group without candidates.
    """
    num_groups = queries.shape[1]
    masked = tf.broadcast_to(masked, tf.stack([tf.shape(masked)[0], tf.shape(candidates)[0]]))
    parts = zip(
        tf.unstack(queries, axis=1),
        tf.split(candidates, group_sizes, num=num_groups),
        tf.split(log_expected_count, group_sizes, num=num_groups),
        tf.split(masked, group_sizes, axis=1, num=num_groups),
        strict=True,
    )
    partitions = []
    for query, members, log_count, left_out in parts:
        logits = tf.matmul(query, members, transpose_b=True) - log_count
        partitions.append(tf.reduce_logsumexp(tf.where(left_out, logits.dtype.min, logits), axis=1))
    return tf.stack(partitions, axis=1)


def z_loss(log_partition_value: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Variance of the log-partitions around their mean, this replica's part of it.

    Groups' scores can be compared where their partitions agree; a constant that all share cancels
    in the merge, so it is left free.
    """
    center = sum_over_replicas(mean_over_replicas(tf.stop_gradient(log_partition_value), weights))
    return mean_over_replicas(tf.square(log_partition_value - center), weights)


def is_member(rows: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Whether each value occurs in each row.

    Args:
        rows: int64 [num_rows, length].
        values: int64 [num_values].

    Returns:
        bool [num_rows, num_values].
    """
    # Looking the few rows' elements up among the many values is cheaper than the reverse.
    order = tf.argsort(values)
    ordered = tf.gather(values, order)
    wanted = tf.reshape(rows, [-1])
    first = tf.searchsorted(ordered, wanted)
    count = tf.searchsorted(ordered, wanted, side="right") - first
    row_id = tf.repeat(tf.repeat(tf.range(tf.shape(rows)[0]), tf.shape(rows)[1]), count)
    within = tf.range(tf.size(row_id)) - tf.repeat(tf.cumsum(count, exclusive=True), count)
    found = tf.stack([row_id, tf.gather(order, tf.repeat(first, count) + within)], axis=1)
    absent = tf.zeros([tf.shape(rows)[0], tf.size(values)], tf.bool)
    return tf.tensor_scatter_nd_update(absent, found, tf.ones([tf.size(row_id)], tf.bool))
