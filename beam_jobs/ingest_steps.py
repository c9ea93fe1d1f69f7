"""The DoFns of ingest. Events travel as packed Arrow tables, never as rows."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.buckets.bucket_file import EVENT_SCHEMA, num_tied, steps_by_item, write_bucket
from beam_jobs.buckets.splits import by_time, leave_one_out, time_quantile
from beam_jobs.common.arrays import Int8, Int64
from beam_jobs.common.hashing import hash_strings
from beam_jobs.common.payload import one_array, pack, pack_parts, unpack
from beam_jobs.event_log.dead_letters import DeadLetters
from beam_jobs.event_log.event_columns import ToldValues, validate
from beam_jobs.event_log.event_files import read_batches, wanted_columns
from beam_jobs.event_log.id_shapes import id_shapes, merge_shapes
from beam_jobs.event_log.span_statistics import LATE
from contracts.config import DataConfig
from contracts.layout import Events
from contracts.names import EventColumn

_MERGED_AT_ONCE = 16
_EARLIEST = 662_688_000_000_000
"""1991-01-01: no log begins earlier, and .NET ticks read as nanoseconds fall in 1990."""
_AHEAD_SECONDS = 366 * 86_400
_SECONDS_SCHEMA = pa.schema([("second", pa.int64()), ("count", pa.int64())])


def empty_payload() -> bytes:
    """A packed table without events."""
    return pack(EVENT_SCHEMA.empty_table())


@dataclass(frozen=True)
class SplitPlan:
    """How events are split: at two moments in microseconds, or else by leave-one-out."""

    target_level: int
    min_user_events: int
    validation_start: int | None = None
    test_start: int | None = None

    def assign(self, events: pa.Table) -> Int8:
        """[num_events] `Split` of ordered events."""
        if self.validation_start is not None and self.test_start is not None:
            return by_time(events[EventColumn.TIMESTAMP].to_numpy(), self.validation_start, self.test_start)
        users, items = (
            one_array(events[name]).indices.to_numpy().astype(np.int64)
            for name in (EventColumn.USER_ID, EventColumn.ITEM_ID)
        )
        positives = np.flatnonzero(events[EventColumn.FEEDBACK_LEVEL].to_numpy() >= self.target_level)
        pairs = users[positives] * (items.max(initial=0) + 1) + items[positives]
        # Only a pair's first event: items a user had before are not recommended, so a repeat would measure nothing.
        can_be_target = np.zeros(len(users), bool)
        can_be_target[positives[np.unique(pairs, return_index=True)[1]]] = True
        return leave_one_out(users, can_be_target, self.min_user_events)

    def describe(self) -> dict[str, int]:
        if self.validation_start is None or self.test_start is None:
            return {}
        return {"validation_start": self.validation_start, "test_start": self.test_start}


class ReadEvents(beam.DoFn):
    """(number, path) -> (bucket, packed events); the file's summary on a side output, its dead letters in a file."""

    SUMMARIES = "summaries"

    def __init__(self, data: DataConfig, events: Events) -> None:
        self._data = data
        self._events = events

    def process(self, element: tuple[int, str]) -> Iterator[tuple[int, bytes] | beam.pvalue.TaggedOutput]:
        number, path = element
        told: dict[str, list[ToldValues]] = defaultdict(list)
        rows, error = 0, None
        with DeadLetters(path) as letters:
            try:
                for raw in read_batches(path, list(wanted_columns(self._data)), self._data):
                    batch = validate(raw, self._data)
                    rows += batch.events.num_rows + batch.dead_letters.num_rows
                    letters.add(batch.dead_letters)
                    for name, of_batch in batch.told.items():
                        told[name].append(of_batch)
                    yield from _by_bucket(batch.events, self._data.num_buckets)
            except ValueError as failure:  # reported by the driver, in plain words on any runner
                error = str(failure)
            letters.write(self._events.dead_letters(number))
        summary = {"kind": "file", "source": path, "rows": rows, "reasons": letters.reasons}
        summary |= {"examples": letters.examples, "error": error}
        summary |= {"told": {name: merge_told(parts) for name, parts in told.items()}}
        yield beam.pvalue.TaggedOutput(self.SUMMARIES, summary)


def merge_told(parts: Sequence[ToldValues]) -> ToldValues:
    """Merges the values of a request feature in several batches or files."""
    total: Counter[str] = Counter()
    for counts, _ in parts:
        total.update(counts)
    return dict(total), max((example for _, example in parts), default="")


def _by_bucket(events: pa.Table, num_buckets: int) -> Iterator[tuple[int, bytes]]:
    users = one_array(events[EventColumn.USER_ID])
    of_user = (hash_strings(users.dictionary) % np.uint64(num_buckets)).astype(np.int64)
    return pack_parts(events, of_user[users.indices.to_numpy()], num_buckets, EVENT_SCHEMA)


class WriteBucket(beam.DoFn):
    """(bucket, packed events) -> its Parquet file; yields the bucket's summary."""

    def __init__(self, events: Events, num_buckets: int, plan: SplitPlan) -> None:
        self._events = events
        self._num_buckets = num_buckets
        self._plan = plan

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[dict[str, Any]]:
        bucket, payloads = element
        path = self._events.bucket(bucket, self._num_buckets)
        table, counts = write_bucket(path, unpack(payloads), self._plan)
        users, times = one_array(table[EventColumn.USER_ID]), table[EventColumn.TIMESTAMP].to_numpy()
        first, last = (int(times.min()), int(times.max())) if len(times) else (None, None)
        late = int(np.quantile(times, LATE, method="lower")) if len(times) else None
        of_level = np.bincount(table[EventColumn.FEEDBACK_LEVEL].to_numpy()).tolist()
        # Counted here, not per file: how many files a log is written in says nothing about its ids.
        shapes = {
            name: merge_shapes([id_shapes(one_array(table[name]).dictionary)])
            for name in (EventColumn.USER_ID, EventColumn.ITEM_ID)
        }
        is_unlikely = (times < _EARLIEST) | (times > (time.time() + _AHEAD_SECONDS) * 1e6)
        yield {
            "kind": "bucket", "counts": counts, "first": first, "last": last, "late": late, "levels": of_level,
            "busiest": _busiest(users), "tied": num_tied(table), "unlikely": int(is_unlikely.sum()),
            "shapes": shapes, "steps": steps_by_item(table),
        }  # fmt: skip


def _busiest(users: pa.DictionaryArray) -> tuple[int, str]:
    """The most events of one user, and that user's id."""
    per_user = np.bincount(users.indices.to_numpy(), minlength=1)
    most = int(per_user.argmax())
    return int(per_user[most]), users.dictionary[most].as_py() if len(users) else ""


class TargetSeconds(beam.DoFn):
    """path -> packed (second, count) of its target-level events; on a side output, why a file cannot be read."""

    ERRORS = "errors"

    def __init__(self, data: DataConfig) -> None:
        self._data = data

    def process(self, path: str) -> Iterator[bytes | beam.pvalue.TaggedOutput]:
        try:
            for raw in read_batches(path, list(wanted_columns(self._data)), self._data):
                events = validate(raw, self._data).events
                target = pc.greater_equal(events[EventColumn.FEEDBACK_LEVEL], self._data.feedback.target_level_index)
                times = events.filter(target)[EventColumn.TIMESTAMP].to_numpy()
                seconds, counts = np.unique(times // 1_000_000, return_counts=True)
                yield pack(_seconds_table(seconds, counts))
        except ValueError as failure:
            # The driver reports it: if the main pass could read the file, the split's times would lack its events.
            yield beam.pvalue.TaggedOutput(self.ERRORS, {"error": str(failure)})


def merge_seconds(payloads: Iterable[bytes]) -> bytes:
    """Sums the counts of equal seconds; used by Beam as an associative combiner.

    It merges a few at a time: there are at least as many payloads as files, each with all the seconds of its events.
    """
    rest, merged = iter(payloads), _SECONDS_SCHEMA.empty_table()
    while some := list(islice(rest, _MERGED_AT_ONCE)):
        table = pa.concat_tables([merged, unpack(some)])
        seconds, places = np.unique(table["second"].to_numpy(), return_inverse=True)
        counts = np.zeros(len(seconds), np.int64)
        np.add.at(counts, places, table["count"].to_numpy())
        merged = _seconds_table(seconds, counts)
    return pack(merged)


def _seconds_table(seconds: Int64, counts: Int64) -> pa.Table:
    return pa.table([pa.array(seconds, pa.int64()), pa.array(counts, pa.int64())], _SECONDS_SCHEMA)


def quantiles_of(payload: bytes, quantiles: Sequence[float]) -> list[int]:
    """The second at each quantile of a packed table, see `time_quantile`; none if it is empty."""
    seconds, counts = (column.to_numpy() for column in unpack([payload]).columns)
    return [time_quantile(seconds, counts, quantile) for quantile in quantiles] if len(seconds) else []
