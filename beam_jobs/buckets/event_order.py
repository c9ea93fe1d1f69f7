"""The order of a bucket's events, by sorts that exploit that events arrive nearly in order."""

from __future__ import annotations

import numpy as np

from beam_jobs.common.arrays import Int64


def by_user_and_time(users: Int64, times: Int64) -> Int64:
    """[num_events] rows by user and time; rows with the same user and time stay in their order.

    If both fit into one number, this is one sort, which is fast for a window's spans, as each of them is in order.

    Args:
        users: [num_events], not negative.
        times: [num_events] microseconds.
    """
    if not len(users):
        return np.zeros(0, np.int64)
    first = int(times.min())
    moments = int(times.max()) - first + 1
    if (int(users.max()) + 1) * moments > np.iinfo(np.int64).max:
        return np.lexsort((times, users))
    return np.argsort(users * moments + (times - first), kind="stable")


def ties(users: Int64, times: Int64) -> tuple[Int64, Int64]:
    """Finds the events that share user and time with another one; events must be in order of user and time.

    Returns:
        [num_tied] places of these events, ascending, and [num_tied] the number of each one's tie, also ascending.
    """
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    with_last, with_next = np.append(False, same), np.append(same, False)
    tied = np.flatnonzero((with_last | with_next)[: len(users)])
    return tied, np.cumsum(~with_last[tied])


def sort_with_places(keys: Int64) -> tuple[Int64, Int64]:
    """Non-negative keys in ascending order, and the place that each had before; equal keys keep their order."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        places = np.argsort(keys, kind="stable")
        return keys[places], places
    # Sorting values is several times faster than argsort; the place, in the low bits, makes it stable.
    ordered = np.sort((keys << bits) | np.arange(len(keys)))
    return ordered >> bits, ordered & ((1 << bits) - 1)
