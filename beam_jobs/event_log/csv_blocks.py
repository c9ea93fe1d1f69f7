"""CSV to Arrow, block by block, without loss: every line is a row of bytes or a named bad row.

pyarrow's own streaming reader cannot be used as it is: it silently drops whatever follows a quote that is never closed,
or reads it as one cell. So the file is cut into blocks here, and lines with such quotes are blanked. A sentinel row at
the end of each block shows that pyarrow has lost nothing.
"""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from beam_jobs.common.arrays import Int64
from beam_jobs.event_log.csv_header import split_header
from beam_jobs.event_log.csv_quotes import Form, Records, find_records, form_of, line_end, not_fields
from contracts.config import TextFormat
from contracts.storage import as_path, open_binary

BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 20
_MOST_LINE_BYTES = 64 << 20
_LONG_LINE = f"a line of more than {_MOST_LINE_BYTES >> 20} MiB"
_SHOWN_BYTES = 1_000
_INVALID = "\U0010ffff".encode()
codecs.register_error("beam_jobs.mark", lambda error: ("\U0010ffff", error.end))  # type: ignore[attr-defined]
_SENTINEL = b"\x01end of block\x01"
"""Has no NUL, as pyarrow cuts a row there if a block has thousands of rows and cells of more than ten bytes."""
CSV_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


@dataclass
class RawBatch:
    """Raw rows of a file.

    Attributes:
        table: the wanted columns: bytes from CSV, any Arrow type from Parquet.
        rows: [num_rows] number of each row in its file, the first data row being 1.
        bad_rows: (row number, reason, text) of lines that are not rows.
    """

    table: pa.Table
    rows: Int64
    bad_rows: list[tuple[int, str, str]] = field(default_factory=list)


def is_csv(path: str) -> bool:
    """Whether the name says CSV or TSV, plain or gzip."""
    return path.lower().endswith(CSV_SUFFIXES)


def read_csv_header(path: str, text: TextFormat) -> list[str]:
    """The column names of a file, as given by `split_header`.

    Raises:
        ValueError: as `split_header`.
        OSError: the file cannot be read.
    """
    with _open(path) as stream:
        return split_header(stream.read(_HEADER_BYTES), path, text)[0]


def read_csv_batches(
    path: str, columns: Sequence[str], text: TextFormat, block_bytes: int = BLOCK_BYTES
) -> Iterator[RawBatch]:
    """Reads only `columns`, each of which must be in the header exactly once.

    Args:
        path: the file.
        columns: names of the wanted columns.
        text: how the file is read.
        block_bytes: number of bytes to read at a time.

    Raises:
        ValueError: as `split_header`.
        OSError, EOFError: the file cannot be read to its end.
    """
    with _open(path) as stream:
        block = stream.read(_HEADER_BYTES)
        names, separator, block = split_header(block, path, text)
        wanted = {name: names.index(name) for name in columns}
        form = form_of(block, separator, len(names), text.quoting)
        parser = _BlockParser(form, wanted, text.has_quotes)
        while True:
            more = stream.read(block_bytes)
            batch, end = parser.parse(block, is_last=not more, most_bytes=block_bytes)
            yield batch
            block = block[end:] + more
            if not more:
                return
            # Such as zeros after a power cut, or those that gzip packs into next to nothing: parsing them takes many
            # times their length. If carriage returns end the rows, though, one apparent line is many rows.
            if len(block) > _MOST_LINE_BYTES and b"\n" not in block and b"\r" not in block:
                yield parser.set_aside(block[:_SHOWN_BYTES], _LONG_LINE)
                block = _after_line(stream, block_bytes)


@contextmanager
def _open(path: str) -> Iterator[BinaryIO]:
    """The file's bytes, gzip undone; damage is an OSError, whichever library finds it."""
    try:
        with open_binary(as_path(path)) as stream:
            if path.lower().endswith(".gz"):
                with gzip.open(stream) as content:
                    yield content  # type: ignore[misc]
            else:
                yield stream
    except zlib.error as error:
        raise OSError(f"damaged gzip data: {error}") from None


def _after_line(stream: BinaryIO, block_bytes: int) -> bytes:
    """Skips the rest of the stream's current line; returns the bytes that were read after it."""
    while block := stream.read(block_bytes):
        _, feed, rest = block.partition(b"\n")
        if feed:
            return rest
    return b""


class _BlockParser:
    """Parses whole records, numbering the rows of a file as it goes."""

    def __init__(self, form: Form, wanted: dict[str, int], has_quotes: bool) -> None:
        self._form = form
        self._wanted = wanted
        self._names = [str(index) for index in range(form.num_fields)]
        self._has_quotes = has_quotes
        self._sentinel_row = form.separator.encode().join([_SENTINEL] * form.num_fields) + b"\n"
        self._blank_row = form.separator.encode().join([_SENTINEL] * (form.num_fields + 1)) + b"\n"
        self._next_row = 1
        self._lines_are_records = True

    def parse(self, block: bytes, *, is_last: bool, most_bytes: int) -> tuple[RawBatch, int]:
        """Rows of `block`, and where its whole records end; a malformed record costs no more than its first line.

        Args:
            block: bytes that begin with a record.
            is_last: whether the file ends with the block.
            most_bytes: largest size of a record of several lines.
        """
        records, table, invalid = self._of_lines(block, is_last) if self._lines_are_records else (None, None, [])
        if records is None or table is None:
            self._lines_are_records = False  # if a file has cells of several lines, most blocks have some
            find = partial(find_records, block, self._form, is_last, most_bytes)
            records = find()
            table, invalid = self._parse_raw(self._text(block, records))
            if any("\n" in text for _, text in invalid):  # a record of several lines: its first one is to blame
                records = find(count_fields=True)
                table, invalid = self._parse_raw(self._text(block, records))
        if table is None:
            raise OSError("where its rows end cannot be determined")
        bad_rows = self._bad_rows(block, records, invalid)
        rows = self._number(table.num_rows, len(invalid), [place for place, _ in invalid])
        self._next_row += table.num_rows + len(invalid)
        return RawBatch(table, rows, bad_rows), records.end

    def set_aside(self, line: bytes, reason: str) -> RawBatch:
        """A batch without rows, for a line that is not one and begins with `line`."""
        table = pa.table({name: pa.array([], pa.binary()) for name in self._wanted})
        bad_row = (self._next_row, reason, line.decode("utf-8", errors="replace"))
        self._next_row += 1
        return RawBatch(table, np.zeros(0, np.int64), [bad_row])

    def _of_lines(self, block: bytes, is_last: bool) -> tuple[Records | None, pa.Table | None, list[tuple[int, str]]]:
        """The block's rows if each is one line, as usual: their number shows it at no cost. Else None comes first."""
        records = Records(len(block) if is_last else block.rfind(b"\n") + 1, [])
        table, invalid = self._parse_raw(self._text(block, records))
        if (
            self._has_quotes
            and block.find(b'"', 0, records.end) >= 0
            and (table is None or table.num_rows + len(invalid) != _count_lines(block, records.end))
        ):
            return None, None, []
        return records, table, invalid

    def _text(self, block: bytes, records: Records) -> bytes:
        """The records and the sentinel, with a blank row for each line that is not a record: all rows are numbered."""
        view, kept = memoryview(block), 0
        parts: list[bytes | memoryview] = []
        for start, _ in records.set_aside:
            parts += [view[kept:start], self._blank_row]
            kept = line_end(block, start)
        feed = b"" if block.endswith(b"\n", 0, records.end) else b"\n"
        return b"".join([*parts, view[kept : records.end], feed, self._sentinel_row])

    def _bad_rows(self, block: bytes, records: Records, invalid: list[tuple[int, str]]) -> list[tuple[int, str, str]]:
        """`RawBatch.bad_rows` from pyarrow's bad rows; those in place of blanked lines get the lines' text."""
        bad_rows, set_aside = [], iter(records.set_aside)
        blank = self._blank_row.decode().rstrip("\n")
        for place, text in invalid:
            reason, line = not_fields(self._form.num_fields), text
            if text == blank:
                start, reason = next(set_aside)
                line = block[start : line_end(block, start)].rstrip(b"\r\n").decode("utf-8", errors="replace")
            bad_rows.append((self._next_row + place, reason, line))
        return bad_rows

    def _number(self, num_good: int, num_bad: int, bad: list[int]) -> Int64:
        """Numbers of the good rows, given the 0-based places of the bad ones among all rows."""
        good = np.arange(num_good)
        if num_bad:
            good = good + np.searchsorted(np.asarray(bad) - np.arange(num_bad), good, side="right")
        return good + self._next_row

    def _parse_raw(self, text: bytes) -> tuple[pa.Table | None, list[tuple[int, str]]]:
        """Good rows, and (place among all rows, text) of bad ones. No table if the sentinel row was swallowed."""
        invalid: list[tuple[int, str]] = []

        def skip(row: pa_csv.InvalidRow) -> str:
            invalid.append((row.number - 1, row.text))
            return "skip"

        data = _mark_invalid_bytes(text)
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names),
            parse_options=pa_csv.ParseOptions(
                delimiter=self._form.separator,
                quote_char='"' if self._has_quotes else False,
                newlines_in_values=True,
                invalid_row_handler=skip,
            ),
            convert_options=pa_csv.ConvertOptions(
                include_columns=[str(index) for index in self._wanted.values()],
                column_types={name: pa.binary() for name in self._names},
                strings_can_be_null=False,
            ),
        ).rename_columns(list(self._wanted))
        last = table.slice(table.num_rows - 1) if table.num_rows else table
        if table.num_rows == 0 or not pc.equal(last.column(0), pa.scalar(_SENTINEL))[0].as_py():
            return None, invalid
        table = table.slice(0, table.num_rows - 1)
        if data is not text:
            table = pa.table(
                {name: pc.replace_substring(table[name], _INVALID, b"\xff") for name in table.column_names}
            )
        return table, invalid


def _count_lines(block: bytes, end: int) -> int:
    """Number of lines up to `end`; -1 if a carriage return alone ends one, as it does for pyarrow."""
    data = np.frombuffer(block, np.uint8, end)
    is_feed = data == ord("\n")
    if b"\r" in block:
        is_return = data == ord("\r")
        if is_return[-1] or (is_return[:-1] & ~is_feed[1:]).any():
            return -1
    return int(np.count_nonzero(is_feed)) + (not is_feed[-1])


def _mark_invalid_bytes(text: bytes) -> bytes:
    """`text` with bytes that are not UTF-8 replaced by a noncharacter, as pyarrow fails on them in bad rows."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("utf-8", errors="beam_jobs.mark").encode("utf-8")
    return text
