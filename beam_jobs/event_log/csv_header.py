"""The head of a text file: the column names and the separator of its fields."""

from __future__ import annotations

import csv
import re
from contextlib import suppress

from contracts.config import TextFormat

_HEADER = re.compile(rb'(?:[^"\n]+|"[^"]*")*')  # to the first line end outside quotes
_LINES_TRIED = 20
_SHOWN_CHARACTERS = 80
_SEPARATORS = (",", ";", "\t", "|")
_TWO_COLONS = "::"
_STRAY_QUOTE = (
    "if the line is a row, name the columns in data.header (for a feature table, its `header`); if quotes are "
    "ordinary characters, set data.quoting=none (or its `quoting`); otherwise fix the line"
)
USE_ONE_CHARACTER = "its fields are separated by '::', which is not supported: use commas or tabs instead"
_BLOCK_OF_ITEM = re.compile(rb"\d+:\r?\n")
_MAGIC = {
    b"\x1f\x8b": "gzip data: rename it to .csv.gz",
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "Zstandard data: unpack it, or compress it with gzip",
    b"BZh": "bzip2 data: unpack it, or compress it with gzip",
    b"\xfd7zXZ": "xz data: unpack it, or compress it with gzip",
    b"PAR1": "Parquet: rename it to .parquet",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


def split_header(block: bytes, path: str, text: TextFormat) -> tuple[list[str], str, bytes]:
    """The column names without surrounding spaces, the separator, and the bytes of the rows.

    The separator is the one that splits the header line into the most fields: a log has at least three columns, and a
    name that contains a separator is quoted. At a tie, it is the tab in a .tsv file, else the comma.

    Args:
        block: the file's beginning.
        path: the file's path, for messages.
        text: how the file is read.

    Raises:
        ValueError: there is no header line, or the file is of a kind that is not read, or the first lines have another
            number of fields than `text.header`.
    """
    for magic, what in _MAGIC.items():
        if block.startswith(magic):
            raise ValueError(f"{path} is {what}")
    if b"\0\0\0\0" in (block[0:8:2], block[1:8:2]):
        raise ValueError(f"{path} is UTF-16 or UTF-32 text: save it as UTF-8")
    block = block.removeprefix(b"\xef\xbb\xbf")
    if head := _BLOCK_OF_ITEM.match(block):
        raise ValueError(
            f"{path} begins with {head[0].strip().decode()!r}: only the first line of each block names the item, as "
            "in Netflix's data; write one rating per row, with the item in a column of its own"
        )
    if text.header:
        # A file without rows, as for a day without events, shows no separator; one with only a header is read, too.
        separator = _separator_of_rows(block, path, text) if block.strip() else _SEPARATORS[0]
        return [name.strip() for name in text.header], separator, block
    line, rest = _first_line(block, path, text)
    headers = {}
    for separator in _separators(path):
        with suppress(csv.Error):  # a line end after a quote within a field
            headers[separator] = _fields(line, separator, text)
    if not headers:
        raise ValueError(f"{path}: a quote in the first line, {_shown(block)}, encloses no name: {_STRAY_QUOTE}")
    separator = max(headers, key=lambda separator: len(headers[separator]))  # at a tie the first
    names = headers[separator]
    quoted = [name.strip() for name in names if name[:1].isspace() and name.lstrip().startswith('"')]
    if text.has_quotes and len(names) > 1 and len(quoted) == len(names) - 1:
        raise ValueError(
            f"{path}: quotes after a space, as in the header's {separator} {quoted[0]}, count as part of the value: "
            f"remove the spaces after each {separator!r} from the header and the rows"
        )
    return [name.strip() for name in names], separator, rest


def _separators(path: str) -> list[str]:
    """The separators, the one that the file's name suggests first."""
    own = "\t" if path.lower().endswith((".tsv", ".tsv.gz")) else ","
    return sorted(_SEPARATORS, key=lambda separator: separator != own)


def _first_line(block: bytes, path: str, text: TextFormat) -> tuple[str, bytes]:
    """The header line, and what follows it."""
    end = len(_HEADER.match(block)[0]) if text.has_quotes else len(block.split(b"\n", 1)[0])  # type: ignore[index]
    line = block[:end].rstrip(b"\r").decode("utf-8", errors="replace")
    if text.has_quotes and block.startswith(b'"', end):
        raise ValueError(f"{path}: a quote in the first line, {_shown(block)}, is never closed: {_STRAY_QUOTE}")
    if not line.strip():
        raise ValueError(f"{path} has no header line: the first line must name the columns")
    if "\r" in line and end == len(block):
        raise ValueError(f"{path}: its lines end with a carriage return alone, as on old Macs: save it with line feeds")
    return line, block[end + 1 :]


def _shown(block: bytes) -> str:
    """Enough of a file's first line to recognise it, at most up to its end, even if that is within quotes."""
    return repr(block.split(b"\n", 1)[0].rstrip(b"\r").decode("utf-8", errors="replace")[:_SHOWN_CHARACTERS])


def _separator_of_rows(block: bytes, path: str, text: TextFormat) -> str:
    """The separator that splits most of the first lines into as many fields as the header names.

    Any of these lines may be something other than a row.
    """
    header = text.header
    lines = [line.decode("utf-8", errors="replace") for line in block.split(b"\n", _LINES_TRIED)[:_LINES_TRIED]]
    fields = {separator: [_num_fields(line, separator, text) for line in lines] for separator in _separators(path)}
    fields[_TWO_COLONS] = [len(line.split(_TWO_COLONS)) for line in lines]
    best = max(fields, key=lambda separator: fields[separator].count(len(header)))
    if len(header) not in fields[best] or best == _TWO_COLONS:
        found = {separator: numbers[0] for separator, numbers in fields.items()}
        raise ValueError(
            f"{path}: the header in the config names {len(header)} columns, {', '.join(header[:10])}; the number of "
            f"fields in the file's first line is, by separator: {found}"
            + (f"; {USE_ONE_CHARACTER}" if _TWO_COLONS in lines[0] else "")
        )
    return best


def _num_fields(line: str, separator: str, text: TextFormat) -> int:
    try:
        return len(_fields(line.rstrip("\r"), separator, text))
    except csv.Error:
        return 0


def _fields(line: str, separator: str, text: TextFormat) -> list[str]:
    if not text.has_quotes:
        return line.split(separator)
    return next(csv.reader([line], delimiter=separator), [])
