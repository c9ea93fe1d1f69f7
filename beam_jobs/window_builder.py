"""One bucket's events -> training windows and evaluation users, as arrays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from beam_jobs.example_encoder import Ragged
from beam_jobs.negative_sampler import GroupSampler, OwnItems, draw_negatives
from contracts.config import WindowsConfig
from contracts.names import EvaluationField, Split, WindowField

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Positives:
    """Target-level events of a bucket, sorted by user and time; one row an event.

    Attributes:
        user: number of the user within the bucket, ascending from 0.
        user_index: of each number.
        item_index, feedback_level, timestamp (seconds), split: of each event.
    """

    user: Int64
    user_index: Int64
    item_index: Int64
    feedback_level: Int64
    timestamp: Int64
    split: Int64

    def __len__(self) -> int:
        return len(self.user)

    def select(self, rows: npt.NDArray[np.bool_]) -> Positives:
        """The events where `rows` holds; users keep their numbers."""
        columns = (self.item_index, self.feedback_level, self.timestamp, self.split)
        return Positives(self.user[rows], self.user_index, *(column[rows] for column in columns))


@dataclass(frozen=True)
class WindowPlaces:
    """Where windows lie in the events: window w is events [start[w], stop[w]), its first a context only."""

    start: Int64
    stop: Int64


def window_places(user: Int64, length: int) -> WindowPlaces:
    """Cuts each user's events into windows of up to `length` targets, counted from the newest.

    Every event but a user's first is the target of exactly one window.
    """
    first = np.flatnonzero(np.concatenate([[True], user[1:] != user[:-1]])) if len(user) else np.zeros(0, np.int64)
    end = np.concatenate([first[1:], [len(user)]]) if len(user) else first
    num_windows = -(-(end - first - 1) // length)
    owner = np.repeat(np.arange(len(first)), num_windows)
    newer = np.repeat(np.cumsum(num_windows), num_windows) - 1 - np.arange(num_windows.sum())
    stop = end[owner] - newer * length
    return WindowPlaces(np.maximum(first[owner], stop - length - 1), stop)


def training_windows(
    events: Positives,
    settings: WindowsConfig,
    in_group: GroupSampler,
    whole: GroupSampler,
    rng: np.random.Generator,
) -> tuple[dict[str, Ragged], dict[str, int]]:
    """The windows of `events`, which are of the training split, with their negatives.

    Args:
        events: of the training split.
        settings: length, shares of negatives.
        in_group: draws within a group.
        whole: draws from the catalogue as its one group 0.
        rng: seeded by (seed, bucket).

    Returns:
        the features of `WindowField`, one row a window, and counts.
    """
    places = window_places(events.user, settings.length)
    lengths = places.stop - places.start
    target = _ranges(places.start + 1, lengths - 1)
    own = OwnItems(events.user, events.item_index, len(events.user_index), len(in_group.weights))
    hard_user = np.repeat(events.user[target], settings.in_group_negatives)
    group = in_group.group_id[events.item_index - 1]
    hard_group = np.repeat(group[target], settings.in_group_negatives)
    hard, hard_exhausted = draw_negatives(in_group, hard_user, hard_group, own, rng)
    easy_user = np.repeat(events.user[target], settings.easy_negatives)
    easy, easy_exhausted = draw_negatives(whole, easy_user, np.zeros(len(easy_user), np.int64), own, rng)

    inside = _ranges(places.start, lengths)
    features = {
        WindowField.USER_INDEX: Ragged.of_rows(events.user_index[events.user[places.start]]),
        WindowField.ITEM_INDEX: Ragged.of_lengths(events.item_index[inside], lengths),
        WindowField.GROUP_ID: Ragged.of_lengths(group[inside], lengths),
        WindowField.FEEDBACK_LEVEL: Ragged.of_lengths(events.feedback_level[inside], lengths),
        WindowField.TIMESTAMP: Ragged.of_lengths(events.timestamp[inside], lengths),
        WindowField.NUM_CONTEXT: Ragged.of_rows(np.ones(len(lengths), np.int64)),
        WindowField.IN_GROUP_NEGATIVES: Ragged.of_lengths(hard, (lengths - 1) * settings.in_group_negatives),
        WindowField.EASY_NEGATIVES: Ragged.of_lengths(easy, (lengths - 1) * settings.easy_negatives),
    }
    counts = {"windows": len(lengths), "positives": len(target), "negatives_exhausted": hard_exhausted + easy_exhausted}
    return features, counts


def evaluation_users(events: Positives, split: Split, length: int) -> tuple[dict[str, Ragged], dict[str, int]]:
    """The users with something to find in `split`, given what they did before it.

    Returns:
        the features of `EvaluationField`, one row a user, and counts.
    """
    num_users = len(events.user_index)
    base = int(events.item_index.max(initial=0)) + 1
    before, wanted = events.select(events.split < split), events.select(events.split == split)
    seen = np.unique(before.user * base + before.item_index)
    key = wanted.user * base + wanted.item_index
    _, first_places = np.unique(key, return_index=True)
    is_first = np.zeros(len(key), bool)
    is_first[first_places] = True
    is_new = is_first & ~np.isin(key, seen)
    history_length = np.bincount(before.user, minlength=num_users)
    targets_length = np.bincount(wanted.user[is_new], minlength=num_users)
    kept = (history_length > 0) & (targets_length > 0)

    newest = np.cumsum(history_length)[before.user] - np.arange(len(before)) <= length
    features = {
        EvaluationField.USER_INDEX: Ragged.of_rows(events.user_index[kept]),
        EvaluationField.HISTORY_ITEM_INDEX: _by_user(before.user, before.item_index, newest, kept),
        EvaluationField.SEEN_ITEM_INDEX: _by_user(seen // base, seen % base, np.ones(len(seen), bool), kept),
        EvaluationField.TARGET_ITEM_INDEX: _by_user(wanted.user, wanted.item_index, is_new, kept),
    }
    name = split.name.lower()
    counts = {
        f"{name}_users": int(kept.sum()),
        f"{name}_targets": int(targets_length[kept].sum()),
        f"{name}_repeat_targets": int((~is_new).sum()),
        f"{name}_users_without_history": int(((targets_length > 0) & (history_length == 0)).sum()),
    }
    return features, counts


def _by_user(user: Int64, values: Int64, rows: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> Ragged:
    """The values where `rows` holds, one ragged row a kept user."""
    chosen = rows & kept[user]
    lengths = np.bincount(user[chosen], minlength=len(kept))[kept]
    return Ragged.of_lengths(values[chosen], lengths)


def _ranges(start: Int64, length: Int64) -> Int64:
    """start[0], start[0] + 1, ..., then start[1], ...: `length[i]` numbers each."""
    begin = np.cumsum(length) - length
    return np.arange(length.sum()) + np.repeat(start - begin, length)
