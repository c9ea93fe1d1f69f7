"""The order of a bucket's events, by sorts that make use of how nearly in order they come."""

from __future__ import annotations

import numpy as np

from beam_jobs.arrays import Int64


def by_user_and_time(users: Int64, times: Int64) -> Int64:
    """[num_events] rows by user and time, those of one user and time as they came.

    Where both fit one number, this is one sort, and a fast one of a window's spans, each of which is in order.

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
    """Of events by user and time, the places of those that share both with another, and a number of what they share.

    Returns:
        [num_tied] places, ascending, and [num_tied] numbers, ascending, too.
    """
    same = (users[1:] == users[:-1]) & (times[1:] == times[:-1])
    with_last, with_next = np.append(False, same), np.append(same, False)
    tied = np.flatnonzero((with_last | with_next)[: len(users)])
    return tied, np.cumsum(~with_last[tied])


def sort_with_places(keys: Int64) -> tuple[Int64, Int64]:
    """Keys that are not negative in ascending order, and the place that each had; equal ones keep their order."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        places = np.argsort(keys, kind="stable")
        return keys[places], places
    # By sorting values, several times faster than by an order of them; the place, in the low bits, makes it stable.
    ordered = np.sort((keys << bits) | np.arange(len(keys)))
    return ordered >> bits, ordered & ((1 << bits) - 1)
