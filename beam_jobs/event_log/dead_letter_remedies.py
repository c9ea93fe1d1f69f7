"""Remedies for a log with many dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from beam_jobs.event_log.column_text import NOT_UTF8
from beam_jobs.event_log.csv_quotes import UNCLOSED, is_not_fields
from beam_jobs.event_log.event_columns import NO_FLAG, NO_LEVEL, NO_RATING
from beam_jobs.event_log.timestamps import NEGATIVE, UNREADABLE
from contracts.config import DataConfig
from contracts.names import EventColumn

_OF_NUMBERS = "for numbers, name the column in data.columns.rating, and set the least that counts in rating_thresholds"
_REMEDIES = {
    NO_LEVEL: "list all values of data.columns.event in data.feedback.levels, lowest first, and set target_level to "
    f"the lowest that counts; or remove the other rows; or, {_OF_NUMBERS}",
    NO_FLAG: "write true or false, or 1 or 0; or, for other words, name the column in data.columns.event and list all "
    f"of its words in data.feedback.levels; or, {_OF_NUMBERS}",
    NO_RATING: "write a point before decimals and no separator between thousands, as in 1234.5; for names of levels, "
    "name the column in data.columns.event",
    NOT_UTF8: "save the log as UTF-8, e.g. with `iconv -f latin1 -t utf-8`; write binary ids, such as UUIDs or MD5 "
    "sums, as hex",
}
"""Ending of a reason -> what to do."""


def double_the_quotes(examples: Iterable[str]) -> str:
    """What to do if one of the malformed rows has a quote after a backslash, as Spark writes them; else ""."""
    if any(r"\"" in example for example in examples):
        return r"""quotes in quoted cells must be doubled, not escaped by a backslash: `sed 's/\\"/""/g'` fixes that"""
    return ""


def remedy(reasons: Counter[str], data: DataConfig, num_files: int, examples: list[str]) -> str:
    """The remedy for the commonest reason, "" if none is known; `examples` are malformed rows."""
    reason, count = reasons.most_common(1)[0] if reasons else ("", 0)
    if reason.startswith(EventColumn.TIMESTAMP):
        return _remedy_of_times(reason, data, is_header=bool(data.header) and count <= num_files)
    for end, cure in _REMEDIES.items():
        if reason.endswith(end):
            return cure
    if is_not_fields(reason) or reason == UNCLOSED:
        return _remedy_of_fields(reason, data, examples)
    return ""


def _remedy_of_fields(reason: str, data: DataConfig, examples: list[str]) -> str:
    """Lines with quotes may lack fields for another reason, such as a header that does not name the first column."""
    has_quotes = reason == UNCLOSED or any('"' in example for example in examples)
    if data.has_quotes and has_quotes and (cure := double_the_quotes(examples)):
        return cure
    cures = []
    if is_not_fields(reason):
        enclosed = ", with quotes around values that contain the separator" if data.has_quotes else ""
        cures.append(f"write as many fields per row as the header has{enclosed}")
    if reason == UNCLOSED and data.quoting == "auto":
        cures.append("if quoted values span several lines, set data.quoting=always")
    if has_quotes:
        cures.append(
            "if quotes are ordinary characters, set data.quoting=none"
            if data.has_quotes
            else "if quotes enclose values, remove data.quoting=none"
        )
    return "; or, ".join(cures)


def _remedy_of_times(reason: str, data: DataConfig, is_header: bool) -> str:
    if reason.endswith(NEGATIVE):
        return "times before 1970 are not supported; if none were meant, check data.timestamp_unit"
    if not reason.endswith(UNREADABLE):
        return ""
    if is_header:
        return "if that line names the columns, remove data.header: it is for files without a header line"
    if data.timestamp_format is not None:
        return f"check data.timestamp_format={data.timestamp_format!r}, the only format that is read"
    return (
        "times are read as numbers since 1970 or ISO 8601, such as 2019-11-01T13:05:58; for other formats, set "
        "data.timestamp_format, e.g. '%m/%d/%Y %I:%M:%S %p' (YAML needs these quotes), or rewrite the column"
    )
