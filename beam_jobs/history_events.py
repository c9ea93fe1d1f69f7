"""Which of a user's events a history holds, and which of these repeat what the user had."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from beam_jobs.arrays import Bool, Int64
from beam_jobs.bucket_events import BucketEvents
from beam_jobs.event_order import sort_with_places
from contracts.config.data import FeedbackConfig
from contracts.names import MOST_CONTEXT, Split


def history_events(events: BucketEvents, feedback: FeedbackConfig, num_items: int) -> BucketEvents:
    """The positives and, of the events below them from `history_level` on, the first of each user and item.

    None of an item that its user takes in any of the events: what was shown and then taken would give the target away.

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
    """All positives and, of the context between two of them or after a user's last, the `MOST_CONTEXT` latest events.

    Of a log that shows a hundred items for each that is taken, a history would hold hardly anything else.

    Args:
        events: those of a history, in (user, time) order.
        target_level: the least level of a positive.
    """
    is_context = events.levels < target_level
    if not is_context.any():
        return events
    ends_user = np.diff(events.users, append=-1) != 0
    # Of each event, the first positive after it, or the end of its user's events.
    stops = np.flatnonzero(np.append(~is_context, False) | np.append(False, ends_user))
    place = np.arange(len(is_context))
    stop = stops[np.searchsorted(stops, place, side="right")]
    context_before = np.concatenate([[0], np.cumsum(is_context)])
    later = context_before[stop] - context_before[place + 1]
    return events.where(~is_context | (later < MOST_CONTEXT))


class Repeats(NamedTuple):
    """What a user's events of one item say of each other, [num_events] each.

    Attributes:
        is_repeat: the user had the item before, at whatever feedback level. A repeat is context of what follows and
            never a target: what a user had is not recommended again, so a model that learns to predict it learns what
            nobody asks of it. So it is with a purchase of what was clicked.
        comes_back: a repeat at a level that the item had before, or a lower one: who buys what they clicked does not.
        highest_level: of the event's user and item, in any of the events to train on; 0 where none is.
    """

    is_repeat: Bool
    comes_back: Bool
    highest_level: Int64


def find_repeats(events: BucketEvents, num_items: int) -> Repeats:
    """By one sort.

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
    # Grows from each user and item to the next, so that a running maximum is of one alone.
    height = np.cumsum(is_first) * (levels.max() + 1) + levels
    repeat[place] = ~is_first
    comes_back[place[1:]] = height[1:] <= np.maximum.accumulate(height)[:-1]
    highest[place] = np.repeat(np.maximum.reduceat(learnt[place], starts), np.diff(starts, append=len(pairs)))
    return Repeats(repeat, comes_back, highest)
