"""Conversion of any Arrow column to text, and checks of which values are sound ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Bool, Float64, Int8

MAX_ID_BYTES = 1024
NOT_UTF8 = "not UTF-8"
LOST_DIGITS = "is a number that has lost digits: write ids as integers or text"
ID_PROBLEMS = ("", "missing", NOT_UTF8, "holds control characters", f"longer than {MAX_ID_BYTES} bytes", LOST_DIGITS)
"""What `check_ids` finds, by code; code 0 is a sound id. Control characters would break text vocabularies."""
_OK, _MISSING, _NOT_UTF8, _CONTROL, _LONG, _LOST = range(6)

_SCIENTIFIC = r"^-?[0-9](\.[0-9]+)?[eE]\+[0-9]{2,3}$"
"""How spreadsheets write 123456789012, and pandas 64-bit ids in a column with gaps. (12e34 may be a hash.)"""

NO_VALUE = frozenset({b"", b"nan", b"na", b"n/a", b"null", b"none", b"<na>", b"?", b"\\n"})
"""Ways in which programs write a cell without a value, in lower case."""

NO_WORD = r"[^\pL\pN]+"
"""Matches the text between words: a regular expression that TensorFlow and Arrow interpret alike."""


def to_binary(column: pa.Array) -> pa.Array:
    """The column's values as text bytes; null where there is no value.

    Integers become their decimal form, and so do whole floats and decimals: pandas turns an integer column
    with gaps into floats, and databases export numbers as decimals. Lists of strings are not supported here:
    see `feature_tables`.

    Raises:
        ValueError: the column's type has no plain text form.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_binary(column.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return column.cast(pa.binary())
    if pa.types.is_nested(kind):
        raise ValueError(f"a column of type {kind} cannot be read as text; write one value per row")
    if isinstance(kind, pa.UuidType):
        text = pa.array([value and str(value) for value in column.to_pylist()], pa.string())
    elif pa.types.is_floating(kind):
        text = _float_text(column.cast(pa.float32()) if pa.types.is_float16(kind) else column)
    elif pa.types.is_decimal(kind):
        text = _decimal_text(column)
    else:
        text = column.cast(pa.string())
    return text.cast(pa.binary())


def _decimal_text(column: pa.Array) -> pa.Array:
    """Whole numbers as integers; Arrow writes a 0 with ten decimals as 0E-10."""
    text = pc.replace_substring_regex(column.cast(pa.string()), r"\.0+$", "")
    return pc.replace_substring_regex(text, r"^0E-\d+$", "0")


def _float_text(column: pa.Array) -> pa.Array:
    """Whole numbers as integers, NaN as null."""
    kind = column.type
    column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column)
    whole = pc.and_(pc.equal(column, pc.floor(column)), pc.less(pc.abs(column), 2.0**53))
    as_integer = pc.if_else(whole, column, pa.scalar(0, kind)).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, as_integer, column.cast(pa.string()))


def is_inexact(column: pa.Array) -> Bool:
    """[num_rows] whether a value is a float too large to distinguish consecutive integers.

    pandas makes such floats from 64-bit ids in a column with gaps: two users may have become one.
    """
    if pa.types.is_dictionary(column.type):
        return is_inexact(column.dictionary_decode())
    if not pa.types.is_floating(column.type):
        return np.zeros(len(column), bool)
    limit = 2.0 ** {16: 11, 32: 24, 64: 53}[column.type.bit_width]
    values = column.to_numpy(zero_copy_only=False)
    return np.abs(values) >= limit


def check_ids(values: pa.Array) -> Int8:
    """[num_values] index into `ID_PROBLEMS` of each distinct value of a binary array."""
    lengths = pc.fill_null(pc.binary_length(values), 0).to_numpy(zero_copy_only=False)
    problems = np.zeros(len(values), np.int8)
    utf8 = utf8_mask(values)
    text = pc.if_else(pa.array(utf8), values, pa.scalar(b"", pa.binary())).cast(pa.string())
    control = pc.fill_null(pc.match_substring_regex(text, r"[\x00-\x1f\x7f]"), False).to_numpy(zero_copy_only=False)
    problems[pc.fill_null(pc.match_substring_regex(text, _SCIENTIFIC), False).to_numpy(zero_copy_only=False)] = _LOST
    problems[control] = _CONTROL
    problems[~utf8] = _NOT_UTF8
    problems[lengths > MAX_ID_BYTES] = _LONG
    problems[lengths == 0] = _MISSING
    return problems


def to_numbers(values: pa.Array) -> Float64:
    """[num_values] the numbers that a binary array spells out; NaN for a value that is not a number."""
    return of_distinct(values, _number, np.float64)


def numbers_and_malformed(values: pa.Array) -> tuple[Float64, Bool]:
    """[num_values] each, `to_numbers` and which values are neither a number nor absent, see `NO_VALUE`."""
    numbers = to_numbers(values)
    is_malformed = np.isnan(numbers)
    rest = values.filter(pa.array(is_malformed))
    is_malformed[is_malformed] = of_distinct(rest, lambda value: value.strip().lower() not in NO_VALUE, np.bool_)
    return numbers, is_malformed


def of_distinct(values: pa.Array, function: Callable[[bytes], Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """[num_values] `function` of each value of a binary array, null being b"", called once per distinct value."""
    encoded = pc.fill_null(values, b"").dictionary_encode()
    found = np.array([function(value) for value in encoded.dictionary.to_pylist()], dtype)
    return found[encoded.indices.to_numpy()]


def _number(text: bytes) -> float:
    try:
        return float("nan") if b"_" in text else float(text)  # 1_000 is a number in Python alone
    except ValueError:
        return float("nan")


def utf8_mask(values: pa.Array) -> Bool:
    """[num_values] whether each value of a binary array is UTF-8 (null counts as such)."""
    mask = np.ones(len(values), bool)
    pending = [(0, len(values))]
    while pending:  # halves whatever is not valid as a whole: one pass if all is valid
        start, stop = pending.pop()
        try:
            values.slice(start, stop - start).cast(pa.string())
        except pa.ArrowInvalid:
            if stop - start == 1:
                mask[start] = False
            else:
                middle = (start + stop) // 2
                pending += [(start, middle), (middle, stop)]
    return mask
