"""Which events go into which record: training windows and evaluation users, as index arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from beam_jobs.buckets.bucket_events import BucketEvents
from beam_jobs.common.arrays import Bool, Int64
from beam_jobs.records.example_encoder import RaggedColumn
from beam_jobs.records.history_events import latest_context
from contracts.names import EvaluationField, Split


@dataclass(frozen=True)
class WindowBounds:
    """Training windows over a user-sorted array of events.

    Attributes:
        starts: [num_windows] place of the first event.
        num_context: [num_windows] events before the first target, at least 1.
        num_targets: [num_windows] events after those, 1..length: targets, except for repeats and context.
    """

    starts: Int64
    num_context: Int64
    num_targets: Int64

    @property
    def lengths(self) -> Int64:
        """[num_windows] events of each window, context included."""
        return self.num_context + self.num_targets

    def positions(self) -> Int64:
        """[sum(lengths)] places of all windows' events."""
        return ragged_range(self.starts, self.lengths)

    def target_positions(self) -> Int64:
        """[sum(num_targets)] places of all windows' targets, and of repeats and context among them."""
        return ragged_range(self.starts + self.num_context, self.num_targets)

    def count_targets(self, events: Bool) -> Int64:
        """[num_windows] how many of each window's targets are marked in `events`."""
        window = np.repeat(np.arange(len(self.starts)), self.num_targets)
        return np.bincount(window[events[self.target_positions()]], minlength=len(self.starts))

    def earlier(self, events: Bool, users: Int64, most: int) -> tuple[Int64, Int64]:
        """The last `most` events before each window, of the window's user, that are marked in `events`.

        Args:
            events: bool, one for each event of the array.
            users: of the array of events, ascending.
            most: the most events of a window.

        Returns:
            places [sum of the counts], oldest first, and the counts [num_windows].
        """
        marked = np.flatnonzero(events)
        first_of_user = np.searchsorted(users, users[self.starts])
        first, stop = (np.searchsorted(marked, places) for places in (first_of_user, self.starts))
        first = np.maximum(first, stop - most)
        return marked[ragged_range(first, stop - first)], stop - first

    def where(self, kept: Bool) -> WindowBounds:
        """The windows that are `kept`, [num_windows]."""
        return WindowBounds(self.starts[kept], self.num_context[kept], self.num_targets[kept])

    def since(self, times: Int64, moment: int) -> WindowBounds:
        """The windows that end at or after `moment`, their earlier targets turned into context.

        Args:
            times: of the array of events, ascending within a user.
            moment: in the unit of `times`.
        """
        num_old = self.count_targets(times < moment)
        moved = WindowBounds(self.starts, self.num_context + num_old, self.num_targets - num_old)
        return moved.where(moved.num_targets > 0)

    def newest(self, num_targets: Int64, users: Int64, most: int) -> Bool:
        """[num_windows] whether fewer than `most` targets lie in later windows of the same user.

        Args:
            num_targets: [num_windows] targets of each window.
            users: of the array of events, ascending.
            most: at least 1.
        """
        user, upto = users[self.starts], np.cumsum(num_targets)
        of_last = np.searchsorted(user, user, side="right") - 1
        return upto[of_last] - upto < most


def window_bounds(counts: Int64, length: int) -> WindowBounds:
    """Cuts each user's events into windows of `length` targets, counted from the user's end.

    A user's first event has nothing before it, so it is context only. Counting from the end leaves the
    most recent window full and the short one at the beginning.

    Args:
        counts: [num_users] events of each user.
        length: most targets of a window.
    """
    targets = np.maximum(counts - 1, 0)
    windows = -(-targets // length)
    ends = np.cumsum(counts)
    user = np.repeat(np.arange(len(counts)), windows)
    from_end = windows[user] - 1 - ragged_range(np.zeros(len(counts), np.int64), windows)
    stop = ends[user] - from_end * length
    first_target = np.maximum(stop - length, ends[user] - targets[user])
    return WindowBounds(first_target - 1, np.ones(len(stop), np.int64), stop - first_target)


def ragged_range(starts: Int64, lengths: Int64) -> Int64:
    """[sum(lengths)] arange(start, start + length) of each row, concatenated; `starts`, `lengths`: [num_rows]."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def marked_places(marked: Bool, lengths: Int64) -> RaggedColumn:
    """The places within each row that are `marked`, for rows of `lengths`."""
    places = ragged_range(np.zeros(len(lengths), np.int64), lengths)
    row = np.repeat(np.arange(len(lengths)), lengths)
    return RaggedColumn(places[marked], np.bincount(row[marked], minlength=len(lengths)))


def user_blocks(counts: Int64, most_events: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of users that together hold about `most_events` events; `counts`: [num_users] events each."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most_events, side="right")))
        yield start, stop
        start = stop


@dataclass(frozen=True)
class EvaluationRecords:
    """Records of a split, and how many users have none.

    Attributes:
        features: `EvaluationField`s, one row per user.
        repeat_targets: users all of whose targets were seen before.
        users_without_history: users with targets but no earlier positive, who are not measured.
    """

    features: dict[str, RaggedColumn]
    repeat_targets: int
    users_without_history: int

    @property
    def num_users(self) -> int:
        return len(self.features[EvaluationField.USER_INDEX].lengths)

    @property
    def num_targets(self) -> int:
        return len(self.features[EvaluationField.TARGET_ITEM_INDEX].values)


def evaluation_records(
    events: BucketEvents,
    is_first: Bool,
    target_level: int,
    split: Split,
    length: int,
    drop_repeats: bool,
    with_new_users: bool = False,
) -> EvaluationRecords:
    """One record per user with a positive before `split` and a new one in it, whether or not there is context.

    Args:
        events: the events of a history, see `history_events`, in (user, time) order, in which splits follow each other.
        is_first: [num_events] whether an event is the first of its user and item.
        target_level: the lowest level of a positive.
        split: VALIDATION or TEST; all earlier splits are history.
        length: most events of a history.
        drop_repeats: whether a history holds each item only once, where its user first had it.
        with_new_users: whether users without a positive before `split` have a record, too: the last new positive in it
            is their target, and all that precedes it their history.
    """
    num_users = len(events.user_index)
    is_positive, past = events.levels >= target_level, events.splits < split
    is_fresh = is_positive & is_first & (events.splits == split)  # an item had before has its first event earlier
    has_targets = _count(events.users[is_positive & (events.splits == split)], num_users) > 0
    has_history = _count(events.users[is_positive & past], num_users) > 0
    if with_new_users:
        last = np.full(num_users, -1)
        last[events.users[is_fresh]] = np.flatnonzero(is_fresh)  # of equal indices, the last is assigned
        precedes = np.arange(len(events.users)) < last[events.users]
        is_new = ~has_history[events.users]
        past, is_fresh = past | (is_new & precedes), is_fresh & ~(is_new & precedes)
        has_history = _count(events.users[is_positive & past], num_users) > 0
    fresh_counts = _count(events.users[is_fresh], num_users)
    is_chosen = has_history & (fresh_counts > 0)
    chosen, of_chosen = np.flatnonzero(is_chosen), is_chosen[events.users]

    history = latest_context(events.where(past & of_chosen & (is_first | (not drop_repeats))), target_level)
    history_counts = _count(history.users, num_users)
    kept = np.minimum(history_counts, length)[chosen]
    held = ragged_range(np.cumsum(history_counts)[chosen] - kept, kept)
    seen, fresh = events.where(is_positive & is_first & past & of_chosen), events.where(is_fresh & of_chosen)
    first_target = np.cumsum(fresh_counts[chosen]) - fresh_counts[chosen]
    features = {
        EvaluationField.USER_INDEX: RaggedColumn.scalars(events.user_index[chosen]),
        EvaluationField.HISTORY_ITEM_INDEX: RaggedColumn(history.items[held], kept),
        EvaluationField.HISTORY_CONTEXT: marked_places(history.levels[held] < target_level, kept),
        EvaluationField.SEEN_ITEM_INDEX: RaggedColumn(seen.items, _count(seen.users, num_users)[chosen]),
        EvaluationField.TARGET_ITEM_INDEX: RaggedColumn(fresh.items, fresh_counts[chosen]),
        EvaluationField.REQUEST: RaggedColumn.scalars(fresh.requests[first_target]),
    }
    return EvaluationRecords(
        features,
        repeat_targets=int((has_targets & (fresh_counts == 0)).sum()),
        users_without_history=int((has_targets & ~has_history).sum()),
    )


def _count(users: Int64, num_users: int) -> Int64:
    """[num_users] events of each."""
    return np.bincount(users, minlength=num_users)
