"""Which items co-occur: weighted co-occurrence counts within a window of each user's training events.

A pair of items at some distance is coded as one integer, so pairs can be counted by sorting, which NumPy
does with vector instructions: ten times faster than looking up each pair. Pairs are dealt out to blocks by
their lower item, in turn, so that popular items, which have low numbers, do not end up in the same block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_jobs.buckets.bucket_events import Vocabulary
from beam_jobs.common.arrays import Bool, Int64
from beam_jobs.common.files import write_parquet
from beam_jobs.common.payload import pack_sorted, unpack_sorted
from contracts.layout import ItemStatistics
from contracts.names import Split

UNIT = 1 << 20
"""Weights are whole multiples of 1 / UNIT: integer sums do not depend on the order of the bundles."""

_SUMMED_AT_ONCE = 1 << 23
"""Keys of a block (64 MiB) that are collected before they are summed: all keys, if it has no popular items."""


@dataclass(frozen=True)
class PairKeys:
    """Codes (low item, high item, distance) as one int64, with pairs of a block side by side, and decodes it.

    Attributes:
        num_items: size of the catalogue; its square times twice the window must fit 63 bits.
        window: greatest distance, in events of a user.
        num_blocks: number of blocks among which the pairs are dealt out.
    """

    num_items: int
    window: int
    num_blocks: int

    def of_events(self, users: Int64, items: Int64, is_new: Bool | None = None) -> Int64:
        """[num_pairs] sorted keys of all pairs of different items that co-occur.

        Args:
            users: [num_events] user numbers, ascending.
            items: [num_events] 0-based items in the user's order.
            is_new: [num_events] whether an event may be the later one of a pair; None: any may.
        """
        keys = [np.zeros(0, np.int64)]
        for distance in range(1, self.window + 1):
            left, right = items[:-distance], items[distance:]
            is_pair = (users[distance:] == users[:-distance]) & (left != right)
            if is_new is not None:
                is_pair &= is_new[distance:]
            left, right = left[is_pair], right[is_pair]
            low, high = np.minimum(left, right), np.maximum(left, right)
            row = low % self.num_blocks * self._rows_per_block + low // self.num_blocks
            keys.append((row * self.num_items + high << self._distance_bits) + distance)
        return np.sort(np.concatenate(keys))

    def block_bounds(self, keys: Int64) -> Int64:
        """[num_blocks + 1] where each block starts among sorted keys, and where the last one ends."""
        width = self._rows_per_block * self.num_items << self._distance_bits
        return np.searchsorted(keys, np.arange(self.num_blocks + 1) * width)

    def sums(self, parts: Iterable[Int64]) -> tuple[Int64, Int64, Int64]:
        """[num_pairs] low item, high item and sum of UNIT / distance of each distinct pair in the keys of all parts.

        Keys are never all summed at once: two popular items have one for each time they co-occur.
        """
        none = np.zeros(0, np.int64)
        pairs, weights, waiting, number = none, none, [none], 0
        for part in parts:
            waiting.append(part)
            number += len(part)
            if number >= max(_SUMMED_AT_ONCE, len(pairs)):  # the more pairs there are, the less often they are merged
                pairs, weights = self._added(pairs, weights, np.concatenate(waiting))
                waiting, number = [none], 0
        pairs, weights = self._added(pairs, weights, np.concatenate(waiting))
        row, high = np.divmod(pairs, self.num_items)
        block, place = np.divmod(row, self._rows_per_block)
        return place * self.num_blocks + block, high, weights

    def _added(self, pairs: Int64, weights: Int64, keys: Int64) -> tuple[Int64, Int64]:
        """Adds more keys to distinct pairs, which stay in ascending order, and to their weights."""
        keys.sort()
        weight = np.array([0, *(round(UNIT / distance) for distance in range(1, self.window + 1))])
        new, of_new = _summed(keys >> self._distance_bits, weight[keys & ((1 << self._distance_bits) - 1)])
        if not len(pairs):
            return new, of_new
        pairs, weights = np.concatenate([pairs, new]), np.concatenate([weights, of_new])
        order = np.argsort(pairs, kind="stable")
        return _summed(pairs[order], weights[order])

    @property
    def _rows_per_block(self) -> int:
        return -(-self.num_items // self.num_blocks)

    @property
    def _distance_bits(self) -> int:
        return self.window.bit_length()


def _summed(pairs: Int64, weights: Int64) -> tuple[Int64, Int64]:
    """The distinct pairs among ascending ones, and the sum of each pair's weights."""
    starts = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[starts], np.add.reduceat(weights, starts) if len(starts) else weights


class TrainingPairs:
    """Finds what co-occurs in the training events of a bucket's file.

    Attributes:
        statistics: whose items have the numbers that are coded.
        keys: codes pairs.
    """

    def __init__(self, statistics: ItemStatistics, target_level: int, keys: PairKeys, since: int | None = None) -> None:
        """Takes pairs of events of at least a level.

        Args:
            since: microseconds; only pairs whose later event is at or after that time count. None: all.
        """
        self.statistics = statistics
        self.keys = keys
        self._target_level = target_level
        self._since = since

    @functools.cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.statistics)

    def of_bucket(self, path: Path) -> Int64:
        """[num_pairs] sorted keys."""
        events = self._vocabulary.read_bucket(path)
        train = events.where((events.levels >= self._target_level) & (events.splits == Split.TRAIN))
        is_new = None if self._since is None else train.times >= self._since
        return self.keys.of_events(train.users, train.items - 1, is_new)


class CountCooccurrences(beam.PTransform):
    """A bucket's file -> one Parquet file (row < column, weight) per block of items; yields the files' names."""

    def __init__(self, pairs: TrainingPairs, output: Path) -> None:
        super().__init__()
        self._pairs = pairs
        self._output = output

    def expand(self, buckets: beam.PCollection) -> beam.PCollection:
        return (
            buckets
            | "FindPairs" >> beam.ParDo(_FindPairs(self._pairs))
            | "ByBlock" >> beam.GroupByKey()
            | "SumBlocks" >> beam.ParDo(_SumBlock(self._pairs.keys, self._output))
        )


class _FindPairs(beam.DoFn):
    """A bucket's file -> (block, packed keys)."""

    def __init__(self, pairs: TrainingPairs) -> None:
        self._pairs = pairs

    def process(self, path: Path) -> Iterator[tuple[int, bytes]]:
        keys = self._pairs.of_bucket(path)
        bounds = self._pairs.keys.block_bounds(keys)
        for block in np.flatnonzero(np.diff(bounds)).tolist():
            yield block, pack_sorted(keys[bounds[block] : bounds[block + 1]])


class _SumBlock(beam.DoFn):
    """(block, packed keys) -> the block's file."""

    def __init__(self, keys: PairKeys, output: Path) -> None:
        self._keys = keys
        self._output = output

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[str]:
        block, payloads = element
        rows, columns, weights = self._keys.sums(map(unpack_sorted, payloads))
        path = self._output.with_name(f"{self._output.name}-{block:06d}.parquet")
        table = pa.table({"row": rows.astype(np.int32), "column": columns.astype(np.int32), "weight": weights})
        write_parquet(table, path)
        yield str(path)
