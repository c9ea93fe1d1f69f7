"""The search for a merge by score in two rounds, because most groups hold few of the best M.

By score, any group might give all M items, but asking every group for M costs several times what a quota does. So
each row first asks each group for a few times its equal share. The M-th best of these results is a lower bound for the
list: a group whose last result lies below it has nothing more to give, because its further items are worse. Only
the other groups are asked for all M.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import tensorflow as tf

from serving.search.group_search import GroupResults
from serving.search.top_columns import kth_largest

_SHARES = 4
"""Size of the first round, in equal shares of M: more make it dearer, fewer leave more groups to the second."""


def search_in_rounds(
    search: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], GroupResults],
    is_allowed: Callable[[GroupResults], tf.Tensor],
    queries: tf.Tensor,
    offset: tf.Tensor,
    wanted: tf.Tensor,
    spare: tf.Tensor,
    is_by_score: tf.Tensor,
    num_candidates: tf.Tensor,
) -> GroupResults:
    """As search(queries, offset, wanted), but may leave out results beyond the best M of a row merged by score.

    Args:
        search: of an index set.
        is_allowed: bool [batch_size, width], whether the row may be given each result of a search.
        queries: float32 [batch_size >= 1, num_groups, dim].
        offset: float32 [batch_size, num_groups], added to a group's scores.
        wanted: int32 [batch_size, num_groups], the most that the row may take of the group.
        spare: int32 [batch_size, num_groups], how many of those may turn out not to be allowed.
        is_by_score: bool [batch_size].
        num_candidates: int32 [batch_size], M.

    Returns:
        The results; the score is -inf if the row may not be given the result.
    """
    asked = tf.maximum(tf.math.count_nonzero(wanted, axis=1, dtype=tf.int32), 1)
    share = (_SHARES * num_candidates + asked - 1) // asked
    first = tf.where(is_by_score[:, None], tf.minimum(wanted, share[:, None] + spare), wanted)

    def allowed(found: GroupResults) -> GroupResults:
        return found._replace(scores=tf.where(is_allowed(found), found.scores, -math.inf))

    unfiltered = search(queries, offset, first)
    found = allowed(unfiltered)

    def go_on() -> GroupResults:
        # The last result bounds those after it, whether it is allowed or not.
        last = tf.clip_by_value(found.starts + first - 1, 0, tf.shape(found.scores)[1] - 1)
        least = _least(found.scores, num_candidates)
        unfinished = (first < wanted) & ~(tf.gather(unfiltered.scores, last, batch_dims=1) < least)
        return tf.cond(tf.reduce_any(unfinished), lambda: second_round(unfinished), lambda: found)

    def second_round(unfinished: tf.Tensor) -> GroupResults:
        again = search(queries, offset, tf.where(unfinished, wanted, 0))
        return _replaced(found, allowed(again), unfinished)

    return GroupResults(*tf.cond(tf.reduce_any(first < wanted), go_on, lambda: found))


def _least(scores: tf.Tensor, num_candidates: tf.Tensor) -> tf.Tensor:
    """float32 [batch_size, 1], the M-th best of each row; if there are fewer, the least, so that none lies below it."""
    largest = tf.minimum(tf.reduce_max(num_candidates), tf.shape(scores)[1])  # not 0: a row wants more than it has

    def of_one_m() -> tf.Tensor:
        return kth_largest(scores, largest)

    def of_each_m() -> tf.Tensor:
        best, _ = tf.math.top_k(scores, largest)
        place = tf.clip_by_value(num_candidates - 1, 0, largest - 1)
        return tf.gather(best, place[:, None], batch_dims=1)

    return tf.cond(tf.reduce_all(num_candidates == num_candidates[:1]), of_one_m, of_each_m)


def _replaced(found: GroupResults, again: GroupResults, replaced: tf.Tensor) -> GroupResults:
    """`found` with the results of `again` for the groups in bool [batch_size, num_groups]."""
    is_old = ~tf.gather(replaced, found.group, batch_dims=1)
    is_new = tf.gather(replaced, again.group, batch_dims=1)
    scores = [tf.where(is_old, found.scores, -math.inf), tf.where(is_new, again.scores, -math.inf)]
    return GroupResults(
        scores=tf.concat(scores, 1),
        slots=tf.concat([found.slots, again.slots], 1),
        group=tf.concat([found.group, again.group], 1),
        starts=tf.where(replaced, tf.shape(found.scores)[1] + again.starts, found.starts),
    )
