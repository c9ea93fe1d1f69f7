"""Shuffling events that share a second, whose order a log does not record, anew in each epoch."""

from __future__ import annotations

import numpy as np

from contracts.names import WindowField
from trainer.input.ragged import Ragged

_OF_EVENTS = (WindowField.ITEM_INDEX, WindowField.FEEDBACK_LEVEL, WindowField.REQUEST)
_OF_TARGETS = (WindowField.EXPOSED_NEGATIVES, WindowField.MINED_NEGATIVES)


def shuffle_ties(chunk: dict[str, Ragged], rng: np.random.Generator) -> None:
    """Shuffles each window's events of the same second, in place; whatever belongs to an event moves with it.

    The order in which they are stored, by a hash, says nothing about the user, and a model that sees it in every epoch
    learns it by heart. A window's first event is shuffled with those tied with it, too, unless it has to stay context:
    in a window with more context, or if targets have their own lists of negatives, since it has none. A repeat of an
    item within a tie, such as a second click milliseconds later, stays behind the first event, and so does everything
    after it: ahead of the first event, it would reveal what its user takes.

    Args:
        chunk: fields of training windows.
        rng: draws the order.
    """
    items, times = chunk[WindowField.ITEM_INDEX], chunk[WindowField.TIMESTAMP].values
    row, num_events = items.row_ids(), len(items.values)
    first = items.splits[row]
    position = np.arange(num_events) - first
    num_context = chunk[WindowField.NUM_CONTEXT].values[row]
    has_lists = any(len(chunk[name].values) for name in _OF_TARGETS)
    follows_context = (position == num_context) & ((num_context > 1) | has_lists)
    begins = (position == 0) | (np.diff(times, prepend=-1) != 0) | follows_context
    if begins.all():
        return
    others = chunk[WindowField.NON_TARGETS]
    is_other = np.zeros(num_events, bool)
    is_other[items.splits[others.row_ids()] + others.values] = True
    tied = np.flatnonzero(~begins | np.append(~begins[1:], False))
    begins[tied] |= is_other[tied] & _comes_again(np.cumsum(begins)[tied], items.values[tied])
    # Within its run, each event gets the place of a random other.
    order = np.lexsort((rng.random(num_events), np.cumsum(begins)))
    predicted = ~is_other & (position >= num_context)
    _move_lists(chunk, predicted, order)
    moved = is_other[order]
    counts = np.bincount(row[moved], minlength=len(items))
    chunk[WindowField.NON_TARGETS] = Ragged(position[moved], np.concatenate([[0], np.cumsum(counts)]))
    for name in _OF_EVENTS:
        if len(chunk[name].values):
            chunk[name] = Ragged(chunk[name].values[order], chunk[name].splits)


def _comes_again(run: np.ndarray, items: np.ndarray) -> np.ndarray:
    """bool [num_events]: whether the item has an earlier event in the same run."""
    order = np.lexsort((items, run))
    again = np.zeros(len(items), bool)
    again[order[1:]] = (np.diff(run[order]) == 0) & (np.diff(items[order]) == 0)
    return again


def _move_lists(chunk: dict[str, Ragged], predicted: np.ndarray, order: np.ndarray) -> None:
    """Moves each target's own negatives with it; `predicted`: bool [num_events], before events are in `order`."""
    number = np.cumsum(predicted) - 1
    moved = number[order][predicted[order]]
    for name in _OF_TARGETS:
        values = chunk[name].values
        if len(values):
            chunk[name] = Ragged(values.reshape(len(moved), -1)[moved].reshape(-1), chunk[name].splits)
