"""The merge, in the graph: how many items each group may give, and one list out of what they gave.

Scores are comparable across groups: score(u, i) = <e_{u,g(i)}, v_i> + alpha * log p(g(i) | u),
with p floored at 1e-20. Merge "score" keeps the best M of all. Merge "quota" gives group g
M_g = M * p_g^alpha / sum(p^alpha) places by cumulative rounding, so that they sum to exactly M.
Either way the list is ordered by score.
"""

from __future__ import annotations

import math
from typing import Literal

import tensorflow as tf

Merge = Literal["score", "quota"]

LOG_PROBABILITY_FLOOR = math.log(1e-20)


def group_budgets(
    merge: Merge, num_candidates: tf.Tensor, alpha: tf.Tensor, intent_log_prob: tf.Tensor, available: tf.Tensor
) -> tf.Tensor:
    """The most items that each group may give to each list.

    They are known before anything is searched, so a group fetches no more than its lists need.

    Args:
        merge: "score" or "quota".
        num_candidates: int32 [batch_size], M >= 0.
        alpha: float32 [batch_size].
        intent_log_prob: float32 [batch_size, num_groups], floored.
        available: int32 [batch_size, num_groups], items of the group that the row may be given.

    Returns:
        int32 [batch_size, num_groups], at most `available`. Of "quota", they sum to M, or to
        everything available if that is less.
    """
    if merge == "score":
        return tf.minimum(num_candidates[:, None], available)
    wanted = _cumulative_rounding(num_candidates, alpha, intent_log_prob)
    granted = tf.minimum(wanted, available)
    return granted + _hand_out(num_candidates - tf.reduce_sum(granted, 1), available - granted, intent_log_prob)


def _cumulative_rounding(num_candidates: tf.Tensor, alpha: tf.Tensor, intent_log_prob: tf.Tensor) -> tf.Tensor:
    """M * p^alpha / sum(p^alpha) as integers that sum to M: differences of the rounded running total."""
    share = tf.nn.softmax(tf.cast(alpha[:, None], tf.float64) * tf.cast(intent_log_prob, tf.float64))
    running = tf.cumsum(share, axis=1)
    running = tf.floor(tf.cast(num_candidates, tf.float64)[:, None] * running / running[:, -1:] + 0.5)
    edges = tf.pad(tf.cast(running, tf.int32), [[0, 0], [1, 0]])
    return edges[:, 1:] - edges[:, :-1]


def _hand_out(leftover: tf.Tensor, spare: tf.Tensor, intent_log_prob: tf.Tensor) -> tf.Tensor:
    """Gives `leftover` [batch_size] to groups with room `spare` [batch_size, num_groups], in order of intent."""
    order = tf.argsort(intent_log_prob, axis=1, direction="DESCENDING", stable=True)
    room = tf.gather(spare, order, batch_dims=1)
    before = tf.cumsum(room, axis=1, exclusive=True)
    given = tf.clip_by_value(leftover[:, None] - before, 0, room)
    return tf.gather(given, tf.argsort(order, axis=1), batch_dims=1)


def select(
    scores: tf.Tensor, column_group: tf.Tensor, allowed: tf.Tensor, budgets: tf.Tensor, num_candidates: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The columns of each row's list, best score first.

    Args:
        scores: float32 [batch_size, width], every group's results side by side, each group's best first.
        column_group: int32 [width], the group of a column, ascending.
        allowed: bool [batch_size, width], the column holds an item that the row may be given.
        budgets: int32 [batch_size, num_groups].
        num_candidates: int32 [batch_size].

    Returns:
        float32 and int32 [batch_size, max(num_candidates)]: scores, -inf where absent, and columns.
    """
    num_groups = tf.shape(budgets)[1]
    before = tf.cumsum(tf.cast(allowed, tf.int32), axis=1, exclusive=True)
    starts = tf.minimum(tf.searchsorted(column_group, tf.range(num_groups)), tf.maximum(tf.size(column_group) - 1, 0))
    rank_in_group = before - tf.gather(tf.gather(before, starts, axis=1), column_group, axis=1)
    kept = allowed & (rank_in_group < tf.gather(budgets, column_group, axis=1))
    scores = tf.where(kept, scores, -math.inf)

    width = tf.reduce_max(num_candidates)
    best, columns = tf.math.top_k(scores, tf.minimum(width, tf.shape(scores)[1]))
    missing = width - tf.shape(best)[1]
    best = tf.pad(best, [[0, 0], [0, missing]], constant_values=-math.inf)
    columns = tf.pad(columns, [[0, 0], [0, missing]])
    return tf.where(tf.range(width) < num_candidates[:, None], best, -math.inf), columns
