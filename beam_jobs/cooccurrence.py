"""Which items keep company: weighted co-occurrence counts within a window of each user's training events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import scipy.sparse as sp

from beam_jobs.beam_run import write_parquet
from beam_jobs.bucket_events import Vocabulary
from beam_jobs.payload import pack, unpack
from contracts.layout import ItemStatistics
from contracts.names import Split

Int64 = npt.NDArray[np.int64]

UNIT = 1 << 20
"""Weights are whole multiples of 1 / UNIT: integer sums do not depend on the order of the bundles."""

_ROWS_PER_BLOCK = 1 << 14
_SCHEMA = pa.schema([("row", pa.int64()), ("column", pa.int64()), ("weight", pa.int64())])


class CountCompany(beam.PTransform):
    """Bucket files -> one Parquet file a block of rows of the upper triangle; yields the files' names."""

    def __init__(self, statistics: ItemStatistics, target_level: int, window: int, output: Path) -> None:
        super().__init__()
        self._statistics = statistics
        self._target_level = target_level
        self._window = window
        self._output = str(output)

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        return (
            paths
            | "CountPairs" >> beam.ParDo(_CountPairs(self._statistics, self._target_level, self._window))
            | "SumBlocks" >> beam.CombinePerKey(sum_pairs)
            | "WriteBlocks" >> beam.ParDo(_WriteBlock(self._output))
        )


class _CountPairs(beam.DoFn):
    """Bucket file -> (block of rows, packed pairs)."""

    def __init__(self, statistics: ItemStatistics, target_level: int, window: int) -> None:
        self._statistics = statistics
        self._target_level = target_level
        self._window = window

    def setup(self) -> None:
        self._vocabulary = Vocabulary(self._statistics)

    def process(self, path: str) -> Iterator[tuple[int, bytes]]:
        events = self._vocabulary.read_bucket(path)
        train = events.where((events.levels >= self._target_level) & (events.splits == Split.TRAIN))
        rows, columns, weights = count_pairs(train.users, train.items - 1, self._window)
        blocks = rows // _ROWS_PER_BLOCK
        bounds = np.searchsorted(blocks, np.arange(int(blocks[-1]) + 2)) if len(blocks) else np.zeros(1, np.int64)
        for block in np.flatnonzero(np.diff(bounds)).tolist():
            part = slice(bounds[block], bounds[block + 1])
            yield block, _pack(rows[part], columns[part], weights[part])


def count_pairs(users: Int64, items: Int64, window: int) -> tuple[Int64, Int64, Int64]:
    """Sums UNIT / distance over pairs of a user's events at most `window` apart.

    Args:
        users: [num_events] user numbers, ascending.
        items: [num_events] 0-based items in the user's order.
        window: greatest distance.

    Returns:
        rows, columns (row < column) and weights of distinct pairs, sorted.
    """
    keys, weights = [], []
    width = int(items.max(initial=0)) + 1
    for distance in range(1, window + 1):
        same = users[distance:] == users[:-distance]
        left, right = items[:-distance][same], items[distance:][same]
        different = left != right
        low, high = np.minimum(left, right)[different], np.maximum(left, right)[different]
        distinct, counts = np.unique(low * width + high, return_counts=True)
        keys.append(distinct)
        weights.append(counts * round(UNIT / distance))
    distinct, place = np.unique(np.concatenate(keys), return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, place, np.concatenate(weights))
    return distinct // width, distinct % width, sums


def sum_pairs(payloads: Iterable[bytes]) -> bytes:
    """Sums the weights of equal pairs; used by Beam as an associative combiner."""
    tables = list(payloads)
    if len(tables) == 1:
        return tables[0]
    table = unpack(tables) if tables else _SCHEMA.empty_table()
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    width = int(columns.max(initial=0)) + 1
    distinct, place = np.unique(rows * width + columns, return_inverse=True)
    sums = np.zeros(len(distinct), np.int64)
    np.add.at(sums, place, table["weight"].to_numpy())
    return _pack(distinct // width, distinct % width, sums)


def _pack(rows: Int64, columns: Int64, weights: Int64) -> bytes:
    return pack(pa.table([pa.array(rows), pa.array(columns), pa.array(weights)], _SCHEMA))


class _WriteBlock(beam.DoFn):
    def __init__(self, output: str) -> None:
        self._output = output

    def process(self, element: tuple[int, bytes]) -> Iterator[str]:
        block, payload = element
        path = f"{self._output}-{block:06d}.parquet"
        write_parquet(unpack([payload]), Path(path))
        yield path


def company_matrix(table: pa.Table, num_items: int) -> sp.csr_matrix:
    """The symmetric [num_items, num_items] matrix of a table of pairs."""
    rows, columns = table["row"].to_numpy(), table["column"].to_numpy()
    weights = table["weight"].to_numpy() / UNIT
    upper = sp.coo_matrix((weights, (rows, columns)), shape=(num_items, num_items)).tocsr()
    return (upper + upper.T).tocsr()
