"""Which events make which record: training windows and evaluation users, as index arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from beam_jobs.bucket_events import BucketEvents
from beam_jobs.example_encoder import Ragged
from contracts.names import EvaluationField, Split

Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class WindowBounds:
    """Training windows over a user-sorted array of positives.

    Attributes:
        starts: [num_windows] place of the first event.
        num_context: [num_windows] events before the first target, at least 1.
        num_targets: [num_windows] events that follow them, 1..length: targets, but for repeats.
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
        """[sum(num_targets)] places of all windows' targets, and of repeats among them."""
        return ragged_range(self.starts + self.num_context, self.num_targets)

    def count_targets(self, events: Bool) -> Int64:
        """[num_windows] of each window's targets, how many are marked in `events`."""
        window = np.repeat(np.arange(len(self.starts)), self.num_targets)
        return np.bincount(window[events[self.target_positions()]], minlength=len(self.starts))

    def where(self, kept: Bool) -> WindowBounds:
        """The windows that are `kept`, [num_windows]."""
        return WindowBounds(self.starts[kept], self.num_context[kept], self.num_targets[kept])

    def since(self, times: Int64, moment: int) -> WindowBounds:
        """The windows that end at or after `moment`, their earlier targets turned into context.

        Args:
            times: of the array of positives, ascending within a user.
        """
        num_old = self.count_targets(times < moment)
        moved = WindowBounds(self.starts, self.num_context + num_old, self.num_targets - num_old)
        return moved.where(moved.num_targets > 0)


def window_bounds(counts: Int64, length: int) -> WindowBounds:
    """Cuts each user's positives into windows of `length` targets, counted from the user's end.

    A user's first event has nothing before it, so it is context only. Counting from the end leaves the
    most recent window full and the short one at the beginning.

    Args:
        counts: [num_users] positives of each user.
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


def is_repeat(positives: BucketEvents, num_items: int) -> Bool:
    """[num_positives] whether the user had the item before, at this feedback level or a higher one.

    A repeat is context of what follows and never a target: what a user had is not recommended again, so a model that
    learns to predict it learns what nobody asks of it. A purchase of what was only clicked before is no repeat.

    Args:
        positives: in (user, time) order.
        num_items: size of the catalogue.
    """
    number = len(positives.items)
    pairs, place = _sort_with_places(positives.users * (num_items + 1) + positives.items)
    is_other = np.diff(pairs, prepend=-1) > 0
    if is_other.all():
        return np.zeros(number, bool)
    levels = positives.levels.astype(np.int64)[place]
    height = np.cumsum(is_other) * (levels.max(initial=0) + 1) + levels
    repeat = np.zeros(number, bool)
    repeat[place[1:]] = height[1:] <= np.maximum.accumulate(height)[:-1]
    return repeat


def _sort_with_places(keys: Int64) -> tuple[Int64, Int64]:
    """Keys that are not negative in ascending order, and the place that each had; equal ones keep their order."""
    bits = len(keys).bit_length()
    if int(keys.max(initial=0)).bit_length() + bits > 63:
        places = np.argsort(keys, kind="stable")
        return keys[places], places
    # By sorting values, several times faster than by an order of them; the place, in the low bits, makes it stable.
    ordered = np.sort((keys << bits) | np.arange(len(keys)))
    return ordered >> bits, ordered & ((1 << bits) - 1)


def ragged_range(starts: Int64, lengths: Int64) -> Int64:
    """[sum(lengths)] arange(start, start + length) of each row, concatenated; `starts`, `lengths`: [num_rows]."""
    offsets = np.cumsum(lengths) - lengths
    return np.repeat(starts - offsets, lengths) + np.arange(int(lengths.sum()))


def user_blocks(counts: Int64, most_events: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of users that together hold about `most_events` events; `counts`: [num_users], of each."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most_events, side="right")))
        yield start, stop
        start = stop


def _distinct(keys: Int64) -> Int64:
    """Sorted and distinct: by sorting, since NumPy's hashing is several times slower."""
    ordered = np.sort(keys)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=-1))]


@dataclass(frozen=True)
class EvaluationRecords:
    """Records of a split, and who has none.

    Attributes:
        features: `EvaluationField`s, one row a user.
        repeat_targets: users whose every target was seen before.
        users_without_history: users with targets but no earlier positive.
    """

    features: dict[str, Ragged]
    repeat_targets: int
    users_without_history: int

    @property
    def num_users(self) -> int:
        return len(self.features[EvaluationField.USER_INDEX].lengths)

    @property
    def num_targets(self) -> int:
        return len(self.features[EvaluationField.TARGET_ITEM_INDEX].values)


def evaluation_records(
    positives: BucketEvents, split: Split, length: int, num_items: int, drop_repeats: bool
) -> EvaluationRecords:
    """One record a user with something new in `split`.

    Args:
        positives: target-level events in (user, time) order.
        split: VALIDATION or TEST; all earlier splits are history.
        length: most events of a history.
        num_items: size of the catalogue.
        drop_repeats: a history holds each item once, where its user had it first.
    """
    num_users = len(positives.user_index)
    width = num_items + 1
    past, present = positives.splits < split, positives.splits == split
    past_users, past_items = positives.users[past], positives.items[past]
    seen = _distinct(past_users * width + past_items)
    keys = positives.users[present] * width + positives.items[present]
    _, first = np.unique(keys, return_index=True)
    distinct = keys[np.sort(first)]  # chronological: the users are ascending already
    place = np.minimum(np.searchsorted(seen, distinct), max(len(seen) - 1, 0))
    fresh = distinct[seen[place] != distinct] if len(seen) else distinct

    if drop_repeats:
        # A request tells no levels: the servable, too, keeps an item's first event whatever followed.
        level_less = replace(positives, levels=np.zeros_like(positives.levels))
        is_first = ~is_repeat(level_less, num_items)[past]
        past_users, past_items = past_users[is_first], past_items[is_first]
    history_counts = np.bincount(past_users, minlength=num_users)
    has_history = history_counts > 0
    has_targets = np.bincount(distinct // width, minlength=num_users) > 0
    fresh_counts = np.bincount(fresh // width, minlength=num_users)
    chosen = np.flatnonzero(has_history & (fresh_counts > 0))

    kept = np.minimum(history_counts, length)[chosen]
    history = past_items[ragged_range(np.cumsum(history_counts)[chosen] - kept, kept)]
    is_chosen = np.zeros(num_users, bool)
    is_chosen[chosen] = True
    seen, fresh = seen[is_chosen[seen // width]], fresh[is_chosen[fresh // width]]
    features = {
        EvaluationField.USER_INDEX: Ragged.scalars(positives.user_index[chosen]),
        EvaluationField.HISTORY_ITEM_INDEX: Ragged(history, kept),
        EvaluationField.SEEN_ITEM_INDEX: Ragged(seen % width, np.bincount(seen // width, minlength=num_users)[chosen]),
        EvaluationField.TARGET_ITEM_INDEX: Ragged(fresh % width, fresh_counts[chosen]),
    }
    return EvaluationRecords(
        features,
        repeat_targets=int((has_targets & (fresh_counts == 0)).sum()),
        users_without_history=int((has_targets & ~has_history).sum()),
    )
