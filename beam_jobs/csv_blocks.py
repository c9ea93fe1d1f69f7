"""CSV to Arrow, block by block, losing nothing: every line is a row of bytes or a named bad row.

pyarrow's own streaming reader cannot be used as it is: after a quote that is never closed it drops the
rest of the file without a word. So blocks are cut here, each is parsed with a sentinel row at its end,
and a missing sentinel shows that a quote has swallowed it.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from contracts.storage import as_path, open_binary

BLOCK_BYTES = 8 << 20
_INVALID = "\U0010ffff".encode()
codecs.register_error("beam_jobs.mark", lambda error: ("\U0010ffff", error.end))  # type: ignore[attr-defined]
_SENTINEL = b"\x01end of block\x01"
"""Without NUL, at which pyarrow cuts a row once a block has thousands of rows and cells of more than ten bytes."""
_HEADER = re.compile(rb'(?:[^"\n]+|"[^"]*")*')  # to the first line end outside quotes
_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_SEPARATORS = (",", ";", "\t", "|")
_MAGIC = {
    b"\x1f\x8b": "gzip data: call it .csv.gz",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard data: unpack it, or compress it with gzip",
    b"BZh": "bzip2 data: unpack it, or compress it with gzip",
    b"\xfd7zXZ": "xz data: unpack it, or compress it with gzip",
    b"PAR1": "Parquet: call it .parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


@dataclass
class CsvBatch:
    """Rows of one block.

    Attributes:
        table: the wanted columns, as binary.
        rows: [num_rows] number of each row in its file, the first data row being 1.
        bad_rows: (row number, reason, text) of what is not a row of this file.
    """

    table: pa.Table
    rows: npt.NDArray[np.int64]
    bad_rows: list[tuple[int, str, str]] = field(default_factory=list)


def is_csv(path: str) -> bool:
    """Whether the name says CSV or its sister with tabs, plain or gzip."""
    return path.lower().endswith(_SUFFIXES)


def read_csv_header(path: str, header: Sequence[str] = ()) -> list[str]:
    """The column names, without spaces around them.

    Args:
        path: of the file.
        header: of a file without a header line, its columns' names in their order.

    Raises:
        ValueError: the file is empty or not UTF-8 text, or its first line has another number of fields than `header`.
        OSError: the file cannot be read.
    """
    with _open(path) as stream:
        return _split_header(stream.read(1 << 20), path, header)[0]


def read_csv_batches(
    path: str, columns: Sequence[str], header: Sequence[str] = (), block_bytes: int = BLOCK_BYTES
) -> Iterator[CsvBatch]:
    """Reads only `columns`, each of which must be in the header exactly once.

    Args:
        path: of the file.
        columns: names of the wanted columns.
        header: see `read_csv_header`.
        block_bytes: read at a time.

    Raises:
        ValueError: as `read_csv_header`.
        OSError, EOFError: the file cannot be read to its end.
    """
    with _open(path) as stream:
        block = stream.read(max(block_bytes, 1 << 20))
        names, separator, block = _split_header(block, path, header)
        parser = _BlockParser(len(names), {name: names.index(name) for name in columns}, separator)
        while True:
            more = stream.read(block_bytes)
            cut = _last_record_end(block) if more else len(block)
            if cut:
                yield parser.parse(block[:cut])
            block = block[cut:] + more
            if not more:
                return


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


def _split_header(block: bytes, path: str, header: Sequence[str]) -> tuple[list[str], str, bytes]:
    """The column names, what separates them, and the bytes of the rows.

    The separator is the one that makes most of the first line: a log that is read has three columns at least, and a
    name that holds a separator is quoted.
    """
    for magic, what in _MAGIC.items():
        if block.startswith(magic):
            raise ValueError(f"{path} is {what}")
    block = block.removeprefix(b"\xef\xbb\xbf")
    end = len(_HEADER.match(block)[0])  # type: ignore[index]
    line, rest = block[:end], block[end + 1 :]
    if block.startswith(b'"', end):
        raise ValueError(f"{path}: a quote of the header line {line[:80]!r} never closes: mend it")
    if not line.strip():
        raise ValueError(f"{path} has no header line: the first line must name the columns")
    text = line.rstrip(b"\r").decode("utf-8", errors="replace")
    if "\r" in text and end == len(block):
        raise ValueError(f"{path}: its lines end with a carriage return alone, as on old Macs: save it with line feeds")
    headers, problem = {}, None
    for separator in _SEPARATORS:
        try:
            headers[separator] = next(csv.reader([text], delimiter=separator))
        except csv.Error as error:
            problem = problem or error
    if not headers:
        raise ValueError(f"{path}: the header line {text[:80]!r} is not CSV ({problem}): mend it")
    separator = max(headers, key=lambda separator: len(headers[separator]))  # of equal ones the first: commas
    names = [name.strip() for name in headers[separator]]
    if not header:
        return names, separator, rest
    if len(names) != len(header):
        raise ValueError(
            f"{path}: its first line has {len(names)} fields, {names[:10]}, and the header that the config gives it "
            f"names {len(header)}: {', '.join(header[:10])}"
        )
    return [name.strip() for name in header], separator, block


def _last_record_end(block: bytes) -> int:
    """Where the last newline outside quotes ends; 0 if a single record fills the block."""
    if b'"' not in block:
        return block.rfind(b"\n") + 1
    data = np.frombuffer(block, np.uint8)
    newlines = np.flatnonzero(data == ord("\n"))
    quotes_before = np.searchsorted(np.flatnonzero(data == ord('"')), newlines)
    outside = newlines[quotes_before % 2 == 0]
    # All newlines quoted: a stray quote, or a huge cell. Cutting at a line lets the sentinel tell.
    return int(outside[-1]) + 1 if len(outside) else (int(newlines[-1]) + 1 if len(newlines) else 0)


class _BlockParser:
    """Parses whole records, numbering the rows of a file as it goes."""

    def __init__(self, num_fields: int, wanted: dict[str, int], separator: str) -> None:
        self._num_fields = num_fields
        self._wanted = wanted
        self._names = [str(index) for index in range(num_fields)]
        self._separator = separator
        self._sentinel_row = separator.encode().join([_SENTINEL] * num_fields) + b"\n"
        self._next_row = 1

    def parse(self, block: bytes) -> CsvBatch:
        """Rows of `block`; a malformed record costs no more than its first line."""
        tables, rows, bad_rows = [], [], []
        pending = [block]
        while pending:
            text = pending.pop()
            table, invalid, swallowed = self._parse_in_sync(text)
            numbers = self._number(table.num_rows, len(invalid), [number for number, _ in invalid])
            bad_numbers = self._next_row + np.asarray([number for number, _ in invalid], np.int64)
            self._next_row += table.num_rows + len(invalid)
            tables.append(table)
            rows.append(numbers)
            for number, (_, content) in zip(bad_numbers.tolist(), invalid, strict=True):
                line, _, rest = content.partition("\n")
                bad_rows.append((number, f"not {self._num_fields} fields", line))
                if rest.strip():
                    pending.append(rest.encode("utf-8") + b"\n")
            if swallowed is not None:
                open_line, rest_bytes = swallowed
                bad_rows.append((self._next_row, "quote never closed", open_line.decode("utf-8", errors="replace")))
                self._next_row += 1
                if rest_bytes.strip():
                    pending.append(rest_bytes)
        return CsvBatch(pa.concat_tables(tables), np.concatenate(rows), bad_rows)

    def _number(self, num_good: int, num_bad: int, bad: list[int]) -> npt.NDArray[np.int64]:
        """Numbers of the good rows, given the 0-based places of the bad ones among all."""
        good = np.arange(num_good)
        if num_bad:
            good = good + np.searchsorted(np.asarray(bad) - np.arange(num_bad), good, side="right")
        return good + self._next_row

    def _parse_in_sync(self, text: bytes) -> tuple[pa.Table, list[tuple[int, str]], tuple[bytes, bytes] | None]:
        """Good rows, bad rows (place, text), and the line whose quote never closes with what follows it."""
        table, invalid = self._parse_raw(text)
        if table is not None:
            return table, invalid, None
        culprit = _unclosed_line(text, self._separator)
        end = text.find(b"\n", culprit) + 1 or len(text)
        table, invalid = self._parse_raw(text[:culprit])
        if table is None:
            raise ValueError("a CSV block cannot be split into records: check the quotes of the file")
        return table, invalid, (text[culprit:end].rstrip(b"\r\n"), text[end:])

    def _parse_raw(self, text: bytes) -> tuple[pa.Table | None, list[tuple[int, str]]]:
        """None in place of the table if the sentinel row was swallowed."""
        invalid: list[tuple[int, str]] = []

        def skip(row: pa_csv.InvalidRow) -> str:
            invalid.append((row.number - 1, row.text))
            return "skip"

        separator = b"" if text.endswith(b"\n") or not text else b"\n"
        marked = _mark_invalid_bytes(text)
        data = marked + separator + self._sentinel_row
        table = pa_csv.read_csv(
            pa.BufferReader(data),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=len(data) + 1, column_names=self._names),
            parse_options=pa_csv.ParseOptions(
                delimiter=self._separator, newlines_in_values=True, invalid_row_handler=skip
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
        if marked is not text:
            table = pa.table(
                {name: pc.replace_substring(table[name], _INVALID, b"\xff") for name in table.column_names}
            )
        return table, invalid


def _mark_invalid_bytes(text: bytes) -> bytes:
    """`text`, its bytes that are not UTF-8 replaced by a noncharacter: pyarrow fails on them in bad rows."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("utf-8", errors="beam_jobs.mark").encode("utf-8")
    return text


def _unclosed_line(text: bytes, separator: str) -> int:
    """Start of the line that opens the quote which nothing closes."""
    opens = rb'(?:^|(?<=[%s\n\r]))"' % separator.encode()
    blanked = re.sub(opens + rb'(?:[^"]|"")*"', lambda match: b" " * len(match.group()), text)
    opening = re.search(opens, blanked)
    position = opening.start() if opening else text.rfind(b'"')
    return text.rfind(b"\n", 0, max(position, 0)) + 1
