"""Training windows and evaluation users, from TFRecords to padded batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from contracts.artifact import ArtifactError, read_manifest
from contracts.layout import Workdir
from contracts.names import EvaluationField, Split, WindowField
from trainer.input.ragged import Ragged
from trainer.input.tied_events import shuffle_ties

_CHUNK = 16_384
"""Number of windows that are sorted by length together."""
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
_USER_FIELDS = (
    EvaluationField.USER_INDEX,
    EvaluationField.HISTORY_ITEM_INDEX,
    EvaluationField.HISTORY_CONTEXT,
    EvaluationField.SEEN_ITEM_INDEX,
    EvaluationField.TARGET_ITEM_INDEX,
    EvaluationField.REQUEST,
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
        self._draws = [_files(workdir, Split.TRAIN, draw) for draw in range(manifest.details["resamples"])]
        self._events_per_batch = events_per_batch
        self._most_events = _most_events(events_per_batch, self.num_positives)
        self._seed = seed

    def epoch(self, epoch: int) -> Iterator[WindowBatch]:
        """Yields the epoch's batches, with the next of the stored draws of negatives."""
        rng = np.random.default_rng([self._seed, epoch])
        shards = self._draws[epoch % len(self._draws)]
        files = [shards[index] for index in rng.permutation(len(shards))]
        records = _records(files).shuffle(4 * _CHUNK, seed=int(rng.integers(2**31)), reshuffle_each_iteration=False)
        # Separate streams: what is drawn does not change which windows make up a batch.
        of_draws, of_ties = (np.random.default_rng([self._seed, epoch, stream]) for stream in (1, 2))
        for chunk in _chunks(records, files, _WINDOW_FIELDS):
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


@dataclass(frozen=True)
class EvaluationUsers:
    """A split's users.

    Attributes:
        user_index: int64 [num_users].
        history, seen, targets: item_index of each user's history (oldest first; negative = an event below the target
            level), of items not to recommend, and of items to find.
        request: int64 [num_users], `EventColumn.REQUEST` of the first target.
    """

    user_index: np.ndarray
    history: Ragged
    seen: Ragged
    targets: Ragged
    request: np.ndarray

    def __len__(self) -> int:
        return len(self.user_index)

    def take(self, rows: np.ndarray) -> EvaluationUsers:
        """The users at `rows`, in that order."""
        history, seen, targets = (values.take(rows) for values in (self.history, self.seen, self.targets))
        return EvaluationUsers(self.user_index[rows], history, seen, targets, self.request[rows])

    @classmethod
    def load(cls, workdir: Workdir, split: Split, limit: int | None = None) -> EvaluationUsers:
        """Reads the users of the validation or test split, evenly spaced ones if there are more than `limit`.

        The records are stored in buckets by a hash of the user, so such a sample is as good as a random one.

        Raises:
            ArtifactError: there are no windows, or the split has no users.
        """
        number = read_manifest(workdir.windows.path).counts[f"{split.name.lower()}_users"]
        wanted = np.linspace(0, number - 1, min(number, number if limit is None else limit)).astype(np.int64)
        chunks, start = [], 0
        files = _files(workdir, split)
        for chunk in _chunks(_records(files), files, _USER_FIELDS):
            end = start + len(chunk[EvaluationField.USER_INDEX])
            # Selected right away: all users of a large log would not fit into memory.
            rows = wanted[(wanted >= start) & (wanted < end)] - start
            chunks.append({name: value.take(rows) for name, value in chunk.items()})
            start = end
        if not chunks:
            raise ArtifactError(
                f"{workdir.windows.path} has no {split.name.lower()} users: "
                "use a log with more events per user, or change the split section of the config"
            )
        joined = {name: _concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
        history, context = joined[EvaluationField.HISTORY_ITEM_INDEX], joined[EvaluationField.HISTORY_CONTEXT]
        history.values[history.splits[context.row_ids()] + context.values] *= -1
        return cls(
            user_index=joined[EvaluationField.USER_INDEX].values,
            history=history,
            seen=joined[EvaluationField.SEEN_ITEM_INDEX],
            targets=joined[EvaluationField.TARGET_ITEM_INDEX],
            request=joined[EvaluationField.REQUEST].values,
        )


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
    files = _files(workdir, Split.TRAIN)  # all draws of negatives hold the same windows
    for chunk in _chunks(_records(files), files, wanted):
        user, item, second, others = (chunk[name] for name in wanted)
        is_taken = np.ones(len(item.values), bool)
        is_taken[item.splits[others.row_ids()] + others.values] = False
        yield TrainingEvents(np.repeat(user.values, item.lengths), item.values, second.values, is_taken)


def _records(files: list[str]) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(files, compression_type="GZIP")


def _chunks(records: tf.data.Dataset, files: list[str], names: tuple[str, ...]) -> Iterator[dict[str, Ragged]]:
    """Yields the fields `names` of `_CHUNK` records at a time.

    Raises:
        ArtifactError: one of the `files` that hold the records is damaged or gone.
    """
    feature = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
    parsed = records.batch(_CHUNK).map(
        lambda serialized: tf.io.parse_example(serialized, dict.fromkeys(names, feature))
    )
    try:
        for chunk in parsed.prefetch(1).with_options(_no_autotune()):
            yield {name: Ragged(value.values.numpy(), value.row_splits.numpy()) for name, value in chunk.items()}
    except (tf.errors.DataLossError, tf.errors.NotFoundError):
        file = Path(next(filter(_is_damaged, files), files[0]))  # TensorFlow does not say which
        raise ArtifactError(
            f"{file} is damaged or missing: delete {file.parent} and run again to recreate it"
        ) from None


def _is_damaged(file: str) -> bool:
    try:
        _records([file]).reduce(np.int64(0), lambda number, _: number + 1)
    except tf.errors.OpError:
        return True
    return False


def _no_autotune() -> tf.data.Options:
    """Turns autotuning off: there is nothing to tune, and the end of an epoch would wait for the tuner.

    tf.data's tuner sleeps for 10 ms, 20 ms, 40 ms, ..., and an iterator is not gone until it wakes:
    on average, this made an epoch half as long again.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


def _concatenate(parts: list[Ragged]) -> Ragged:
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))


def _files(workdir: Workdir, split: Split, draw: int = 0) -> list[str]:
    """The split's shards as listed in the manifest; other files are never read."""
    path: Path = workdir.windows.path
    prefix = workdir.windows.prefix(split, draw)
    files = [str(path / name) for name in read_manifest(path).files if name.startswith(prefix)]
    if not files:
        raise ArtifactError(f"{path} lists no {split.name.lower()} shards: run the windows stage again")
    return sorted(files)
