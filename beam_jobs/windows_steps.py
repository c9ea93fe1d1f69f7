"""The DoFn of windows: one bucket of users to one shard a split, columns end to end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import pyarrow.parquet as pq
from isal import igzip

from beam_jobs.beam_run import write_whole
from beam_jobs.bucket_events import BucketEvents, Vocabulary
from beam_jobs.example_encoder import Ragged, encode_examples
from beam_jobs.negatives import NegativeSampler, OwnedItems
from beam_jobs.window_records import evaluation_users, user_blocks, window_spans
from contracts.config import Config
from contracts.layout import Windows, Workdir
from contracts.names import PADDING_INDEX, ItemColumn, Split, WindowField

_BLOCK_EVENTS = 1 << 17
_GZIP_LEVEL = 1  # the shards are read once an epoch, and written ten times faster than at zlib's 6


class WriteWindows(beam.DoFn):
    """(bucket number, file) -> shards; yields counts."""

    def __init__(self, config: Config, workdir: Workdir, windows: Windows) -> None:
        self._config = config
        self._workdir = workdir
        self._windows = windows

    def setup(self) -> None:
        statistics, groups = self._workdir.item_statistics, self._workdir.item_groups
        probabilities = pq.read_table(statistics.items, columns=[ItemColumn.SAMPLING_PROBABILITY])
        table = pq.read_table(groups.groups, columns=[ItemColumn.GROUP_ID])
        self._vocabulary = Vocabulary(statistics)
        self._groups = table[ItemColumn.GROUP_ID].to_numpy().astype(np.int64)
        self._sampler = NegativeSampler(
            probabilities[ItemColumn.SAMPLING_PROBABILITY].to_numpy(), self._groups, self._config.groups.num_groups
        )

    def process(self, element: tuple[int, str]) -> Iterator[dict[str, int]]:
        number, path = element
        events = self._vocabulary.read_bucket(path)
        positives = events.where(events.levels >= self._config.data.feedback.target_level_index)
        counts: Counter[str] = Counter()
        train = positives.where(positives.splits == Split.TRAIN)
        rng = np.random.default_rng((self._config.seed, number))
        self._write(Split.TRAIN, number, self._train_blocks(train, rng, counts))
        for split in (Split.VALIDATION, Split.TEST):
            users = evaluation_users(positives, split, self._config.windows.length, len(self._groups))
            self._write(split, number, iter([encode_examples(users.features)]))
            counts.update(
                {
                    f"{split.name.lower()}_users": users.num_users,
                    f"{split.name.lower()}_targets": users.num_targets,
                    f"{split.name.lower()}_repeat_targets": users.repeat_targets,
                    f"{split.name.lower()}_users_without_history": users.users_without_history,
                }
            )
        yield dict(counts)

    def _write(self, split: Split, number: int, blocks: Iterator[bytes]) -> None:
        """Gzip members side by side are one gzip file; an empty shard is one empty member."""
        shard = self._windows.shard(split, number, self._config.data.num_buckets)
        members = [igzip.compress(block, _GZIP_LEVEL, mtime=0) for block in blocks if block]
        write_whole(shard, lambda staging: staging.write_bytes(b"".join(members) or igzip.compress(b"", mtime=0)))

    def _train_blocks(self, train: BucketEvents, rng: np.random.Generator, counts: Counter[str]) -> Iterator[bytes]:
        num_users = len(train.user_index)
        per_user = np.bincount(train.users, minlength=num_users)
        counts["users_without_targets"] += int((per_user < 2).sum())
        ends = np.concatenate([[0], np.cumsum(per_user)])
        for start, stop in user_blocks(per_user, _BLOCK_EVENTS):
            events = slice(ends[start], ends[stop])
            block = BucketEvents(
                users=train.users[events] - start,
                items=train.items[events],
                times=train.times[events],
                levels=train.levels[events],
                splits=train.splits[events],
                user_index=train.user_index[start:stop],
            )
            yield encode_examples(self._window_features(block, rng, counts))

    def _window_features(
        self, block: BucketEvents, rng: np.random.Generator, counts: Counter[str]
    ) -> dict[str, Ragged]:
        """`WindowField`s of all windows of a block of users."""
        config, num_users = self._config.windows, len(block.user_index)
        spans = window_spans(np.bincount(block.users, minlength=num_users), config.length)
        positions, targets = spans.positions(), spans.target_positions()
        lengths = spans.num_targets + 1
        users, items = block.users[targets], block.items[targets]
        owned = OwnedItems(block.users, block.items, num_users, len(self._groups))
        in_group = self._sampler.in_group(users, items, config.in_group_negatives, owned, rng)
        easy = self._sampler.easy(users, config.easy_negatives, owned, rng)
        counts["train_windows"] += len(lengths)
        counts["train_positives"] += len(targets)
        counts["absent_negatives"] += int((in_group == PADDING_INDEX).sum() + (easy == PADDING_INDEX).sum())
        return {
            WindowField.USER_INDEX: Ragged.scalars(block.user_index[block.users[spans.starts]]),
            WindowField.NUM_CONTEXT: Ragged.scalars(np.ones(len(lengths), np.int64)),
            WindowField.ITEM_INDEX: Ragged(block.items[positions], lengths),
            WindowField.GROUP_ID: Ragged(self._groups[block.items[positions] - 1], lengths),
            WindowField.FEEDBACK_LEVEL: Ragged(block.levels[positions], lengths),
            WindowField.TIMESTAMP: Ragged(block.times[positions] // 1_000_000, lengths),
            WindowField.IN_GROUP_NEGATIVES: Ragged(in_group, spans.num_targets * config.in_group_negatives),
            WindowField.EASY_NEGATIVES: Ragged(easy, spans.num_targets * config.easy_negatives),
        }
