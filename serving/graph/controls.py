"""The merge settings of a request, row by row, with the config's values for whatever a row leaves out.

Nonsensical values are handled by rules, not errors: rows of different callers share a server's batch, and an error
would fail them all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from contracts.config import ServingConfig
from contracts.names import MERGES, Request

MAX_ALPHA = 1000.0
"""alpha is clipped to +-this: far beyond it, scores would overflow; long before it, the likeliest group gets all."""


@dataclass(frozen=True)
class Controls:
    """The merge settings of each row of a batch.

    Attributes:
        num_candidates: int32 [batch_size], M, at most `serving.max_candidates` and the size of the catalogue; 0 if
            the merge is unknown.
        alpha: float32 [batch_size], finite.
        merge: int32 [batch_size], code of `MERGES`.
        log_boost: float32 [batch_size, num_groups], -inf: the group may not answer.
        max_groups: int32 [batch_size], 0 = all.
        num_exploration: int32 [batch_size], at most M.
    """

    num_candidates: tf.Tensor
    alpha: tf.Tensor
    merge: tf.Tensor
    log_boost: tf.Tensor
    max_groups: tf.Tensor
    num_exploration: tf.Tensor

    @classmethod
    def of(
        cls, request: Mapping[str, tf.Tensor], serving: ServingConfig, num_items: int, exploration_share: float
    ) -> Controls:
        """Reads the inputs of serving_default; `exploration_share`: see `trainer.evaluation.merge.num_explored`."""
        wanted, alpha, merge = (request[name] for name in (Request.NUM_CANDIDATES, Request.ALPHA, Request.MERGE))
        is_merge = tf.where(merge == "", serving.merge, merge)[:, None] == np.array(MERGES, object)
        wanted = tf.minimum(
            tf.where(wanted > 0, wanted, serving.num_candidates), min(serving.max_candidates, num_items)
        )
        wanted = tf.where(tf.reduce_any(is_merge, 1), wanted, 0)
        num_exploration = request[Request.NUM_EXPLORATION]
        if exploration_share:
            of_share = tf.floor(exploration_share * tf.cast(wanted, tf.float64) + 0.5)
            num_exploration = tf.where(num_exploration < 0, tf.cast(of_share, tf.int32), num_exploration)
        return cls(
            num_candidates=wanted,
            alpha=tf.clip_by_value(tf.where(tf.math.is_nan(alpha), serving.alpha, alpha), -MAX_ALPHA, MAX_ALPHA),
            merge=tf.argmax(is_merge, 1, tf.int32),
            log_boost=_log_boost(request[Request.GROUP_BOOST], request[Request.GROUPS]),
            max_groups=request[Request.MAX_GROUPS],
            num_exploration=tf.clip_by_value(num_exploration, 0, wanted),
        )


def _log_boost(boost: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """log of `boost` [batch_size, num_groups], -inf for groups that `groups` int32 [batch_size, (any)] does not list.

    If a row lists no groups, all may answer. A boost of NaN counts as 1, a negative one as 0, an infinite one as the
    largest float.
    """
    log_boost = tf.math.log(tf.clip_by_value(tf.where(tf.math.is_nan(boost), 1.0, boost), 0.0, tf.float32.max))
    is_padding, num_groups = groups < 0, tf.shape(boost)[1]
    # Marks the listed groups in [batch_size, num_groups]: comparing a long list with every group would take all memory.
    # The op ignores values of num_groups or more, and fails on negative ones.
    listed = tf.raw_ops.DenseBincount(
        input=tf.where(is_padding, num_groups, groups),
        size=num_groups,
        weights=tf.constant([], tf.int32),
        binary_output=True,
    )
    listed = (listed > 0) | tf.reduce_all(is_padding, axis=1, keepdims=True)
    return tf.where(listed, log_boost, -math.inf)
