"""Log-partitions, log sum_j e^{s_j} over candidates j, of all and within groups, and the term that aligns groups."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from trainer.replicas import mean_over_replicas, sum_over_replicas


@tf.custom_gradient
def log_sum_exp(logits: tf.Tensor) -> tf.Tensor:
    """log sum_j e^{l_j} over the last axis; -inf if it has no elements.

    The softmax, which the gradient needs, is one kernel; the partition is read off its largest share.
    `tf.reduce_logsumexp` makes a pass over memory for each of max, difference, exp and sum, and again for
    the gradient.

    Args:
        logits: float32 [..., num_candidates].

    Returns:
        float32 [...].
    """
    shares = tf.nn.softmax(logits)
    return _partition_of_shares(logits, shares), lambda upstream: upstream[..., None] * shares


def log_sum_exp_of_products(
    queries: tf.Tensor, candidates: tf.Tensor, correction: tf.Tensor | None = None
) -> tf.Tensor:
    """log sum_j e^{<q, v_j> + c_j}: `log_sum_exp` of a matrix product.

    The gradient is two matrix products of the shares, with the upstream gradient on the small factors: nothing
    else passes over the logits, which are by far the largest matrix of a step.

    Args:
        queries: float32 [..., num_queries, dim].
        candidates: float32 [..., num_candidates, dim].
        correction: float32 [..., num_queries or 1, num_candidates], not trained; None adds nothing.

    Returns:
        float32 [..., num_queries]; -inf without candidates.
    """

    @tf.custom_gradient
    def partition(queries: tf.Tensor, candidates: tf.Tensor) -> tf.Tensor:
        logits = tf.matmul(queries, candidates, transpose_b=True)
        if correction is not None:
            logits += correction
        shares = tf.nn.softmax(logits)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            weight = upstream[..., None]
            return weight * tf.matmul(shares, candidates), tf.matmul(shares, weight * queries, transpose_a=True)

        return _partition_of_shares(logits, shares), gradient

    result: tf.Tensor = partition(queries, candidates)
    return result


def _partition_of_shares(logits: tf.Tensor, shares: tf.Tensor) -> tf.Tensor:
    # log Z = l_j - log share_j for any j; the largest share is at least 1 / num_candidates.
    largest = tf.maximum(tf.reduce_max(shares, axis=-1), logits.dtype.as_numpy_dtype(1e-30))
    return tf.reduce_max(logits, axis=-1) - tf.math.log(largest)


def log_add_exp(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """log(e^left + e^right), elementwise; `left` must be finite."""
    return left + tf.nn.softplus(right - left)


def reweighted(log_partition: tf.Tensor, log_part: tf.Tensor, weight: float) -> tf.Tensor:
    """log(e^a + (w - 1) e^b): a log-partition in which a part of it counts w times, elementwise.

    If the part is almost the whole, this is b + log w, which float32 holds to some 1e-7 / w: the config rejects
    weights for which that could be the log of 0.
    """
    return log_partition + tf.math.log1p((weight - 1.0) * tf.exp(tf.minimum(log_part - log_partition, 0.0)))


def group_log_partitions(queries: tf.Tensor, candidates: tf.Tensor, group_sizes: tf.Tensor) -> tf.Tensor:
    """log sum_j e^{<e_{u,g}, v_j>} over the candidates j of each group g.

    Args:
        queries: float32 [num_positives, num_groups, dim].
        candidates: float32 [num_candidates, dim], sorted by group.
        group_sizes: int32 [num_groups].

    Returns:
        float32 [num_positives, num_groups]; -inf for a group without candidates.
    """
    of_groups = _by_group(queries, candidates, group_sizes)
    return tf.stack([log_sum_exp_of_products(query, members) for query, members in of_groups], axis=1)


def shared_log_partitions(queries: tf.Tensor, candidates: tf.Tensor, group_sizes: tf.Tensor) -> tf.Tensor:
    """`group_log_partitions` with one vector for all groups: `queries` float32 [num_positives, dim]."""
    of_groups = tf.split(candidates, group_sizes, num=group_sizes.shape[0])
    return tf.stack([log_sum_exp_of_products(queries, members) for members in of_groups], axis=1)


def group_scores(queries: tf.Tensor, candidates: tf.Tensor, group_sizes: tf.Tensor) -> tf.Tensor:
    """<e_{u,g(j)}, v_j>, float32 [num_positives, num_candidates]; arguments as in `group_log_partitions`."""
    of_groups = _by_group(queries, candidates, group_sizes)
    return tf.concat([tf.matmul(query, members, transpose_b=True) for query, members in of_groups], axis=1)


def _by_group(
    queries: tf.Tensor, candidates: tf.Tensor, group_sizes: tf.Tensor
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """Each group's vectors and candidates: one matrix product per group, and nothing is padded."""
    num_groups = queries.shape[1]
    return zip(tf.unstack(queries, axis=1), tf.split(candidates, group_sizes, num=num_groups), strict=True)


def z_loss(log_partition: tf.Tensor, center: tf.Tensor | None = None) -> tf.Tensor:
    """This replica's part of the mean squared distance of log-partitions from what they ought to be.

    Groups' scores are comparable if their partitions agree with those of one vector for all groups or, if there is
    none, with each other: a constant that all share cancels in the merge, so it is left free.

    Args:
        log_partition: float32 [num_positives].
        center: float32 [num_positives], not trained by this term; None is the mean of all replicas' partitions.
    """
    if center is None:
        center = sum_over_replicas(mean_over_replicas(tf.stop_gradient(log_partition)))
    return mean_over_replicas(tf.square(log_partition - tf.stop_gradient(center)))
