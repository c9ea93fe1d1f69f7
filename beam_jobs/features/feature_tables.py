"""User and item feature tables: one row per id, columns as raw features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Bool, Float64
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.column_text import check_ids, is_inexact, numbers_and_malformed, to_binary, utf8_mask
from beam_jobs.event_log.csv_blocks import is_csv, read_csv_batches
from beam_jobs.event_log.event_files import as_named, check_file, open_parquet, parquet_columns, require_flat
from beam_jobs.event_log.vector_column import from_matrix, is_list, to_matrix, to_vectors
from contracts.config import Feature, FeatureTable
from contracts.storage import as_path, reading

_ROWS_AT_ONCE = 1 << 13
_ROWS_HELD = 1 << 18
_SHOWN_CHARACTERS = 60


@dataclass
class FeatureRows:
    """A table as read.

    Attributes:
        ids: [num_rows] distinct sound ids, string.
        columns: column name -> [num_rows]; float32 for numeric features, fixed-size lists of it for vectors, else
            binary.
        counts: rows that were left out, by reason, and cells by problem and feature, whose keys begin otherwise:
            `malformed_NAME`, not a 32-bit number or not a vector, counts as missing; `not_utf8_NAME`, text with bytes
            that are not UTF-8, all of which reading CSV makes the same.
        examples: key of `counts` -> the first such row or cell, if that says more than the number.
    """

    ids: pa.Array
    columns: dict[str, pa.Array]
    counts: dict[str, int]
    examples: dict[str, str]

    def aligned(self, ids: pa.Array) -> dict[str, pa.Array]:
        """The columns in the order of `ids`; an id without a row has "" or NaN."""
        places = pc.index_in(ids, self.ids)
        return {name: _taken(column, places) for name, column in self.columns.items()}


def read_feature_table(table: FeatureTable, field: str) -> FeatureRows:
    """Reads ids, features and title; if an id has several rows, the first counts.

    Args:
        table: the table's file and columns.
        field: the table's key in the config, for messages.

    Raises:
        ValueError: the file is missing, unreadable, or lacks a column.
    """
    wanted = {table.id: f"{field}.id"}
    wanted.update((feature.name, f"{field}.features") for feature in table.features)
    if table.title is not None:
        wanted.setdefault(table.title, f"{field}.title")
    check_file(table.path, wanted, f"{field}.path", table)
    require_flat(table.path, {table.id: f"{field}.id"})
    first, bad_rows = _read(table, list(wanted), field)
    raw = first.rows()
    kinds = {feature.name: feature for feature in table.features}
    counts = {"unreadable_rows": len(bad_rows), "unusable_ids": first.unusable, "repeated_ids": first.repeated}
    examples, columns = {}, {}
    if bad_rows:
        row, reason, text = bad_rows[0]
        examples["unreadable_rows"] = f"row {row}, {reason}: {_shown(text)}"
    for name in wanted:
        if name in kinds or name == table.title:
            where = f"{table.path}, column {name!r}"
            columns[name], problem, has_it = _feature_values(raw[name], kinds.get(name), where)
            places = np.flatnonzero(has_it)
            counts[f"{problem}_{name}"] = len(places)
            if len(places):
                examples[f"{problem}_{name}"] = _shown(_plain_cell(one_array(raw[name].slice(places[0], 1))))
    return FeatureRows(to_binary(one_array(raw[table.id])).cast(pa.string()), columns, counts, examples)


def _plain_cell(cell: pa.Array) -> object:
    """The one value of an array as a Python object; bytes that are not UTF-8, which Python refuses, are replaced."""
    if pa.types.is_dictionary(cell.type):
        return _plain_cell(cell.dictionary_decode())
    if is_list(cell.type):
        values = pc.list_flatten(cell)
        return [_plain_cell(values.slice(place, 1)) for place in range(len(values))]
    if pa.types.is_string(cell.type) or pa.types.is_large_string(cell.type):
        cell = to_binary(cell)
    value = cell[0].as_py()
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _shown(cell: object) -> str:
    """Enough of a cell to recognise it."""
    text = str(cell).replace("\U0010ffff", "\ufffd")
    return repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")


def _taken(column: pa.Array, places: pa.Array) -> pa.Array:
    """The values at `places`; "" or NaN for a null place."""
    if pa.types.is_fixed_size_list(column.type):
        vectors = np.concatenate([to_matrix(column), np.full((1, column.type.list_size), np.nan, np.float32)])
        return from_matrix(vectors[pc.fill_null(places, -1).to_numpy(zero_copy_only=False)])
    return pc.fill_null(column.take(places), float("nan") if pa.types.is_floating(column.type) else b"")


class _FirstRows:
    """The first row of each sound id among the rows added. Few more are held: a log may be its own item table.

    Attributes:
        unusable: rows whose id is not sound.
        repeated: other rows that were left out.
    """

    def __init__(self, id_name: str, empty: pa.Table) -> None:
        self.unusable = self.repeated = 0
        self._id_name = id_name
        self._kept = [empty]
        self._most = _ROWS_HELD

    def add(self, rows: pa.Table) -> None:
        ids = one_array(rows[self._id_name])
        sound = (check_ids(to_binary(ids)) == 0) & ~is_inexact(ids)
        self.unusable += int((~sound).sum())
        self._kept.append(rows.filter(pa.array(sound)))
        if sum(map(len, self._kept)) > self._most:
            self._most = 2 * len(self.rows()) + _ROWS_HELD

    def rows(self) -> pa.Table:
        """The first rows of what has been added so far, in order."""
        rows = pa.concat_tables(self._kept)
        ids = to_binary(one_array(rows[self._id_name])).dictionary_encode().indices.to_numpy()
        is_first = np.zeros(len(ids), bool)
        is_first[np.unique(ids, return_index=True)[1]] = True
        if not is_first.all():
            self.repeated += int((~is_first).sum())
            rows = rows.filter(pa.array(is_first)).combine_chunks()
        self._kept = [rows]
        return rows


def _read(source: FeatureTable, columns: list[str], field: str) -> tuple[_FirstRows, list[tuple[int, str, str]]]:
    """The columns' first rows by id, and (row number, reason, text) of lines that are not rows."""
    path = source.path
    bad_rows: list[tuple[int, str, str]] = []
    try:
        if not is_csv(path):
            with reading(as_path(path)) as copy:
                file = open_parquet(copy)
                names = parquet_columns(file, columns)
                schema = pa.schema([file.schema_arrow.field(name) for name in names])
                # Not all at once: for lists, that takes five times the memory that they fill.
                first = _FirstRows(source.id, as_named(pa.Table.from_batches([], schema)))
                for batch in file.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
                    first.add(as_named(pa.Table.from_batches([batch], schema)))
            return first, bad_rows
        first = _FirstRows(source.id, pa.table({name: pa.array([], pa.binary()) for name in columns}))
        for block in read_csv_batches(path, columns, source):
            first.add(block.table)
            bad_rows += block.bad_rows
        return first, bad_rows
    except (OSError, EOFError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        remedy = "get an intact copy"
        if "lists to be of size" in str(error):
            remedy = "pyarrow cannot read null fixed-size lists: write lists of variable length, or drop those rows"
        raise ValueError(f"{field}.path: {path} cannot be read to its end ({error}): {remedy}") from None


def _feature_values(chunks: pa.ChunkedArray, feature: Feature | None, where: str) -> tuple[pa.Array, str, Bool]:
    """float32 for a numeric feature (NaN if there is no number), vectors as `to_vectors` returns them, else binary.

    Also returns the problem that a cell may have, and which cells have it.
    """
    name = "title" if feature is None else feature.kind
    kind = chunks.type
    try:
        if feature is not None and name == "vector":
            vectors, is_malformed = to_vectors(chunks, feature)
            return vectors, "malformed", is_malformed
        column = one_array(chunks)
        if is_list(kind) and name != "tokens":
            remedy = "write one text per row" if feature is None else "set kind: tokens, or vector"
            raise ValueError(f"a column of type {kind} has several values per row; {remedy}")
        if name == "numeric":
            numbers, is_malformed = _to_float32(column)
            return numbers, "malformed", is_malformed
        if feature is not None and name == "tokens" and is_list(kind):
            if pa.types.is_nested(kind.value_type):
                raise ValueError(f"a column of type {kind} holds no tokens; write one list of values per row")
            text = _joined(column, feature)
        else:
            text = pc.fill_null(to_binary(column), b"")
        return text, "not_utf8", ~utf8_mask(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _joined(lists: pa.Array, feature: Feature) -> pa.Array:
    """Joins lists of plain values to cells of text; values are written as in a plain column, missing ones left out.

    Raises:
        ValueError: a token holds the separator.
    """
    tokens = to_binary(pc.list_flatten(lists))
    separator = feature.separator.encode()
    holds = pc.fill_null(pc.match_substring(tokens, separator), False)
    if pc.any(holds).as_py():
        token = tokens.filter(holds)[0].as_py().decode("utf-8", "replace")
        raise ValueError(
            f"the value {token!r} in a list contains the feature's separator {feature.separator!r}: set separator to "
            "text that no value contains"
        )
    row_of_token = pc.list_parent_indices(lists).filter(tokens.is_valid()).to_numpy()
    ends = np.cumsum(np.bincount(row_of_token, minlength=len(lists)))
    present = pa.ListArray.from_arrays(pa.array(np.concatenate([[0], ends]), pa.int32()), tokens.drop_null())
    return pc.binary_join(present, separator)


def _to_float32(column: pa.Array) -> tuple[pa.Array, Bool]:
    """The numbers, NaN if there is none, and which cells hold text that is not a number, or too large a number."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):
        numeric = column.cast(pa.int8()) if pa.types.is_boolean(column.type) else column
        present = pc.fill_null(numeric.cast(pa.float64(), safe=False), float("nan"))
        return _narrowed(present.to_numpy(zero_copy_only=False))
    numbers, is_malformed = numbers_and_malformed(to_binary(column))
    narrow, is_too_large = _narrowed(numbers)
    return narrow, is_malformed | is_too_large


def _narrowed(numbers: Float64) -> tuple[pa.Array, Bool]:
    """The numbers as float32, and which of them do not fit: these become infinite, which counts as missing."""
    with np.errstate(over="ignore"):
        narrow = numbers.astype(np.float32)
    return pa.array(narrow), np.isinf(narrow) & np.isfinite(numbers)
