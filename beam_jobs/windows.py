"""Windows: bucketed events -> group-tagged TFRecords with negatives, one shard a bucket and split."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from isal import igzip

from beam_jobs.beam_run import CollectSummaries, pipeline, take_summaries, write_whole
from beam_jobs.example_encoder import Ragged, encode_examples
from beam_jobs.negative_sampler import GroupSampler
from beam_jobs.window_builder import Positives, evaluation_users, training_windows
from contracts.artifact import Manifest, read_manifest, writing
from contracts.config import Config
from contracts.layout import Events, ItemGroups, ItemStatistics, Windows, Workdir
from contracts.names import EventColumn, ItemColumn, Split, UserColumn

logger = logging.getLogger(__name__)

_COMPRESSION_LEVEL = 1


class WriteShards(beam.DoFn):
    """bucket -> its shard of every split; yields counts."""

    def __init__(
        self, config: Config, events: Events, statistics: ItemStatistics, groups: ItemGroups, windows: Windows
    ) -> None:
        self._config = config
        self._events = events
        self._statistics = statistics
        self._groups = groups
        self._windows = windows

    def setup(self) -> None:
        items = pq.read_table(self._statistics.items, columns=[ItemColumn.ITEM_ID, ItemColumn.SAMPLING_PROBABILITY])
        users = pq.read_table(self._statistics.users, columns=[UserColumn.USER_ID])
        groups = pq.read_table(self._groups.groups, columns=[ItemColumn.GROUP_ID])
        self._item_ids = items[ItemColumn.ITEM_ID].combine_chunks()
        self._user_ids = users[UserColumn.USER_ID].combine_chunks()
        group_id = groups[ItemColumn.GROUP_ID].to_numpy().astype(np.int64)
        weights = items[ItemColumn.SAMPLING_PROBABILITY].to_numpy()
        self._in_group = GroupSampler(weights, group_id, int(group_id.max()) + 1)
        self._whole = GroupSampler(weights, np.zeros_like(group_id), 1)

    def process(self, bucket: int) -> Iterator[dict[str, int]]:
        settings, num_buckets = self._config.windows, self._config.data.num_buckets
        events = self._positives(bucket)
        rng = np.random.default_rng([self._config.seed, bucket])
        train = events.select(events.split == Split.TRAIN)
        features, counts = training_windows(train, settings, self._in_group, self._whole, rng)
        self._write(Split.TRAIN, bucket, features)
        for split in (Split.VALIDATION, Split.TEST):
            features, more = evaluation_users(events, split, settings.length)
            self._write(split, bucket, features)
            counts |= more
        logger.debug("windows: bucket %d of %d: %s", bucket + 1, num_buckets, counts)
        yield counts

    def _positives(self, bucket: int) -> Positives:
        table = pq.read_table(self._events.bucket(bucket, self._config.data.num_buckets), use_threads=False)
        target_level = self._config.data.feedback.target_level_index
        table = table.filter(pc.greater_equal(table[EventColumn.FEEDBACK_LEVEL], target_level))
        users, user_ids = _codes(table[EventColumn.USER_ID])
        items, item_ids = _codes(table[EventColumn.ITEM_ID])
        present, user = np.unique(users, return_inverse=True)
        return Positives(
            user=user,
            user_index=_index_of(user_ids, self._user_ids)[present],
            item_index=_index_of(item_ids, self._item_ids)[items],
            feedback_level=table[EventColumn.FEEDBACK_LEVEL].to_numpy().astype(np.int64),
            timestamp=table[EventColumn.TIMESTAMP].to_numpy() // 1_000_000,
            split=table[EventColumn.SPLIT].to_numpy().astype(np.int64),
        )

    def _write(self, split: Split, bucket: int, features: dict[str, Ragged]) -> None:
        records = igzip.compress(encode_examples(features), _COMPRESSION_LEVEL, mtime=0)
        path = self._windows.shard(split, bucket, self._config.data.num_buckets)
        write_whole(path, lambda staging: staging.write_bytes(records))


def _codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], pa.Array]:
    """Each row's place among the distinct ids, and those ids."""
    encoded = column.combine_chunks()
    if not pa.types.is_dictionary(encoded.type):
        encoded = encoded.dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.cast(pa.string())


def _index_of(ids: pa.Array, vocabulary: pa.Array) -> npt.NDArray[np.int64]:
    """[num_ids] place in the vocabulary + 1; 0 where an id is unknown."""
    return pc.fill_null(pc.index_in(ids, value_set=vocabulary), -1).to_numpy().astype(np.int64) + 1


def run(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the `Windows` artifact from events, item statistics and item groups.

    Raises:
        ValueError: an input artifact is missing, or no user has two positives to train on.
    """
    for needed in (workdir.events.path, workdir.item_statistics.path, workdir.item_groups.path):
        read_manifest(needed)
    buckets = range(config.data.num_buckets)
    with writing(workdir.windows.path, Windows.KIND, fingerprint) as writer:
        staged = Windows(writer.path)
        summary_path = writer.path / "summaries.jsonl"
        with pipeline(config) as p:
            (
                p
                | "Buckets" >> beam.Create(list(buckets))
                | "Spread" >> beam.Reshuffle()
                | "WriteShards"
                >> beam.ParDo(WriteShards(config, workdir.events, workdir.item_statistics, workdir.item_groups, staged))
                | "Summaries" >> CollectSummaries(summary_path)
            )
        totals: Counter[str] = Counter()
        for summary in take_summaries(summary_path):
            totals.update(summary)
        if not totals["positives"]:
            raise ValueError(
                f"no user of {workdir.events.path} has two events to train on (after the validation and test events "
                "are set apart): give the log longer histories, or lower data.feedback.target_level"
            )
        writer.counts.update(totals)
        writer.files = [staged.shard(split, bucket, len(buckets)).name for split in Split for bucket in buckets]
        writer.details.update(
            in_group_negatives=config.windows.in_group_negatives, easy_negatives=config.windows.easy_negatives
        )
        logger.info("windows: %s positives in %s windows", f"{totals['positives']:,}", f"{totals['windows']:,}")
    return read_manifest(workdir.windows.path)


if __name__ == "__main__":
    from beam_jobs.command import main

    main("beam_jobs.windows")
