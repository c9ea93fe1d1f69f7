"""Converts times in any usual form to microseconds since 1970-01-01 UTC."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Bool, Float64, Int8, Int64
from beam_jobs.event_log.column_text import is_inexact, to_binary, utf8_mask
from contracts.config.data import FRACTIONS

UNREADABLE, NEGATIVE = "not a time", "negative"
_ROUNDED = "rounded, with digits lost: write whole numbers, 64-bit floats or ISO 8601"
TIME_PROBLEMS = ("", "missing", UNREADABLE, NEGATIVE, "after the year 9999", _ROUNDED)
"""The problems that `parse_times` finds, by code; code 0 is a sound time."""
_OK, _MISSING, _NOT_A_TIME, _NEGATIVE, _LATE, _LOST = range(6)

_MICROSECONDS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
_MAX_MICROSECONDS = 253_402_300_800_000_000
_GREATEST = 2**63 - 1
# Up to these magnitudes a number is taken for seconds, milliseconds, microseconds; above, nanoseconds.
# Seconds reach the year 5138; milliseconds start in March 1973.
_AUTO_LIMITS = (1e11, 1e14, 1e17)

_INTEGER = r"^\s*\+?[0-9]{1,19}\s*$"
_NUMBER = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
_OF_SPREADSHEET = r"^\s*[0-9](\.[0-9]{1,5})?E\+[0-9]{2}\s*$"
"""What spreadsheets write for a number with more digits than a cell shows: 1.397E+12 may be any of twelve days."""
_ISO = (
    r"^\s*(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"(?:[T ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?"
    r"\s*(?P<zone>Z|z|UTC|[+-][0-9]{2}:?[0-9]{2}|[+-][0-9]{2})?)?\s*$"
)


def parse_times(column: pa.Array, unit: str, text_format: str | None = None) -> tuple[Int64, Int8]:
    """Microseconds UTC or, if a row has none, the reason.

    Args:
        column: numbers, Arrow timestamps or dates, or text holding numbers or ISO 8601 (no zone: UTC).
        unit: of numbers: s, ms, us, ns or auto (by each number's magnitude).
        text_format: strptime directives, for all but Arrow timestamps and dates. As in strptime, a day that its month
            lacks becomes one of the next month. The format may end in one of `FRACTIONS`.

    Returns:
        [num_rows] microseconds and [num_rows] index into `TIME_PROBLEMS`.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    micros, problems = _read(column, unit, text_format)
    problems[(problems == _OK) & (micros < 0)] = _NEGATIVE
    problems[(problems == _OK) & (micros >= _MAX_MICROSECONDS)] = _LATE
    if pa.types.is_floating(column.type) and column.type.bit_width < 64:
        problems[(problems == _OK) & is_inexact(column)] = _LOST  # today's times in seconds would be off by two minutes
    return np.where(problems == _OK, micros, 0), problems


def _read(column: pa.Array, unit: str, text_format: str | None) -> tuple[Int64, Int8]:
    """Like `parse_times`, but before any time is judged."""
    missing = column.is_null(nan_is_null=False).to_numpy(zero_copy_only=False)
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _from_arrow(column), np.where(missing, _MISSING, _OK).astype(np.int8)
    if text_format is not None:
        return _parse_formatted(to_binary(column), text_format)
    if pa.types.is_duration(column.type):
        return np.zeros(len(column), np.int64), np.where(missing, _MISSING, _NOT_A_TIME).astype(np.int8)
    if pa.types.is_integer(column.type):
        values = column.fill_null(0).to_numpy()
        wide = np.minimum(values, values.dtype.type(min(np.iinfo(values.dtype).max, _GREATEST))).astype(np.int64)
        return _scale_integers(wide, unit), np.where(missing, _MISSING, _OK).astype(np.int8)
    if pa.types.is_floating(column.type):
        micros, problems = _scale_floats(column.cast(pa.float64()).fill_null(np.nan).to_numpy(), unit)
        problems[missing] = _MISSING
        return micros, problems
    return _parse_text(to_binary(column), unit)


def parse_time(text: str, field: str) -> int:
    """Microseconds of one time in a config.

    Raises:
        ValueError: it is not a time.
    """
    micros, problems = parse_times(pa.array([str(text)]), "auto")
    if problems[0]:
        raise ValueError(
            f"{field}={text!r} is {TIME_PROBLEMS[problems[0]]}: "
            "give ISO 8601, e.g. 2024-05-31 or 2024-05-31T12:00:00, or a number since 1970"
        )
    return int(micros[0])


def as_text(micros: int) -> str:
    """ISO 8601, to the second, for messages."""
    return str(np.datetime64(micros, "us").astype("datetime64[s]"))


def _from_arrow(column: pa.Array) -> Int64:
    """Microseconds of timestamps and dates, 0 for a null; Arrow's own cast lets times that are too late wrap around."""
    if pa.types.is_date32(column.type):
        column = column.cast(pa.timestamp("s"))  # days, of 32 bits
    unit = "ms" if pa.types.is_date64(column.type) else column.type.unit
    return _scale_integers(column.cast(pa.int64()).fill_null(0).to_numpy(), unit)


def _scale_integers(values: Int64, unit: str) -> Int64:
    """Exact: nanoseconds are divided, never taken through floats."""
    if unit == "auto":
        size = np.abs(values)
        seconds, millis, micros = (size < int(limit) for limit in _AUTO_LIMITS)
        choices = [_times(values, 1_000_000), _times(values, 1_000), values]
        return np.select([seconds, millis, micros], choices, _from_nanoseconds(values))
    return _from_nanoseconds(values) if unit == "ns" else _times(values, int(_MICROSECONDS[unit]))


def _from_nanoseconds(values: Int64) -> Int64:
    """Microseconds; the greatest integer stays, too late to be valid: it stands for no time or for a clipped number.

    Read as nanoseconds, it would be a day in 2262, and the last of every user's events.
    """
    return np.where(values == _GREATEST, values, values // 1_000)


def _times(values: Int64, factor: int) -> Int64:
    limit = _GREATEST // factor
    return np.clip(values, -limit, limit) * factor


def _scale_floats(values: Float64, unit: str) -> tuple[Int64, Int8]:
    problems = np.where(np.isfinite(values), _OK, _NOT_A_TIME).astype(np.int8)
    values = np.where(problems == _OK, values, 0.0)
    if unit == "auto":
        size = np.abs(values)
        factor = np.select([size < limit for limit in _AUTO_LIMITS], [1e6, 1e3, 1.0], 1e-3)
    else:
        factor = np.full(len(values), _MICROSECONDS[unit])
    factor[values >= _GREATEST] = 1.0  # see `_from_nanoseconds`
    return np.rint(np.clip(values * factor, -9e18, 9e18)).astype(np.int64), problems


def _to_text(values: pa.Array) -> tuple[pa.Array, Int8]:
    """Strings, and the problem that each one has until it is parsed."""
    text = pc.fill_null(pc.if_else(pa.array(utf8_mask(values)), values, pa.scalar(b"?", pa.binary())), b"")
    text = text.cast(pa.string())
    problems = np.full(len(text), _NOT_A_TIME, np.int8)
    problems[pc.equal(pc.utf8_trim_whitespace(text), "").to_numpy(zero_copy_only=False)] = _MISSING
    return text, problems


def _parse_formatted(values: pa.Array, text_format: str) -> tuple[Int64, Int8]:
    text, problems = _to_text(values)
    text = pc.utf8_trim_whitespace(text)
    fraction = np.zeros(len(text), np.int64)
    if text_format.endswith(FRACTIONS):
        parts = pc.extract_regex(text, f"^(?P<whole>.*)[{text_format[-3]}](?P<fraction>[0-9]{{1,9}})$")
        text, text_format = pc.struct_field(parts, "whole"), text_format[:-3]
        fraction = _fraction(parts)
    times = pc.strptime(text, format=text_format, unit="us", error_is_null=True)
    problems[times.is_valid().to_numpy(zero_copy_only=False)] = _OK
    return times.cast(pa.int64()).fill_null(0).to_numpy() + fraction, problems


def _parse_text(values: pa.Array, unit: str) -> tuple[Int64, Int8]:
    text, problems = _to_text(values)
    micros = np.zeros(len(text), np.int64)
    integer = pc.match_substring_regex(text, _INTEGER).to_numpy(zero_copy_only=False)
    if integer.any():
        digits = pc.utf8_ltrim(pc.utf8_trim_whitespace(text.filter(pa.array(integer))), "+")
        large = digits.cast(pa.uint64()).to_numpy()
        micros[integer] = _scale_integers(np.minimum(large, _GREATEST).astype(np.int64), unit)
        problems[integer] = _OK
    if integer.all():
        return micros, problems
    number = pc.match_substring_regex(text, _NUMBER).to_numpy(zero_copy_only=False) & ~integer
    if number.any():
        floats = pc.utf8_trim_whitespace(text.filter(pa.array(number)))
        floats = pc.utf8_ltrim(floats, "+").cast(pa.float64()).to_numpy()
        micros[number], problems[number] = _scale_floats(floats, unit)
        problems[pc.match_substring_regex(text, _OF_SPREADSHEET).to_numpy(zero_copy_only=False)] = _LOST
    rest = ~integer & ~number
    if rest.any():
        parsed, sound = _parse_iso(text.filter(pa.array(rest)))
        micros[rest] = parsed
        problems[np.flatnonzero(rest)[sound]] = _OK
    return micros, problems


def _parse_iso(text: pa.Array) -> tuple[Int64, Bool]:
    """Microseconds of ISO 8601 text, and which strings are valid."""
    parts = pc.extract_regex(text, _ISO)
    sound = parts.is_valid().to_numpy(zero_copy_only=False)

    def part(name: str) -> Int64:
        values = pc.fill_null(pc.struct_field(parts, name), "")
        return pc.if_else(pc.equal(values, ""), "0", values).cast(pa.int64()).to_numpy()

    year, month, day = part("year"), part("month"), part("day")
    hour, minute, second = part("hour"), part("minute"), part("second")
    safe_month = np.clip(month, 1, 12)
    first_of_month = ((year - 1970) * 12 + safe_month - 1).astype("datetime64[M]")
    start = first_of_month.astype("datetime64[D]").astype(np.int64)
    days_in_month = (first_of_month + 1).astype("datetime64[D]").astype(np.int64) - start
    sound &= (month == safe_month) & (day >= 1) & (day <= days_in_month)
    sound &= (hour < 24) & (minute < 60) & (second <= 60)  # 60: a leap second
    offset_minutes, zone_sound = _zone(pc.fill_null(pc.struct_field(parts, "zone"), ""))
    seconds = (start + day - 1) * 86_400 + hour * 3_600 + (minute - offset_minutes) * 60 + second
    return seconds * 1_000_000 + _fraction(parts), sound & zone_sound


def _fraction(parts: pa.Array) -> Int64:
    """Microseconds of the field "fraction", the digits after the point; 0 if there are none."""
    digits = pc.utf8_rpad(pc.fill_null(pc.struct_field(parts, "fraction"), ""), 9, "0")
    return digits.cast(pa.int64()).to_numpy() // 1_000


def _zone(zone: pa.Array) -> tuple[Int64, Bool]:
    """Minutes east of UTC, and which zones are valid."""
    signed = pc.match_substring_regex(zone, "^[+-]").to_numpy(zero_copy_only=False)
    digits = pc.utf8_rpad(pc.replace_substring_regex(zone, "[^0-9]", ""), 4, "0").cast(pa.int64()).to_numpy()
    sign = np.where(pc.starts_with(zone, "-").to_numpy(zero_copy_only=False), -1, 1)
    hours, minutes = digits // 100, digits % 100
    return np.where(signed, sign * (hours * 60 + minutes), 0), (hours < 24) & (minutes < 60)
