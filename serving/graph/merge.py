"""The merge, in the graph: how many items each group may give, and how these become one list.

An operator's boost b_g affects both a group's share and its items' scores:

    weight(u, g) = b_g * max(p(g | u), 1e-20)^alpha
    score(u, i)  = <e_{u,g(i)}, v_i> + log b_g(i)

In a model whose groups can be compared only by p(g | u) (`Config.intent_in_score`), the score also has the term
log max(p(g(i) | u), 1e-20).

"score" keeps the best M of all groups. "quota" gives group g M * weight_g / sum(weight) places, by
cumulative rounding, so that they sum to exactly M. "round_robin" deals like cards: the likeliest group gives
its best item, then the next group, and round again. A group that has no more items passes its places on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import tensorflow as tf

from contracts.names import MERGES
from serving.search.group_search import GroupResults
from serving.search.top_columns import top_columns
from trainer.evaluation.merge import MIN_PROBABILITY

LOG_PROBABILITY_FLOOR = math.log(MIN_PROBABILITY)

_LEAST_NORMAL_BITS = 1 << 23
"""The bits of the least positive float32 that no processor setting takes for 0."""


def is_by_score(merge: tf.Tensor) -> tf.Tensor:
    """Codes of `MERGES`, int32 [batch_size] -> bool [batch_size]: whether a row's list is the best of all groups."""
    return merge == MERGES.index("score")


def is_dealt(merge: tf.Tensor) -> tf.Tensor:
    """Codes of `MERGES`, int32 [batch_size] -> bool [batch_size]: whether a row's list is dealt round robin."""
    return merge == MERGES.index("round_robin")


@dataclass(frozen=True)
class GroupPlan:
    """How much each row takes from each group, known before anything is searched.

    Attributes:
        budgets: int32 [batch_size, num_groups], items that the group may give, at most what it has. For
            "quota" and "round_robin" they sum to M, or to everything available if that is less.
        turn: int32 [batch_size, num_groups], the group's place in the order of preference; meaningless in a batch
            without dealt rows.
    """

    budgets: tf.Tensor
    turn: tf.Tensor


def plan_groups(
    merge: tf.Tensor,
    num_candidates: tf.Tensor,
    max_groups: tf.Tensor,
    log_weight: tf.Tensor,
    preference: tf.Tensor,
    available: tf.Tensor,
) -> GroupPlan:
    """Divides M among the groups.

    Args:
        merge: int32 [batch_size], codes of `MERGES`.
        num_candidates: int32 [batch_size], M >= 0.
        max_groups: int32 [batch_size], groups that may answer, 0 = all.
        log_weight: float32 [batch_size, num_groups], see the module; -inf: the group may not answer.
        preference: float32 [batch_size, num_groups], log(b_g p_g): which group comes first.
        available: int32 [batch_size, num_groups], items of the group that the row may be given.
    """
    available = tf.where(tf.math.is_finite(log_weight), available, 0)
    quotas = _quotas(num_candidates, log_weight, available)
    is_plain = tf.reduce_all(quotas <= available) & tf.reduce_all(max_groups <= 0) & ~tf.reduce_any(is_dealt(merge))

    def in_order() -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        return _plan_in_order(merge, num_candidates, max_groups, log_weight, preference, available)

    # The order of preference costs as much as everything else, and most batches do not need it.
    plain = quotas, tf.zeros_like(quotas), available
    granted, turn, available = tf.cond(is_plain, lambda: plain, in_order)
    all_wanted = tf.minimum(num_candidates[:, None], available)
    return GroupPlan(tf.where(is_by_score(merge)[:, None], all_wanted, granted), turn)


def _plan_in_order(
    merge: tf.Tensor,
    num_candidates: tf.Tensor,
    max_groups: tf.Tensor,
    log_weight: tf.Tensor,
    preference: tf.Tensor,
    available: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Items granted by quota or dealt, turns, and items still available, whatever the rows ask for."""
    order = tf.argsort(tf.where(available > 0, preference, -math.inf), 1, direction="DESCENDING", stable=True)
    turn = tf.argsort(order, 1)
    num_groups = tf.shape(available)[1]
    available = tf.where(turn < tf.where(max_groups > 0, max_groups, num_groups)[:, None], available, 0)

    dealt = is_dealt(merge)[:, None]
    level = _level(num_candidates, available)
    granted = tf.minimum(tf.where(dealt, level, _quotas(num_candidates, log_weight, available)), available)
    spare = tf.where(dealt, tf.cast(available > level, tf.int32), available - granted)
    granted += _hand_out(num_candidates - tf.reduce_sum(granted, 1), spare, order, turn)
    return granted, turn, available


def _quotas(num_candidates: tf.Tensor, log_weight: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    """M * weight / sum(weight) as integers that sum to M: differences of the rounded running total.

    A group with nothing to give gets no share; if no group has anything, all are 0.
    """
    weight = tf.where(available > 0, tf.cast(log_weight, tf.float64), -math.inf)
    largest = tf.reduce_max(weight, 1, keepdims=True)
    running = tf.cumsum(tf.exp(weight - tf.where(tf.math.is_finite(largest), largest, 0.0)), 1)
    share = tf.math.divide_no_nan(running, running[:, -1:])
    edges = tf.cast(tf.floor(tf.cast(num_candidates, tf.float64)[:, None] * share + 0.5), tf.int32)
    return edges - tf.pad(edges[:, :-1], [[0, 0], [1, 0]])


def _level(num_candidates: tf.Tensor, available: tf.Tensor) -> tf.Tensor:
    """int32 [batch_size, 1]: the most full rounds that can be dealt with M items.

    t rounds deal sum_g min(a_g, t) = min_i (P_i + (K - i) t) items, P_i being the sum of the i smallest
    a_g, so the most rounds are max_i floor((M - P_i) / (K - i)).
    """
    num_groups = tf.shape(available)[1]
    ascending = tf.sort(available, 1)
    before = tf.cumsum(ascending, 1, exclusive=True)
    return tf.reduce_max((num_candidates[:, None] - before) // (num_groups - tf.range(num_groups)), 1, keepdims=True)


def _hand_out(leftover: tf.Tensor, spare: tf.Tensor, order: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """Gives `leftover` [batch_size] to groups with room `spare` [batch_size, num_groups], in order of preference."""
    room = tf.gather(spare, order, batch_dims=1)
    before = tf.cumsum(room, axis=1, exclusive=True)
    given = tf.minimum(tf.maximum(leftover[:, None] - before, 0), room)
    return tf.gather(given, turn, batch_dims=1)


def select(
    found: GroupResults,
    merge: tf.Tensor,
    plan: GroupPlan,
    num_candidates: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The columns of each row's list, in the order of its merge: best score first, or as dealt.

    Args:
        found: every group's results, each group's best first; those without a finite score are skipped.
        merge: int32 [batch_size], codes of `MERGES`.
        plan: of the groups in `found`.
        num_candidates: int32 [batch_size].

    Returns:
        float32 and int32 [batch_size, max(num_candidates)]: scores, -inf where absent, and columns.
    """
    scores, allowed = found.scores, tf.math.is_finite(found.scores)
    before = tf.cumsum(tf.cast(allowed, tf.int32), axis=1, exclusive=True)
    before_group = tf.gather(before, tf.minimum(found.starts, tf.shape(scores)[1] - 1), batch_dims=1)
    kept = allowed & (before < tf.gather(before_group + plan.budgets, found.group, batch_dims=1))
    any_dealt = tf.reduce_any(is_dealt(merge))

    def with_dealt() -> tf.Tensor:
        rank = before - tf.gather(before_group, found.group, batch_dims=1)
        place = rank * tf.shape(plan.turn)[1] + tf.gather(plan.turn, found.group, batch_dims=1)
        # The bits of positive floats are ordered like integers; as a float, a place beyond 2^24 would be rounded.
        key = tf.bitcast(place + _LEAST_NORMAL_BITS, tf.float32)
        return tf.where(is_dealt(merge)[:, None], -key, scores)

    key = tf.where(kept, tf.cond(any_dealt, with_dealt, lambda: scores), -math.inf)
    width = tf.reduce_max(num_candidates)
    best, columns = top_columns(key, tf.minimum(width, tf.shape(key)[1]))
    missing = [[0, 0], [0, width - tf.shape(best)[1]]]
    best, columns = tf.pad(best, missing, constant_values=-math.inf), tf.pad(columns, missing)
    present = tf.math.is_finite(best) & (tf.range(width) < num_candidates[:, None])
    listed = tf.cond(any_dealt, lambda: tf.gather(scores, columns, batch_dims=1), lambda: best)
    return tf.where(present, listed, -math.inf), columns
