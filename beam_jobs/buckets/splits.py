"""Which split each event of a bucket belongs to, so that no training event lies after an evaluation target."""

from __future__ import annotations

import numpy as np

from beam_jobs.common.arrays import Bool, Int8, Int64
from contracts.names import Split


def leave_one_out(users: Int64, is_target: Bool, min_user_events: int) -> Int8:
    """Splits by each user's last two events that can be targets.

    The last is the test target, the one before it the validation target. What follows a target in the
    user's order belongs to that target's split, so nothing later than a target is trained on.

    Args:
        users: [num_events] user numbers, sorted; each user's events in order.
        is_target: [num_events] whether the event is of the target level, and the first such of its user and item.
        min_user_events: users with fewer of these are only trained on.

    Returns:
        [num_events] `Split`.
    """
    splits = np.full(len(users), int(Split.TRAIN), np.int8)
    targets = np.flatnonzero(is_target)
    if not len(targets):
        return splits
    owners = users[targets]
    # For each target, how many of the same user's targets follow.
    end = np.searchsorted(owners, owners, side="right")
    start = np.searchsorted(owners, owners, side="left")
    following = end - 1 - np.arange(len(targets))
    enough = end - start >= min_user_events
    for split, place in ((Split.VALIDATION, 1), (Split.TEST, 0)):
        chosen = targets[enough & (following == place)]
        user_end = np.searchsorted(users, users[chosen], side="right")
        change = np.zeros(len(users) + 1, np.int8)
        change[chosen] += 1
        np.subtract.at(change, user_end, 1)
        splits[np.cumsum(change[:-1]) > 0] = int(split)
    return splits


def by_time(timestamps: Int64, validation_start: int, test_start: int) -> Int8:
    """[num_events] `Split` by two moments in microseconds, each of which begins its split."""
    return (int(Split.TRAIN) + (timestamps >= validation_start) + (timestamps >= test_start)).astype(np.int8)


def time_quantile(seconds: Int64, counts: Int64, quantile: float) -> int:
    """The first second at or before which lies at least the share `quantile` of all events.

    Args:
        seconds: [num_distinct] sorted distinct times.
        counts: [num_distinct] events at each.
        quantile: in [0, 1].
    """
    cumulative = np.cumsum(counts)
    return int(seconds[np.searchsorted(cumulative, quantile * cumulative[-1], side="left")])
