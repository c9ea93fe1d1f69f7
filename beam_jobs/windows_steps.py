"""The DoFn of windows: one bucket of users to one shard per split, in columns from end to end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import apache_beam as beam
import numpy as np
from isal import igzip

from beam_jobs.buckets.bucket_events import BucketEvents, Vocabulary
from beam_jobs.common.arrays import Bool, Int64
from beam_jobs.common.files import read_parquet
from beam_jobs.records.example_encoder import RaggedColumn, encode_examples
from beam_jobs.records.history_events import Repeats, find_repeats, history_events, latest_context
from beam_jobs.records.window_records import WindowBounds, evaluation_records, marked_places, user_blocks, window_bounds
from beam_jobs.sampling.expected_draws import DrawsOfWindows
from beam_jobs.sampling.mined_neighbors import neighbor_lists
from beam_jobs.sampling.negatives import OwnedItems, WindowNegatives, exposures_of
from contracts.config import Config
from contracts.layout import ItemGroups, ItemStatistics, Windows
from contracts.names import PADDING_INDEX, EvaluationField, ItemColumn, Split, WindowField
from contracts.storage import local, write_whole

_BLOCK_EVENTS = 1 << 17
MOST_EARLIER_ITEMS = 200
"""A window is written with at most this many of the items that its user took before it, the latest ones, each once: a
step's cost grows with them."""
_GZIP_LEVEL = 1  # the shards are read once an epoch, and written ten times faster than at zlib's 6


def expected_file(folder: Path, number: int) -> Path:
    """The file with the `DrawsOfWindows` of a bucket."""
    return folder / f"expected_draws-{number:05d}.npy"


class WriteWindows(beam.DoFn):
    """(bucket number, file) -> shards and `expected_file`; yields counts."""

    def __init__(
        self,
        config: Config,
        statistics: ItemStatistics,
        groups: ItemGroups,
        windows: Windows,
        neighbors: Path | None,
        max_user_positives: int,
    ) -> None:
        self._config = config
        self._statistics = statistics
        self._item_groups = groups
        self._windows = windows
        self._neighbors = neighbors
        self._max_user_positives = max_user_positives
        self._drops_repeats = config.windows.repeats == "drop"
        self._target_level = config.data.feedback.target_level_index

    def setup(self) -> None:
        columns = [ItemColumn.SAMPLING_PROBABILITY, ItemColumn.TRAIN_COUNT]
        items = read_parquet(local(self._statistics.items), columns=columns)
        table = read_parquet(local(self._item_groups.groups), columns=[ItemColumn.GROUP_ID])
        self._vocabulary = Vocabulary(self._statistics)
        self._groups = table[ItemColumn.GROUP_ID].to_numpy().astype(np.int64)
        self._is_cold = items[ItemColumn.TRAIN_COUNT].to_numpy() == 0
        probabilities = items[ItemColumn.SAMPLING_PROBABILITY].to_numpy()
        self._expected = DrawsOfWindows.none(probabilities, self._groups)
        self._sampler = WindowNegatives(
            probabilities,
            self._groups,
            self._config.groups.num_groups,
            None if self._neighbors is None else neighbor_lists(self._neighbors),
        )

    def process(self, element: tuple[int, Path]) -> Iterator[dict[str, int]]:
        number, path = element
        events = self._vocabulary.read_bucket(path)
        # None are, unless the statistics were made of other events, which the driver refuses.
        is_unknown = (events.items == PADDING_INDEX) | (events.user_index[events.users] == PADDING_INDEX)
        since = self._config.windows.since
        if since is not None:  # often few of a long window's users
            events = events.of_users_with((events.times >= since) | (events.splits != Split.TRAIN))
        histories = self._histories(events)
        history, repeats = histories[Split.TRAIN]
        is_train = history.splits == Split.TRAIN
        is_learnt = is_train & (history.times >= (since or 0))
        counts = Counter(train_repeats=int((is_learnt & repeats.comes_back).sum()), unknown=int(is_unknown.sum()))
        train = history.where(is_train)
        if self._drops_repeats:
            # The first event stands for all of its user and item, including a later purchase.
            train = replace(history, levels=repeats.highest_level).where(is_train & ~repeats.is_repeat)
        train = latest_context(train, self._target_level)
        wanted = bool(self._config.windows.exposed_negatives)
        exposures = events.where((events.levels < self._target_level) & (events.splits == Split.TRAIN) & wanted)
        # Each draw has the same expectation: the sums grow, but the shares that they become do not change.
        self._expected.clear()
        for draw in range(self._config.windows.resamples):
            rng = np.random.default_rng((self._config.seed, number, draw))
            # Each draw holds the same windows, so only the first is counted.
            of_draw: Counter[str] = Counter()
            self._write(Split.TRAIN, number, self._train_blocks(train, exposures, rng, of_draw), draw)
            counts.update(of_draw if draw == 0 else {})
        self._expected.write(expected_file(self._windows.path, number))
        for split in (Split.VALIDATION, Split.TEST):
            history, repeats = histories[split]
            users = evaluation_records(
                history,
                ~repeats.is_repeat,
                self._target_level,
                split,
                self._config.windows.length,
                self._drops_repeats,
                self._config.split.new_users == "last_item",
            )
            self._write(split, number, iter([encode_examples(users.features)]))
            targets = users.features[EvaluationField.TARGET_ITEM_INDEX].values
            counts.update(
                {
                    f"{split.name.lower()}_users": users.num_users,
                    f"{split.name.lower()}_targets": users.num_targets,
                    f"{split.name.lower()}_cold_targets": int(self._is_cold[targets - 1].sum()),
                    f"{split.name.lower()}_repeat_targets": users.repeat_targets,
                    f"{split.name.lower()}_users_without_history": users.users_without_history,
                }
            )
        yield dict(counts)

    def _histories(self, events: BucketEvents) -> dict[Split, tuple[BucketEvents, Repeats]]:
        """The events, and their repeats, that the records of each split are made of.

        Context is what a user has not taken so far: what they take in a later split is not known yet.
        """
        feedback, num_items = self._config.data.feedback, len(self._groups)
        histories: dict[Split, tuple[BucketEvents, Repeats]] = {}
        for split in Split:
            if feedback.has_context or not histories:
                known = events.where(events.splits <= split) if feedback.has_context else events
                history = history_events(known, feedback, num_items)
                of_split = history, find_repeats(history, num_items)
            histories[split] = of_split
        return histories

    def _write(self, split: Split, number: int, blocks: Iterator[bytes], draw: int = 0) -> None:
        """Writes a shard: gzip members in sequence are one gzip file, and an empty shard is one empty member."""
        shard = self._windows.shard(split, number, self._config.data.num_buckets, draw)
        members = [igzip.compress(block, _GZIP_LEVEL, mtime=0) for block in blocks if block]
        write_whole(shard, lambda staging: staging.write_bytes(b"".join(members) or igzip.compress(b"", mtime=0)))

    def _train_blocks(
        self,
        train: BucketEvents,
        exposures: BucketEvents,
        rng: np.random.Generator,
        counts: Counter[str],
    ) -> Iterator[bytes]:
        for start, stop in user_blocks(_events_per_user(train), _BLOCK_EVENTS):
            block = train.of_users(start, stop), exposures.of_users(start, stop)
            yield encode_examples(self._window_features(*block, rng, counts))

    def _window_features(
        self,
        block: BucketEvents,
        exposures: BucketEvents,
        rng: np.random.Generator,
        counts: Counter[str],
    ) -> dict[str, RaggedColumn]:
        """`WindowField`s of all windows of a block of users; adds to the counts, and to the expected draws."""
        num_users = len(block.user_index)
        is_positive = block.levels >= self._target_level
        is_target = is_positive.copy()
        if not self._drops_repeats:
            is_target &= ~find_repeats(block, len(self._groups)).is_repeat
        bounds, num_targets = self._bounds(block, is_target, counts)
        positions, targets, lengths = bounds.positions(), bounds.target_positions(), bounds.lengths
        targets = targets[is_target[targets]]
        earlier, num_earlier = bounds.earlier(is_target, block.users, MOST_EARLIER_ITEMS)
        positives = block.where(is_positive)
        owned = OwnedItems(positives.users, positives.items, num_users, len(self._groups))
        negatives = self._negatives(block.users[targets], block.items[targets], exposures, owned, rng)
        is_trained = np.zeros(len(is_target), bool)
        is_trained[targets] = True
        taken = np.flatnonzero(is_target & (block.items != PADDING_INDEX))
        for draws in self._expected:
            draws.add(block.users[taken], block.items[taken], is_trained[taken])
        # What a busy user has beyond what is trained on says nothing about others, nor do users who are not trained on.
        num_taken = np.minimum(np.bincount(block.users[is_target], minlength=num_users), self._max_user_positives)
        trained_users = np.unique(block.users[bounds.starts])
        counts["taken"] += int(num_taken[trained_users].sum())
        counts["takers"] += len(trained_users)
        counts["users_without_targets"] += num_users - len(trained_users)
        counts["train_windows"] += len(lengths)
        counts["train_positives"] += len(targets)
        # An item that is all the context of its window is a target of the empty history.
        counts["train_first_targets"] += int(is_target[bounds.starts[bounds.num_context == 1]].sum())
        told = {WindowField.REQUEST: RaggedColumn(block.requests[positions], lengths)}
        for name, (_, drawn) in negatives.items():
            counts[f"absent_{name}"] += int((drawn == PADDING_INDEX).sum())
        return {
            WindowField.USER_INDEX: RaggedColumn.scalars(block.user_index[block.users[bounds.starts]]),
            WindowField.NUM_CONTEXT: RaggedColumn.scalars(bounds.num_context),
            WindowField.NON_TARGETS: marked_places(~is_target[positions], lengths),
            WindowField.ITEM_INDEX: RaggedColumn(block.items[positions], lengths),
            WindowField.EARLIER_ITEMS: RaggedColumn(block.items[earlier], num_earlier),
            WindowField.GROUP_ID: RaggedColumn(self._groups[block.items[positions] - 1], lengths),
            WindowField.FEEDBACK_LEVEL: RaggedColumn(block.levels[positions], lengths),
            WindowField.TIMESTAMP: RaggedColumn(block.times[positions] // 1_000_000, lengths),
            **(told if self._config.data.request_features else {}),
            **{name: RaggedColumn(drawn, num_targets * number) for name, (number, drawn) in negatives.items()},
        }

    def _bounds(self, block: BucketEvents, is_target: Bool, counts: Counter[str]) -> tuple[WindowBounds, Int64]:
        """The windows of a block that are trained on, and how many targets each has, at least one."""
        bounds, since = window_bounds(_events_per_user(block), self._config.windows.length), self._config.windows.since
        is_lone = is_target & (_events_per_user(block) == 1)[block.users]
        counts["lone_positives"] += int((is_lone & (block.times >= (since or 0))).sum())
        if since is not None:
            bounds = bounds.since(block.times, since)
        num_targets = bounds.count_targets(is_target)
        bounds, num_targets = bounds.where(num_targets > 0), num_targets[num_targets > 0]
        is_newest = bounds.newest(num_targets, block.users, self._max_user_positives)
        counts["busy_positives"] += int(num_targets[~is_newest].sum())
        counts["busy_users"] += len(np.unique(block.users[bounds.starts[~is_newest]]))
        return bounds.where(is_newest), num_targets[is_newest]

    def _negatives(
        self,
        users: Int64,
        items: Int64,
        exposures: BucketEvents,
        owned: OwnedItems,
        rng: np.random.Generator,
    ) -> dict[str, tuple[int, Int64]]:
        """`WindowField` -> number per target, and the draws, for each configured kind."""
        config, sampler = self._config.windows, self._sampler
        number = config.in_group_negatives
        drawn = {WindowField.IN_GROUP_NEGATIVES: (number, sampler.in_group(users, items, number, owned, rng))}
        if number := config.easy_negatives:
            drawn[WindowField.EASY_NEGATIVES] = number, sampler.easy(users, number, owned, rng)
        if number := config.exposed_negatives:
            lists = exposures_of(exposures.users, exposures.items, owned, len(exposures.user_index))
            drawn[WindowField.EXPOSED_NEGATIVES] = number, sampler.exposed(users, number, lists, owned, rng)
        if number := config.mined_negatives:
            drawn[WindowField.MINED_NEGATIVES] = number, sampler.mined(users, items, number, owned, rng)
        return drawn


def _events_per_user(events: BucketEvents) -> Int64:
    """[num_users]."""
    return np.bincount(events.users, minlength=len(events.user_index))
