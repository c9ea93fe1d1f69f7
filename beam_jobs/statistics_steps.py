"""The DoFns of statistics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Bool, Float64, Int64
from beam_jobs.common.files import read_parquet, write_parquet
from beam_jobs.common.hashing import hash_strings
from beam_jobs.common.payload import encode_ids, one_array, pack, pack_parts, unpack
from contracts.layout import ItemStatistics
from contracts.names import EventColumn, ItemColumn, Split, UserColumn
from contracts.storage import as_path, write_text

_LEAST_COUNT = 0.5
"""An item never seen in training still gets drawn, half as often as one seen once (at exponent 1)."""

_ITEMS = pa.schema(
    [
        (ItemColumn.ITEM_ID, pa.string()),
        (ItemColumn.TRAIN_COUNT, pa.int64()),
        (ItemColumn.TOTAL_COUNT, pa.int64()),
        (ItemColumn.FIRST_SEEN, pa.int64()),
        (ItemColumn.LAST_SEEN, pa.int64()),
    ]
)
_USERS = pa.schema([(UserColumn.USER_ID, pa.string()), (UserColumn.TRAIN_COUNT, pa.int64())])

_MOST_ID_BYTES = 2**31 - 1

_AGGREGATES = {
    ItemColumn.TRAIN_COUNT: "sum",
    ItemColumn.TOTAL_COUNT: "sum",
    ItemColumn.FIRST_SEEN: "min",
    ItemColumn.LAST_SEEN: "max",
}


def sampling_probabilities(train_counts: Int64, exponent: float) -> Float64:
    """[num_items] max(count, 0.5) ** exponent, normalised: the probabilities by which negatives are drawn."""
    weights = np.maximum(train_counts, _LEAST_COUNT).astype(np.float64) ** exponent
    return weights / weights.sum()


def count_events(table: pa.Table, trained: Bool) -> tuple[pa.Table, pa.Table]:
    """Counts of the items and of the users of some events, one row each.

    Args:
        table: `EventColumn`s.
        trained: [num_events] which events are training positives.
    """
    items, item_of = encode_ids(table[EventColumn.ITEM_ID])
    users, user_of = encode_ids(table[EventColumn.USER_ID])
    times = table[EventColumn.TIMESTAMP].to_numpy()
    first = np.full(len(items), np.iinfo(np.int64).max)
    last = np.full(len(items), np.iinfo(np.int64).min)
    np.minimum.at(first, item_of, times)
    np.maximum.at(last, item_of, times)
    counts = [
        np.bincount(item_of[trained], minlength=len(items)),
        np.bincount(item_of, minlength=len(items)),
        first,
        last,
    ]
    of_users = pa.array(np.bincount(user_of[trained], minlength=len(users)))
    return pa.table([items, *map(pa.array, counts)], _ITEMS), pa.table([users, of_users], _USERS)


class CountBucket(beam.DoFn):
    """Source of counts -> (partition of items, packed item counts); users' counts on a side output.

    A source is one of
        {"events": a bucket's file}, whose events' splits say what is trained on;
        {"events": a file of a span, "before": microseconds}, whose earlier events are trained on;
        {"items": file, "users": file}, a span's `SpanParts`, all of which is trained on.
    """

    USERS = "users"

    def __init__(self, target_level: int, num_partitions: int) -> None:
        self._target_level = target_level
        self._num_partitions = num_partitions

    def process(self, source: dict[str, Any]) -> Iterator[tuple[int, bytes] | beam.pvalue.TaggedOutput]:
        items, users = self._counts(source)
        hashes = hash_strings(one_array(items[ItemColumn.ITEM_ID]))
        partitions = (hashes % np.uint64(self._num_partitions)).astype(np.int64)
        yield from pack_parts(items, partitions, self._num_partitions)
        yield beam.pvalue.TaggedOutput(self.USERS, (0, pack(users)))

    def _counts(self, source: dict[str, Any]) -> tuple[pa.Table, pa.Table]:
        if "items" in source:
            items, users = (read_parquet(as_path(source[name])) for name in ("items", "users"))
            return items.cast(_ITEMS), users.cast(_USERS)
        table = read_parquet(as_path(source["events"]))
        trained = table[EventColumn.FEEDBACK_LEVEL].to_numpy() >= self._target_level
        if "before" in source:
            trained &= table[EventColumn.TIMESTAMP].to_numpy() < source["before"]
        else:
            trained &= table[EventColumn.SPLIT].to_numpy() == Split.TRAIN
        return count_events(table, trained)


class MergeCounts(beam.DoFn):
    """(partition, packed counts) -> (0, packed counts), one row per item."""

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[int, bytes]]:
        yield 0, pack(sum_items(unpack(element[1])))


def sum_items(counts: pa.Table) -> pa.Table:
    """Counts of items, summed to one row per item."""
    return _summed(counts, _ITEMS)


def _summed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Sums a table to one row per id."""
    identity, *names = schema.names
    merged = table.group_by(identity, use_threads=False).aggregate([(name, _AGGREGATES[name]) for name in names])
    return merged.select([identity, *(f"{name}_{_AGGREGATES[name]}" for name in names)]).rename_columns(schema.names)


class WriteItems(beam.DoFn):
    """(0, packed counts) -> items.parquet and the item vocabulary."""

    def __init__(self, statistics: ItemStatistics, exponent: float, known_ids: Path | None) -> None:
        self._statistics = statistics
        self._exponent = exponent
        self._known_ids = known_ids

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[dict[str, int]]:
        table = _with_known_ids(unpack(element[1]), self._known_ids, _ITEMS)
        table = _by_count(table, ItemColumn.TRAIN_COUNT, ItemColumn.ITEM_ID)
        counts = table[ItemColumn.TRAIN_COUNT].to_numpy()
        probabilities = sampling_probabilities(counts, self._exponent)
        table = table.add_column(3, ItemColumn.SAMPLING_PROBABILITY, pa.array(probabilities))
        write_parquet(table, self._statistics.items)
        _write_vocabulary(table[ItemColumn.ITEM_ID], self._statistics.item_vocabulary)
        yield {
            "items": table.num_rows,
            "items_in_training": int((counts > 0).sum()),
            "items_never_seen": table[ItemColumn.FIRST_SEEN].null_count,
        }


class WriteUsers(beam.DoFn):
    """(0, packed counts) -> users.parquet and the user vocabulary."""

    def __init__(self, statistics: ItemStatistics, known_ids: Path | None) -> None:
        self._statistics = statistics
        self._known_ids = known_ids

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[dict[str, int]]:
        # A user is in one bucket, but may be in many spans.
        table = _with_known_ids(_summed(unpack(element[1]), _USERS), self._known_ids, _USERS)
        table = _by_count(table, UserColumn.TRAIN_COUNT, UserColumn.USER_ID)
        write_parquet(table, self._statistics.users)
        _write_vocabulary(table[UserColumn.USER_ID], self._statistics.user_vocabulary)
        yield {"users": table.num_rows}


def _with_known_ids(table: pa.Table, path: Path | None, schema: pa.Schema) -> pa.Table:
    """Adds the ids of a feature table that are not in the log, with counts of 0 and null times."""
    if path is None:
        return table
    ids = read_parquet(path)["id"]
    new = ids.filter(pc.invert(pc.is_in(ids, table[schema.names[0]])))
    empty = [
        pa.nulls(len(new), field.type)
        if field.name in (ItemColumn.FIRST_SEEN, ItemColumn.LAST_SEEN)
        else pa.array(np.zeros(len(new), np.int64))
        for field in list(schema)[1:]
    ]
    return pa.concat_tables([table, pa.table([new, *empty], schema)])


def _by_count(table: pa.Table, count: str, identity: str) -> pa.Table:
    """Most frequent first, ties by the id's bytes: the same on every runner.

    Raises:
        ValueError: the ids are more text than one Arrow array holds, and all later steps read them as one.
    """
    num_bytes = pc.sum(pc.binary_length(table[identity])).as_py() or 0
    if num_bytes > _MOST_ID_BYTES:
        raise ValueError(
            f"{identity}: the {table.num_rows:,} distinct ids are {num_bytes:,} bytes of text, more than the limit of "
            f"{_MOST_ID_BYTES:,}: write shorter ids, such as numbers, to the log and the tables"
        )
    keys = pa.table({"count": table[count], "id": table[identity].cast(pa.binary())})
    return table.take(pc.sort_indices(keys, sort_keys=[("count", "descending"), ("id", "ascending")])).combine_chunks()


def _write_vocabulary(ids: pa.ChunkedArray, path: Path) -> None:
    write_text(path, "".join(f"{value}\n" for value in ids.to_pylist()))
