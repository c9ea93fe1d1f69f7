"""Which of a user's events a history holds, and which of them are repeats."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beam_jobs.buckets.bucket_events import BucketEvents
from beam_jobs.buckets.event_order import sort_with_places
from beam_jobs.common.arrays import Bool, Int64
from contracts.config.data import FeedbackConfig
from contracts.names import MOST_CONTEXT, Split


def history_events(events: BucketEvents, feedback: FeedbackConfig, num_items: int) -> BucketEvents:
    """The positives and, as context, each user's first event of an item from `history_level` up to the positives.

    Items that a user takes in any of the events get no context: what was shown and then taken would give the target
    away.

    Args:
        events: in (user, time) order.
        feedback: what is a positive, and what is context.
        num_items: size of the catalogue.
    """
    history = events.where(events.levels >= feedback.history_level_index)
    if not feedback.has_context:
        return history
    is_context = history.levels < feedback.target_level_index
    # Positives first: context that follows another event of its user and item in this order is left out.
    keys, place = sort_with_places(2 * (history.users * (num_items + 1) + history.items) + is_context)
    follows = np.zeros(len(keys), bool)
    follows[place[1:]] = np.diff(keys >> 1) == 0
    return history.where(~(is_context & follows))


def latest_context(events: BucketEvents, target_level: int) -> BucketEvents:
    """All positives, and the `MOST_CONTEXT` latest context events before each of them and after a user's last one.

    In a log that shows a hundred items for each one taken, a history would otherwise hold little but context.

    Args:
        events: the events of a history, in (user, time) order.
        target_level: the lowest level of a positive.
    """
    is_context = events.levels < target_level
    if not is_context.any():
        return events
    ends_user = np.diff(events.users, append=-1) != 0
    # For each event, the first positive after it, or the end of its user's events.
    stops = np.flatnonzero(np.append(~is_context, False) | np.append(False, ends_user))
    place = np.arange(len(is_context))
    stop = stops[np.searchsorted(stops, place, side="right")]
    context_before = np.concatenate([[0], np.cumsum(is_context)])
    later = context_before[stop] - context_before[place + 1]
    return events.where(~is_context | (later < MOST_CONTEXT))


class Repeats(NamedTuple):
    """How a user's events of one item relate to each other, [num_events] each.

    Attributes:
        is_repeat: the user had the item before, at any feedback level. A repeat is context for what follows and never a
            target: items a user had are not recommended again, so a model that learns to predict them learns something
            nobody asks of it. The same holds for the purchase of a clicked item.
        comes_back: a repeat at a level that the item had before, or a lower one; buying a clicked item is not.
        highest_level: of the same user and item in all events to train on; 0 if there are none.
    """

    is_repeat: Bool
    comes_back: Bool
    highest_level: Int64


def find_repeats(events: BucketEvents, num_items: int) -> Repeats:
    """Finds all repeats with one sort.

    Args:
        events: in (user, time) order.
        num_items: size of the catalogue.
    """
    pairs, place = sort_with_places(events.users * (num_items + 1) + events.items)
    learnt = np.where(events.splits == Split.TRAIN, events.levels, 0)
    is_first = np.diff(pairs, prepend=-1) > 0
    repeat, comes_back, highest = np.zeros(len(pairs), bool), np.zeros(len(pairs), bool), learnt.copy()
    if is_first.all():
        return Repeats(repeat, comes_back, highest)
    levels, starts = events.levels[place], np.flatnonzero(is_first)
    # Grows from each (user, item) to the next, so that a running maximum stays within one of them.
    height = np.cumsum(is_first) * (levels.max() + 1) + levels
    repeat[place] = ~is_first
    comes_back[place[1:]] = height[1:] <= np.maximum.accumulate(height)[:-1]
    highest[place] = np.repeat(np.maximum.reduceat(learnt[place], starts), np.diff(starts, append=len(pairs)))
    return Repeats(repeat, comes_back, highest)
