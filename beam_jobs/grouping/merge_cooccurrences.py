"""The co-occurrence of a run's training events: the sum over its spans, or counted anew if it has none."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from beam_jobs.common.arrays import Int64
from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import write_parquet
from beam_jobs.common.id_index import IdIndex
from beam_jobs.common.payload import encode_ids, one_array, pack_parts, unpack
from beam_jobs.grouping.cooccurrence import CountCooccurrences, PairKeys, TrainingPairs
from beam_jobs.grouping.span_cooccurrences import BACK, HIGH, LOW, WEIGHT, identity_of
from contracts.artifact import current, find_manifest, read_manifest
from contracts.config import Config
from contracts.layout import ItemStatistics, Workdir
from contracts.names import ItemColumn
from contracts.storage import as_path

SPANS, LEARNT_SINCE = "spans", "learnt_since"
"""Details of merged events: the spans' co-occurrence, oldest first, and the moment (microseconds) from which on events
are trained on without being counted there; None if there are none."""


def count_cooccurrences(
    config: Config, workdir: Workdir, output: Path, num_items: int, since: int | None
) -> list[Path]:
    """Files of the training events' co-occurrence, see `MergeCooccurrences` and `CountCooccurrences`.

    Args:
        output: what the files' names begin with, in a directory that workers can write to.
        since: microseconds; only for spans that begin then or later, or pairs whose later event was then or later.
    """
    statistics, folder = ItemStatistics(current(workdir.item_statistics.path)), current(workdir.events.path)
    events = read_manifest(folder)
    # Every bucket sends something to every block, so as many blocks as buckets would be too much to shuffle.
    num_blocks = min(config.data.num_buckets, 8 * math.isqrt(config.data.num_buckets))
    keys = PairKeys(num_items, config.groups.cooccurrence_window, num_blocks)
    level = config.data.feedback.target_level_index
    buckets: list[Any] = [folder / name for name in events.files]
    if SPANS not in events.details:
        count = CountCooccurrences(TrainingPairs(statistics, level, keys, since), output)
        return sorted(map(as_path, collect(config.beam, buckets, count, output.parent)))
    learnt_since = events.details.get(LEARNT_SINCE)
    merge = MergeCooccurrences(TrainingPairs(statistics, level, keys, learnt_since), output)
    sources = sources_of(events.details, since) + ([] if learnt_since is None else buckets)
    return sorted(map(as_path, collect(config.beam, sources, merge, output.parent)))


def sources_of(details: dict[str, Any], since: int | None) -> list[Any]:
    """[num_buckets] lists of (file of pairs, reach), of the spans that the details of merged events name.

    A span's reach is how many spans of the window lie before it.

    Args:
        since: microseconds; only for spans that begin then or later.

    Raises:
        ValueError: a span's pairs were counted anew for another config or window since the merge.
    """
    found: dict[str, list[tuple[str, int]]] = {}
    for reach, span in enumerate(details[SPANS]):
        if since is None or span["start"] >= since:
            folder = Path(span["cooccurrences"])
            if not _is_as_merged(span):
                raise ValueError(
                    f"{folder} is gone, or was counted anew, for another config or window, after its span was merged: "
                    "run again from the first stage (for a retrain, call it again)"
                )
            for name in read_manifest(folder).files:
                found.setdefault(name, []).append((str(folder / name), reach))
    return list(found.values())


def is_as_merged(details: dict[str, Any]) -> bool:
    """Whether the pairs of all spans that the details of merged events name are still those that were merged."""
    return all(_is_as_merged(span) for span in details.get(SPANS, []))


def _is_as_merged(span: dict[str, Any]) -> bool:
    folder = Path(span["cooccurrences"])
    return find_manifest(folder) is not None and identity_of(folder) == span["identity"]


class MergeCooccurrences(beam.PTransform):
    """Sums pairs: sources -> one Parquet file (row < column, weight) per block of items; yields the files' names.

    A source is one of `sources_of`, or a file of merged events, of which the pairs since `learnt_since` are counted.
    """

    def __init__(self, learnt: TrainingPairs, output: Path) -> None:
        super().__init__()
        self._learnt = learnt
        self._output = output

    def expand(self, sources: beam.PCollection) -> beam.PCollection:
        return (
            sources
            | "ReadPairs" >> beam.ParDo(_ReadPairs(self._learnt))
            | "ByBlock" >> beam.GroupByKey()
            | "SumPairs" >> beam.ParDo(_SumPairs(self._output))
        )


class _ReadPairs(beam.DoFn):
    """Source -> (block, packed sums by pair)."""

    def __init__(self, learnt: TrainingPairs) -> None:
        self._learnt = learnt

    def setup(self) -> None:
        ids = pq.read_table(self._learnt.statistics.items, columns=[ItemColumn.ITEM_ID], use_threads=False)
        self._index = IdIndex(one_array(ids.column(0)))

    def process(self, source: list[tuple[str, int]] | Path) -> Iterator[tuple[int, bytes]]:
        keys = self._learnt.keys
        if isinstance(source, Path):
            pairs = _summed(*keys.sums([self._learnt.of_bucket(source)]))
        else:
            table = pa.concat_tables([_pairs_within(path, reach) for path, reach in source])
            low, high = self._numbers(table[LOW]), self._numbers(table[HIGH])
            pairs = _summed(np.minimum(low, high), np.maximum(low, high), table[WEIGHT].to_numpy())
        yield from pack_parts(pairs, pairs["row"].to_numpy() % keys.num_blocks, keys.num_blocks)

    def _numbers(self, column: pa.ChunkedArray) -> Int64:
        """[num_pairs] 0-based items, all of which are in the catalogue."""
        ids, places = encode_ids(column)
        return self._index.find(ids)[places] - 1


def _pairs_within(path: str, reach: int) -> pa.Table:
    """The pairs of a file whose earlier event arrived at most `reach` spans before."""
    table = pq.read_table(path, use_threads=False)
    within = table[BACK].to_numpy() <= reach
    return table if within.all() else table.filter(pa.array(within))


class _SumPairs(beam.DoFn):
    """(block, packed sums by pair) -> the block's file, each pair once."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[str]:
        block, payloads = element
        parts = unpack(payloads)
        path = self._output.with_name(f"{self._output.name}-{block:06d}.parquet")
        write_parquet(_summed(*(parts[name].to_numpy() for name in ("row", "column", "weight"))), path)
        yield str(path)


def _summed(rows: npt.NDArray[np.integer], columns: npt.NDArray[np.integer], weights: Int64) -> pa.Table:
    """(row, column, sum of weights) of each pair once, in ascending order."""
    size = int(max(rows.max(initial=0), columns.max(initial=0))) + 1
    sums = sp.coo_matrix((weights, (rows, columns)), shape=(size, size)).tocsr().tocoo()
    return pa.table({"row": sums.row.astype(np.int32), "column": sums.col.astype(np.int32), "weight": sums.data})
