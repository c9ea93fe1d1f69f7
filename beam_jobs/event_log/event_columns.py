"""Conversion of a log's raw columns to validated events: ids, times, feedback levels; each failed row has a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Int8, Int32, Int64
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.column_text import (
    ID_PROBLEMS,
    LOST_DIGITS,
    NO_VALUE,
    check_ids,
    is_inexact,
    numbers_and_malformed,
    of_distinct,
    to_binary,
)
from beam_jobs.event_log.csv_blocks import RawBatch
from beam_jobs.event_log.span_statistics import MISSING, OTHER
from beam_jobs.event_log.timestamps import TIME_PROBLEMS, parse_times
from contracts.config import DataConfig
from contracts.config.request_features import code_sizes
from contracts.names import EventColumn

_VALUE_CHARACTERS = 200  # kept of a dead letter's value: enough to recognise it

_INEXACT = ("", LOST_DIGITS)
NO_LEVEL = "is not one of data.feedback.levels"
NO_FLAG = "is neither true nor false"
NO_RATING = "is not a number"

# In lower case; with decimals, as pandas writes a column of 0 and 1 that has gaps.
_TRUE = frozenset({b"1", b"1.0", b"true", b"t", b"yes", b"y"})
_NOT_TRUE = NO_VALUE | frozenset({b"0", b"0.0", b"false", b"f", b"no", b"n"})

_Columns = Callable[[str], pa.Array]
"""Name of a column of the log -> its values in a batch."""

ToldValues = tuple[dict[str, int], str]
"""Value of a request feature -> number of rows with it (`OTHER` for all unlisted values), and one unlisted value."""

DEAD_LETTER_SCHEMA = pa.schema([("row", pa.int64()), ("reason", pa.string()), ("value", pa.string())])


@dataclass
class ValidBatch:
    """The valid events and the dead letters of a raw batch.

    Attributes:
        events: `EventColumn`s without split; ids are dictionary-encoded strings.
        dead_letters: of `DEAD_LETTER_SCHEMA`.
        told: request feature -> number of rows with each of its values, and one value that it does not list.
    """

    events: pa.Table
    dead_letters: pa.Table
    told: dict[str, ToldValues]


def validate(batch: RawBatch, data: DataConfig) -> ValidBatch:
    """Converts a batch; a row that fails several checks is set aside for the first one."""
    letters = _RowProblems(batch.rows)
    table = batch.table

    def column(name: str) -> pa.Array:
        return one_array(table[name])

    users = _ids(column(data.columns.user_id), EventColumn.USER_ID, letters)
    items = _ids(column(data.columns.item_id), EventColumn.ITEM_ID, letters)
    raw_times = column(data.columns.timestamp)
    times, problems = parse_times(raw_times, data.timestamp_unit, data.timestamp_format)
    letters.add(EventColumn.TIMESTAMP, problems, TIME_PROBLEMS, raw_times)
    levels = _feedback_levels(column, data, table.num_rows, letters)
    requests, told = _request_codes(column, data, table.num_rows)

    good = pa.array(letters.good)
    events = pa.table(
        {
            EventColumn.USER_ID: users,
            EventColumn.ITEM_ID: items,
            EventColumn.TIMESTAMP: pa.array(times),
            EventColumn.FEEDBACK_LEVEL: pa.array(levels),
            EventColumn.REQUEST: pa.array(requests),
        }
    ).filter(good)
    return ValidBatch(events, letters.table(batch.bad_rows), told)


class _RowProblems:
    """Collects each row's first problem."""

    def __init__(self, rows: Int64) -> None:
        self._rows = rows
        self._tables: list[pa.Table] = []
        self.good = np.ones(len(rows), bool)

    def add(self, field: str, problems: Int8, names: tuple[str, ...], values: pa.Array) -> None:
        """Sets aside the rows with a non-zero problem that are not set aside already."""
        bad = np.flatnonzero((problems != 0) & self.good)
        if not len(bad):
            return
        self.good[bad] = False
        reasons = np.array([f"{field} {name}" for name in names], object)[problems[bad]]
        shown = [
            (value or b"").decode("utf-8", errors="replace")
            for value in to_binary(values.take(pa.array(bad))).to_pylist()
        ]
        self._tables.append(_letters(self._rows[bad].tolist(), reasons.tolist(), shown))

    def table(self, bad_rows: list[tuple[int, str, str]]) -> pa.Table:
        """All dead letters, including the lines that were not rows."""
        rows, reasons, values = zip(*bad_rows, strict=True) if bad_rows else ((), (), ())
        return pa.concat_tables([*self._tables, _letters(list(rows), list(reasons), list(values))])


def _letters(rows: list[int], reasons: list[str], values: list[str]) -> pa.Table:
    clean = [value.replace("\U0010ffff", "\ufffd")[:_VALUE_CHARACTERS] for value in values]
    return pa.table([pa.array(rows, pa.int64()), pa.array(reasons, pa.string()), pa.array(clean)], DEAD_LETTER_SCHEMA)


def _ids(column: pa.Array, field: str, letters: _RowProblems) -> pa.DictionaryArray:
    """Checks each distinct value once instead of every row."""
    letters.add(field, is_inexact(column).astype(np.int8), _INEXACT, column)
    encoded = to_binary(column).dictionary_encode(null_encoding="encode")
    problems = check_ids(encoded.dictionary)
    letters.add(field, problems[encoded.indices.to_numpy()], ID_PROBLEMS, column)
    sound = pc.if_else(pa.array(problems == 0), encoded.dictionary, pa.scalar(b"", pa.binary())).cast(pa.string())
    return pa.DictionaryArray.from_arrays(encoded.indices, sound)


def _feedback_levels(column: _Columns, data: DataConfig, num_rows: int, letters: _RowProblems) -> Int8:
    """[num_rows] the highest level that applies; see `FeedbackConfig`."""
    feedback = data.feedback
    levels = np.zeros(num_rows, np.int8)
    if data.columns.event is not None:
        raw = column(data.columns.event)
        found = _places_of(to_binary(raw), feedback.levels)
        letters.add("event", (found < 0).astype(np.int8), ("", NO_LEVEL), raw)
        levels = np.maximum(levels, found.astype(np.int8))
    for level, name in feedback.flags.items():
        raw = column(name)
        flags = _flags(to_binary(raw))
        letters.add(f"flag {name}", (flags < 0).astype(np.int8), ("", NO_FLAG), raw)
        levels = np.maximum(levels, np.where(flags == 1, feedback.levels.index(level), 0).astype(np.int8))
    if feedback.rating_thresholds and data.columns.rating is not None:
        raw = column(data.columns.rating)
        ratings, is_wrong = numbers_and_malformed(to_binary(raw))  # an absent one reaches no level
        letters.add("rating", is_wrong.astype(np.int8), ("", NO_RATING), raw)
        for level, least in feedback.rating_thresholds.items():
            levels = np.maximum(levels, np.where(ratings >= least, feedback.levels.index(level), 0).astype(np.int8))
    return levels


def _request_codes(column: _Columns, data: DataConfig, num_rows: int) -> tuple[Int32, dict[str, ToldValues]]:
    """[num_rows] `EventColumn.REQUEST`, and `ValidBatch.told`."""
    places, told = [], {}
    for feature in data.request_features:
        values = pc.fill_null(to_binary(column(feature.column_name)), b"")
        places.append(_places_of(values, feature.values) + 1)
        unlisted = np.flatnonzero((places[-1] == 0) & pc.not_equal(values, b"").to_numpy(zero_copy_only=False))
        example = values[unlisted[0]].as_py().decode(errors="replace")[:_VALUE_CHARACTERS] if len(unlisted) else ""
        without, *counts = np.bincount(places[-1], minlength=1 + len(feature.values)).tolist()
        counted = dict(zip(feature.values, counts, strict=True))
        counted |= {MISSING: without - len(unlisted), OTHER: len(unlisted)}
        told[feature.name] = counted, example
    if not places:
        return np.zeros(num_rows, np.int32), {}
    return np.ravel_multi_index(places, code_sizes(data.request_features)).astype(np.int32), told


def _places_of(values: pa.Array, listed: Sequence[str]) -> Int32:
    """[num_rows] index of each value in a list, else -1; "3.0" is 3, as pandas writes it in a column with gaps."""
    names = pa.array([name.encode() for name in listed], pa.binary())
    encoded = values.dictionary_encode(null_encoding="encode")
    cells = encoded.dictionary
    whole = pc.if_else(pc.is_in(cells, names), cells, pc.replace_substring_regex(cells, r"^(-?[0-9]+)\.0+$", r"\1"))
    places = pc.fill_null(pc.index_in(whole, names), -1).to_numpy(zero_copy_only=False)
    return places[encoded.indices.to_numpy()]


def _flags(values: pa.Array) -> Int8:
    """1 true, 0 false or absent, -1 neither."""

    def flag(value: bytes) -> int:
        lowered = value.strip().lower()
        return 1 if lowered in _TRUE else 0 if lowered in _NOT_TRUE else -1

    return of_distinct(values, flag, np.int8)
