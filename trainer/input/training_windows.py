"""Training windows, from TFRecords to padded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from contracts.artifact import read_manifest
from contracts.layout import Workdir
from contracts.names import Split, WindowField
from trainer.input.ragged import Ragged
from trainer.input.record_chunks import read_chunks, shards_of
from trainer.input.tied_events import shuffle_ties

_MOST_CONTEXT = 4.0
"""If most events lie before the first target, a batch holds up to this many times as many events as otherwise."""
_FEW_STEPS = 25
"""An epoch that would have fewer steps than this without context keeps the steps that context adds."""
_WINDOW_FIELDS = (
    WindowField.USER_INDEX,
    WindowField.ITEM_INDEX,
    WindowField.EARLIER_ITEMS,
    WindowField.NUM_CONTEXT,
    WindowField.NON_TARGETS,
    WindowField.IN_GROUP_NEGATIVES,
    WindowField.EASY_NEGATIVES,
    WindowField.FEEDBACK_LEVEL,
    WindowField.REQUEST,
    WindowField.EXPOSED_NEGATIVES,
    WindowField.MINED_NEGATIVES,
    WindowField.TIMESTAMP,
)


class WindowBatch(NamedTuple):
    """Windows of similar length.

    Attributes:
        user_index: int64 [batch_size].
        item_index: int64 [batch_size, length], oldest first, left-aligned, 0 = padding.
        earlier_items: int64 [batch_size, most], what the user took before the window, 0 = padding.
        is_target: bool [batch_size, length], whether an event is predicted from those before it; never an event below
            the target level, nor an item that the user had before. A window's first event may be a target, too, unless
            more context follows: it trains the query of an empty history.
        in_group_negatives: int64 [n], draws from the groups of targets. Each epoch redistributes a chunk's draws among
            its windows, so the targets may be those of another batch.
        easy_negatives: int64 [m], draws from the whole catalogue.
        feedback_level: int64 [batch_size, length], 0 where there is no event.
        request: int64 [batch_size, length], `EventColumn.REQUEST` of each event.
        exposed_negatives: int64 [batch_size, length, max(1, windows.exposed_negatives)], for each target, items that
            the user was shown and did not take; 0 = none.
        mined_negatives: int64 [batch_size, length, max(1, windows.mined_negatives)], for each target, items near it
            that the user did not take; 0 = none.
    """

    user_index: np.ndarray
    item_index: np.ndarray
    earlier_items: np.ndarray
    is_target: np.ndarray
    in_group_negatives: np.ndarray
    easy_negatives: np.ndarray
    feedback_level: np.ndarray
    request: np.ndarray
    exposed_negatives: np.ndarray
    mined_negatives: np.ndarray


class TrainingWindows:
    """The training split, batched anew in every epoch.

    An epoch's order is a function of (seed, epoch), so a resumed run sees what an uninterrupted one would. Windows are
    shuffled, then sorted by length within a chunk and cut into batches of a given number of events, so that short
    windows are not padded to the length of long ones. Events before a window's first target count little toward that
    number: they make up most of a warm start's windows, and if they counted fully, each step would hold few targets.
    Each epoch redistributes a chunk's draws among its windows, since a window that met the same negatives in every
    epoch would learn them by heart. The order of events that share a second is redrawn for the same reason.

    Attributes:
        num_positives: number of targets in an epoch, windows' first events included.
    """

    def __init__(self, workdir: Workdir, events_per_batch: int, seed: int):
        manifest = read_manifest(workdir.windows.path)
        self.num_positives = manifest.counts["train_positives"] + manifest.counts["train_first_targets"]
        self._draws = [shards_of(workdir, Split.TRAIN, draw) for draw in range(manifest.details["resamples"])]
        self._events_per_batch = events_per_batch
        self._most_events = _most_events(events_per_batch, self.num_positives)
        self._seed = seed

    def epoch(self, epoch: int) -> Iterator[WindowBatch]:
        """Yields the epoch's batches, with the next of the stored draws of negatives."""
        rng = np.random.default_rng([self._seed, epoch])
        shards = self._draws[epoch % len(self._draws)]
        files = [shards[index] for index in rng.permutation(len(shards))]
        shuffle_seed = int(rng.integers(2**31))
        # Separate streams: what is drawn does not change which windows make up a batch.
        of_draws, of_ties = (np.random.default_rng([self._seed, epoch, stream]) for stream in (1, 2))
        for chunk in read_chunks(files, _WINDOW_FIELDS, shuffle_seed):
            for name in (WindowField.IN_GROUP_NEGATIVES, WindowField.EASY_NEGATIVES):
                chunk[name] = replace(chunk[name], values=of_draws.permutation(chunk[name].values))
            shuffle_ties(chunk, of_ties)
            yield from self._batches(chunk, rng)

    def target_count(self, num_items: int) -> np.ndarray:
        """int64 [num_items + 1]: how often each item is a target in an epoch, counted by reading one."""
        counts = np.zeros(num_items + 1, np.int64)
        for batch in self.epoch(0):
            np.add.at(counts, batch.item_index[batch.is_target], 1)
        return counts

    def _batches(self, chunk: dict[str, Ragged], rng: np.random.Generator) -> Iterator[WindowBatch]:
        lengths = chunk[WindowField.ITEM_INDEX].lengths
        order = np.argsort(lengths, kind="stable")
        num_context = chunk[WindowField.NUM_CONTEXT].values
        cuts = _cut(lengths[order], num_context[order], self._events_per_batch, self._most_events)
        for index in rng.permutation(len(cuts) - 1):
            yield _window_batch(chunk, order[cuts[index] : cuts[index + 1]])


def _most_events(events_per_batch: int, num_positives: int) -> int:
    """The most events in a batch, context included: a long epoch gets fewer steps, a short one learns as before."""
    steps = num_positives / events_per_batch
    return int(events_per_batch * min(max(steps / _FEW_STEPS, 1.0), _MOST_CONTEXT))


def _cut(ascending_lengths: np.ndarray, num_context: np.ndarray, events: int, most_events: int) -> np.ndarray:
    """Places to cut so that a batch has at least one row, and as many more as fit.

    The number of rows times the longest row is at most `most_events`; not counting each row's context, except for one
    event, it is at most `events`.
    """
    cuts = [0]
    while cuts[-1] < len(ascending_lengths):
        rest = slice(cuts[-1], None)
        padded = ascending_lengths[rest] * np.arange(1, len(ascending_lengths[rest]) + 1)
        too_many = (padded - np.cumsum(num_context[rest] - 1) > events) | (padded > most_events)
        cuts.append(cuts[-1] + max(1, int(np.argmax(np.append(too_many, True)))))
    return np.array(cuts)


def _window_batch(chunk: dict[str, Ragged], rows: np.ndarray) -> WindowBatch:
    items = chunk[WindowField.ITEM_INDEX].take(rows)
    num_context = chunk[WindowField.NUM_CONTEXT].values[rows]
    item_index = items.padded()
    position = np.arange(item_index.shape[1])
    non_targets = chunk[WindowField.NON_TARGETS].take(rows)
    requests = chunk[WindowField.REQUEST]
    may_be = np.ones(item_index.shape, bool)
    may_be[non_targets.row_ids(), non_targets.values] = False
    predicted = may_be & (position >= num_context[:, None]) & (position < items.lengths[:, None])
    return WindowBatch(
        user_index=chunk[WindowField.USER_INDEX].values[rows],
        item_index=item_index,
        earlier_items=chunk[WindowField.EARLIER_ITEMS].take(rows).padded(),
        is_target=predicted | (may_be & (position == 0) & (num_context[:, None] == 1)),
        in_group_negatives=chunk[WindowField.IN_GROUP_NEGATIVES].take(rows).values,
        easy_negatives=chunk[WindowField.EASY_NEGATIVES].take(rows).values,
        feedback_level=chunk[WindowField.FEEDBACK_LEVEL].take(rows).padded(),
        request=requests.take(rows).padded() if len(requests.values) else np.zeros_like(item_index),
        exposed_negatives=_at_targets(chunk[WindowField.EXPOSED_NEGATIVES].take(rows).values, predicted),
        mined_negatives=_at_targets(chunk[WindowField.MINED_NEGATIVES].take(rows).values, predicted),
    )


def _at_targets(values: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Puts target-major [num_targets * n] values at their targets: [batch_size, length, max(1, n)], 0 elsewhere."""
    num_targets = int(predicted.sum())  # 0 if each window's only target was shuffled to its start, see `shuffle_ties`
    result = np.zeros((*predicted.shape, max(1, len(values) // max(1, num_targets))), np.int64)
    if len(values):
        result[predicted] = values.reshape(num_targets, -1)
    return result


class TrainingEvents(NamedTuple):
    """Events of training windows.

    Attributes:
        user_index, item_index, second: int64 [n].
        is_taken: bool [n]; False for an event below the target level, and for an item that its user had before.
    """

    user_index: np.ndarray
    item_index: np.ndarray
    second: np.ndarray
    is_taken: np.ndarray


def training_events(workdir: Workdir) -> Iterator[TrainingEvents]:
    """Yields every event of the training windows, context or target; an event in two windows comes twice."""
    wanted = (WindowField.USER_INDEX, WindowField.ITEM_INDEX, WindowField.TIMESTAMP, WindowField.NON_TARGETS)
    files = shards_of(workdir, Split.TRAIN)  # all draws of negatives hold the same windows
    for chunk in read_chunks(files, wanted):
        user, item, second, others = (chunk[name] for name in wanted)
        is_taken = np.ones(len(item.values), bool)
        is_taken[item.splits[others.row_ids()] + others.values] = False
        yield TrainingEvents(np.repeat(user.values, item.lengths), item.values, second.values, is_taken)
