"""Co-occurrence by span: the pairs of items that each span adds, counted once and kept beside the span.

A user's events are taken in order of arrival: span by span, and by time within a span. A pair belongs to the span of
its later event and records how many spans earlier the other event arrived, so that pairs whose earlier event lies
before the window can be left out. The sum over a window's spans is then what `CountCooccurrences` counts in the merged
events, as long as time and arrival agree.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs.buckets.event_order import by_user_and_time, sort_with_places, ties
from beam_jobs.common.arrays import Bool, Int64
from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import write_parquet
from beam_jobs.common.payload import encode_ids
from beam_jobs.grouping.cooccurrence import UNIT
from contracts import artifact
from contracts.config import Config
from contracts.names import EventColumn
from contracts.store_layout import SpanParts

LOW, HIGH, BACK, WEIGHT = "low", "high", "back", "weight"
"""Columns: the pair's items, how many spans before the pair's own the earlier event arrived, whole units of weight."""


def count_new_cooccurrences(
    config: Config, spans: Sequence[SpanParts], holdout_start: int, scratch: Path
) -> list[Path]:
    """Counts the co-occurrence of the spans that have no count yet that is valid in this window.

    Args:
        spans: of the window, oldest first.
        holdout_start: microseconds; events from then on are not trained on, and co-occur with nothing.
        scratch: directory that workers can write to.

    Returns:
        [num_spans] the spans' co-occurrence artifacts.
    """
    wanted = [_fingerprint(config, span) for span in spans]
    stale = [
        place
        for place, span in enumerate(spans)
        if not _is_current(artifact.find_current(span.cooccurrences, wanted[place]), wanted[:place], holdout_start)
    ]
    if stale:
        folders = {place: scratch / f"cooccurrences-{place}" for place in stale}
        for folder in folders.values():
            folder.mkdir()
        count = CountSpanCooccurrences(config, spans, holdout_start, folders)
        found = collect(config.beam, list(range(config.data.num_buckets)), beam.ParDo(count), scratch)
        for place, folder in folders.items():
            with artifact.writing(spans[place].cooccurrences, SpanParts.COOCCURRENCES_KIND, wanted[place]) as writer:
                # By name: a killed worker leaves a file of another name, half-written or not.
                writer.files = [_file_of(bucket) for bucket in range(config.data.num_buckets)]
                for name in writer.files:
                    shutil.move(folder / name, writer.path / name)
                writer.details = {
                    "before": wanted[:place],
                    "holdout_start": holdout_start,
                    "left_out": sum(summary[str(place)] for summary in found),
                }
            shutil.rmtree(folder)
    return [span.cooccurrences for span in spans]


def _file_of(bucket: int) -> str:
    return f"pairs-{bucket:05d}.parquet"


def identity_of(counted: Path) -> str:
    """Changes when a span's co-occurrence is counted anew with another outcome."""
    manifest = artifact.read_manifest(counted)
    return artifact.fingerprint(manifest.fingerprint, manifest.details)


def _fingerprint(config: Config, span: SpanParts) -> str:
    events = artifact.read_manifest(span.events.path).fingerprint
    return artifact.fingerprint(events, config.groups.cooccurrence_window, config.data.feedback.target_level_index)


def _is_current(manifest: artifact.Manifest | None, past: list[str], holdout_start: int) -> bool:
    """Whether an existing count is valid for this window.

    It is valid for a shorter past, too, as the distance of a pair shows whether it reaches back beyond the window.
    There are two exceptions: if events of the span or before it were left out, the count depends on the past and the
    holdout; and an earlier holdout leaves out events that were counted.
    """
    if manifest is None:
        return False
    before: list[str] = manifest.details["before"]
    if manifest.details["left_out"] or holdout_start < manifest.details["holdout_start"]:
        return before == past and manifest.details["holdout_start"] == holdout_start
    return len(before) >= len(past) and before[len(before) - len(past) :] == past


@dataclass(frozen=True)
class _Arrivals:
    """Training positives of a bucket in the order of (user, span, time), each array [num_events]."""

    users: Int64
    items: Int64
    spans: Int64
    item_ids: pa.Array


class CountSpanCooccurrences(beam.DoFn):
    """Bucket -> a file of pairs for each wanted span; yields how many events up to and including each were left out."""

    def __init__(
        self, config: Config, spans: Sequence[SpanParts], holdout_start: int, folders: dict[int, Path]
    ) -> None:
        self._spans = tuple(spans)
        self._num_buckets = config.data.num_buckets
        self._target_level = config.data.feedback.target_level_index
        self._window = config.groups.cooccurrence_window
        self._holdout_start = holdout_start
        self._folders = folders

    def process(self, bucket: int) -> Iterator[dict[str, int]]:
        arrivals, left_out = self._read(bucket)
        for place, folder in self._folders.items():
            write_parquet(self._pairs(arrivals, place), folder / _file_of(bucket))
        yield {str(place): int(left_out[: place + 1].sum()) for place in self._folders}

    def _read(self, bucket: int) -> tuple[_Arrivals, Int64]:
        columns = [EventColumn.USER_ID, EventColumn.ITEM_ID, EventColumn.TIMESTAMP, EventColumn.FEEDBACK_LEVEL]
        positive = pc.field(EventColumn.FEEDBACK_LEVEL) >= self._target_level
        paths = [span.events.bucket(bucket, self._num_buckets) for span in self._spans]
        parts = [pq.read_table(path, columns=columns, filters=positive, use_threads=False) for path in paths]
        table = pa.concat_tables([part.drop_columns(EventColumn.FEEDBACK_LEVEL) for part in parts])
        _, users = encode_ids(table[EventColumn.USER_ID])
        item_ids, items = encode_ids(table[EventColumn.ITEM_ID])
        times = table[EventColumn.TIMESTAMP].to_numpy()
        spans = np.repeat(np.arange(len(parts)), [part.num_rows for part in parts])
        # Only users with events in the wanted spans have anything new.
        is_wanted = np.zeros(int(users.max(initial=-1)) + 1, bool)
        is_wanted[users[np.isin(spans, list(self._folders))]] = True
        of_wanted = np.flatnonzero(is_wanted[users])
        users, items, times, spans = (values[of_wanted] for values in (users, items, times, spans))
        kept = ~_came_before(users, items, times, spans) & (times < self._holdout_start)
        left_out = np.bincount(spans[~kept], minlength=len(parts))
        rows = np.flatnonzero(kept)
        rows = rows[sort_with_places(users[rows])[1]]  # spans come one after the other, and each is in order
        return _Arrivals(users[rows], items[rows], spans[rows], item_ids), left_out

    def _pairs(self, arrivals: _Arrivals, place: int) -> pa.Table:
        users, items, spans = arrivals.users, arrivals.items, arrivals.spans
        num_items, num_spans = max(len(arrivals.item_ids), 1), len(self._spans)
        later = np.flatnonzero(spans == place)
        keys, weights = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for distance in range(1, self._window + 1):
            right = later[later >= distance]
            left = right - distance
            is_pair = (users[left] == users[right]) & (items[left] != items[right])
            left, right = left[is_pair], right[is_pair]
            low, high = np.minimum(items[left], items[right]), np.maximum(items[left], items[right])
            keys.append((low * num_items + high) * num_spans + place - spans[left])
            weights.append(np.full(len(left), round(UNIT / distance), np.int64))
        distinct, inverse = np.unique(np.concatenate(keys), return_inverse=True)
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, inverse, np.concatenate(weights))
        pairs, back = np.divmod(distinct, num_spans)
        low, high = np.divmod(pairs, num_items)
        ids = [
            pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), arrivals.item_ids) for codes in (low, high)
        ]
        return pa.table({LOW: ids[0], HIGH: ids[1], BACK: pa.array(back.astype(np.int32)), WEIGHT: pa.array(sums)})


def _came_before(users: Int64, items: Int64, times: Int64, spans: Int64) -> Bool:
    """[num_events] whether an earlier span has the event: one that arrives again adds no co-occurrence."""
    order = by_user_and_time(users, times)
    tied, run = ties(users[order], times[order])
    rows = order[tied]
    by_item = np.lexsort((spans[rows], items[rows], run))
    rows, run = rows[by_item], run[by_item]
    again = np.zeros(len(users), bool)
    again[rows[1:]] = (np.diff(run) == 0) & (np.diff(items[rows]) == 0)
    return again
