"""Columns of dense vectors, such as text or image embeddings: all of one width, each either whole or missing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Bool, Float32
from beam_jobs.event_log.column_text import to_binary, to_numbers
from contracts.config import Feature

_ROWS_AT_ONCE = 1 << 13


def to_vectors(column: pa.ChunkedArray, feature: Feature) -> tuple[pa.Array, Bool]:
    """The column's cells as vectors: lists of numbers, or text joined by `feature.separator`.

    The column is read one block of rows at a time: the intermediate results for a million pictures would outgrow a
    machine.

    Returns:
        Fixed-size lists of float32, all NaN for a missing or malformed cell; and bool [num_rows], which cells hold
        something other than `feature.dim` finite numbers.

    Raises:
        ValueError: the column is of a type that holds no numbers.
    """
    vectors = np.full((len(column), feature.dim), np.nan, np.float32)
    is_malformed = np.zeros(len(column), bool)
    row = 0
    for chunk in column.chunks:
        for start in range(0, len(chunk), _ROWS_AT_ONCE):
            cells = chunk.slice(start, _ROWS_AT_ONCE)
            rows = slice(row, row + len(cells))
            is_malformed[rows] = _read(cells, feature, vectors[rows])
            row += len(cells)
    return from_matrix(vectors), is_malformed


def _read(column: pa.Array, feature: Feature, vectors: Float32) -> Bool:
    """Writes the sound vectors into `vectors`; returns which cells are malformed."""
    present = pc.is_valid(column).to_numpy(zero_copy_only=False)
    lists = column.filter(pa.array(present))  # a null fixed-size list still has values
    lists = lists if is_list(column.type) else _split(lists, feature.separator)
    numbers = _numbers(pc.list_flatten(lists))
    rows = np.flatnonzero(present)[pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)]
    lengths = np.bincount(rows, minlength=len(column))
    sound = lengths == feature.dim
    sound[rows[~np.isfinite(numbers)]] = False
    vectors[sound] = numbers[sound[rows]].reshape(-1, feature.dim)
    return ~sound & (lengths > 0)


def from_matrix(vectors: npt.NDArray[Any]) -> pa.Array:
    """[num_rows, dim] as fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])


def to_matrix(column: pa.Array) -> npt.NDArray[Any]:
    """Fixed-size lists without nulls as [num_rows, dim]."""
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)


def is_list(kind: pa.DataType) -> bool:
    """Whether a cell holds a list of values."""
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _split(column: pa.Array, separator: str) -> pa.Array:
    """Splits text cells into lists of their parts; "" and cells without text become empty lists.

    A pair of brackets around a cell is left out, since Python and NumPy print vectors with them. NumPy also aligns
    numbers with extra spaces and breaks long lines, so a separating space may be several, or the end of a line.
    """
    text = pc.fill_null(to_binary(column), b"")
    text = pc.replace_substring_regex(text, r"(?s)^\s*\[(.*)\]\s*$", r"\1")
    if separator.isspace():
        text = pc.replace_substring_regex(pc.replace_substring_regex(text, r"^\s+|\s+$", ""), r"\s+", separator)
    parts = pc.split_pattern(text, separator.encode())
    return pc.if_else(pc.equal(text, pa.scalar(b"", pa.binary())), pa.scalar([], parts.type), parts)


def _numbers(values: pa.Array) -> Float32:
    kind = values.type
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and their cells malformed
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            numbers = pc.fill_null(values.cast(pa.float64(), safe=False), float("nan"))
            return numbers.to_numpy(zero_copy_only=False).astype(np.float32)
        return to_numbers(to_binary(values)).astype(np.float32)
