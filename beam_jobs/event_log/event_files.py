"""The files of an event log: finding them, checking them before any work starts, reading batches of raw columns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.event_log.csv_blocks import CSV_SUFFIXES, RawBatch, is_csv, read_csv_batches, read_csv_header
from beam_jobs.event_log.csv_header import USE_ONE_CHARACTER
from beam_jobs.event_log.vector_column import is_list
from contracts.config import DataConfig, TextFormat
from contracts.patterns import PLACEHOLDERS, matching
from contracts.storage import as_path, exists, is_remote, open_binary, reading

PARQUET_BATCH_ROWS = 1 << 18
_OPEN_AT_ONCE = 16
_LOG = "data.events"
_SHOWN_COLUMNS = 30
_NO_TIMES = (
    "; if the log has no times, add a column of them, such as the row number if the rows are in the order of events, "
    "or else the same number for all"
)
_OF_VIEW = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
_KINDS = ("*.parquet", *(f"*{suffix}" for suffix in CSV_SUFFIXES))
_JSON = re.compile(r"\.(json|jsonl|ndjson)(\.\w+)?$")


def wanted_columns(data: DataConfig) -> dict[str, str]:
    """Column name -> the config key that names it, for all columns that are ever read from the log.

    Raises:
        ValueError: user, item and time are not three different columns.
    """
    columns = data.columns
    wanted = {
        columns.user_id: "data.columns.user_id",
        columns.item_id: "data.columns.item_id",
        columns.timestamp: "data.columns.timestamp",
    }
    if len(wanted) < 3:
        raise ValueError(
            f"data.columns names one column twice: user_id={columns.user_id}, item_id={columns.item_id}, "
            f"timestamp={columns.timestamp}; each needs its own"
        )
    if columns.event is not None:
        wanted.setdefault(columns.event, "data.columns.event")
    for level, name in data.feedback.flags.items():
        wanted.setdefault(name, f"data.feedback.flags.{level}")
    if columns.rating is not None:
        wanted.setdefault(columns.rating, "data.columns.rating")
    for feature in data.request_features:
        wanted.setdefault(feature.column_name, f"the column of {feature.name} in data.request_features")
    return wanted


def find_event_files(data: DataConfig) -> list[str]:
    """Every file that `data.events` names, sorted, each checked to hold the wanted columns.

    Raises:
        ValueError: nothing matches, or a file is unreadable, of unknown format, or lacks a column.
    """
    if not data.events:
        raise ValueError("data.events is empty: name the log's files, e.g. --set data.events='log/*.csv'")
    paths = []
    for pattern in data.events:
        found = matching(pattern)
        if not found:
            remedy = _remedy_of_pattern(pattern)
            raise ValueError(f"data.events: no file matches {pattern!r}{_looked_in(pattern)}: {remedy}")
        paths += found
    paths = sorted(set(paths))
    wanted = wanted_columns(data)

    def check(path: str) -> None:
        check_file(path, wanted, _LOG, data)
        require_flat(path, wanted)

    with ThreadPoolExecutor(_OPEN_AT_ONCE) as pool:  # in an object store, each of thousands of files takes a moment
        list(pool.map(check, paths))  # raises the first error, in the order of the files
    return paths


def _remedy_of_pattern(pattern: str) -> str:
    if PLACEHOLDERS.search(pattern):
        return f"only `dnc retrain` reads spans; name files, e.g. {PLACEHOLDERS.sub('*', pattern)!r}"
    if (literal := pattern.replace("[", "[[]")) != pattern and matching(literal):
        return f"[ begins a set of characters; for a literal [ write [[], as in {literal!r}"
    if pattern.startswith("data/"):
        return "check the path, or get the data: `dnc data --help` lists those that this repository's configs read"
    return "check the path"


def require_flat(path: str, wanted: dict[str, str]) -> None:
    """Raises ValueError if a column of `wanted` (name -> config key) holds lists or structs, not plain values.

    Ids, times and levels cannot be read from these. The file must have passed `check_file`.
    """
    if is_csv(path):
        return
    with open_binary(as_path(path)) as stream:
        types = {field.name.strip(): _plain(field.type) for field in pq.read_schema(stream)}
    for name, key in wanted.items():
        if pa.types.is_nested(types[name]):
            raise ValueError(
                f"{path}: column {name!r} ({key}) is of type {types[name]} and cannot be read as text; "
                "write one value per row, or name another column"
            )


def check_file(path: str, wanted: dict[str, str], field: str, text: TextFormat) -> None:
    """Checks that `path` is a readable table with the `wanted` columns (name -> config key).

    Args:
        path: the table's file.
        wanted: column name -> config key.
        field: the config key that names the table.
        text: how the file is read, if it is text.

    Raises:
        ValueError: it is not.
    """
    if field != _LOG and not exists(as_path(path)):  # a log's files have just been listed
        remedy = "a table must be a single file, named without patterns" if glob.has_magic(path) else "check the path"
        raise ValueError(f"{field}: there is no file {path}{_looked_in(path)}: {remedy}")
    if os.path.isdir(path):
        kind = next((kind for kind in _KINDS if any(Path(path).rglob(kind))), _KINDS[0])
        remedy = f"name its files, e.g. '{path.rstrip('/')}/**/{kind}'"
        if field != _LOG:  # a table is one file
            one = f"from pyarrow import parquet; parquet.write_table(parquet.read_table({path!r}), 'x.parquet')"
            remedy = f"name a single file; `{one}` makes one from a directory of Parquet files"
        raise ValueError(f"{field}: {path} is a directory; {remedy}")
    if Path(path).is_fifo():  # opened, it would wait for a writer for ever
        raise ValueError(f"{field}: {path} is a pipe, which can be read only once: write it to a file, and name that")
    try:
        found = _column_names(path, field, text)
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{field}: {path} cannot be read ({error}): check that it is complete and in the format that its name says"
        ) from None
    for name, key in wanted.items():
        if name not in found:
            more = f" and {len(found) - _SHOWN_COLUMNS:,} more" if len(found) > _SHOWN_COLUMNS else ""
            raise ValueError(
                f"{path} has no column {name!r} ({key}); its columns are {found[:_SHOWN_COLUMNS]}{more}: "
                f"{_elsewhere(found, name, key, path) or _no_names(found) or f'set {key} to one of them'}"
                + (", or leave the file out of data.events" if field == _LOG else "")
                + (_NO_TIMES if key == "data.columns.timestamp" else "")
            )
        if found.count(name) > 1:
            raise ValueError(f"{path} has {found.count(name)} columns named {name!r} ({key}): rename all but one")


def _looked_in(path: str) -> str:
    if is_remote(as_path(path)):
        return ""
    return f" (looked in {os.getcwd()}{', since ~ is not expanded' if path.startswith('~') else ''})"


def _elsewhere(names: list[str], name: str, key: str, path: str) -> str | None:
    """The remedy if the column's name is in another place or has another form."""
    if f"/{name}=" in path:
        return f"directory names, one of which gives it, are not read: add a column {name!r} to the files"
    if names and names[0].lstrip("# ") == name:
        return f"set {key} to {names[0]!r}, or delete the # from the first line"
    return None


def _no_names(names: list[str]) -> str | None:
    """The remedy if the fields of the header line can hardly be names."""
    first = names[0] if names else ""
    is_comment = first.startswith(("# ", "sep=")) or (first.startswith("#") and len(names) == 1)  # sep= is Excel's
    if is_comment or 2 * names.count("") > len(names):  # mostly empty names: a title, as in a spreadsheet
        return "the first line must name the columns: delete whatever comes before the names"
    if len(names) == 1 and " " in names[0]:
        return "fields must be separated by commas, semicolons, tabs or bars: rewrite the file with one of these"
    if any("::" in name for name in names):
        return USE_ONE_CHARACTER
    if any(name[:1].isdigit() and not name.isidentifier() for name in names):
        return "if the first line is a row, set `header` in the config to the names of the columns, in order"
    return None


def read_batches(path: str, columns: Sequence[str], text: TextFormat) -> Iterator[RawBatch]:
    """Batches of only `columns` from a file that passed `check_file`.

    Raises:
        ValueError: the file turns out to be damaged.
    """
    try:
        if is_csv(path):
            yield from read_csv_batches(path, columns, text)
            return
        with reading(as_path(path)) as copy:
            row, file = 1, open_parquet(copy)
            for record_batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=parquet_columns(file, columns)):
                table = as_named(pa.Table.from_batches([record_batch]))
                yield RawBatch(table, np.arange(row, row + table.num_rows))
                row += table.num_rows
    except (OSError, EOFError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{path} cannot be read to its end ({error}): if it is intact, run again; else get an intact copy, or "
            "leave it out"
        ) from None


def open_parquet(copy: Path) -> pq.ParquetFile:
    """Opens a user's file. Pages that were changed are an OSError, where the writer added checksums, as Spark does."""
    return pq.ParquetFile(copy, page_checksum_verification=True)


def parquet_columns(file: pq.ParquetFile, columns: Sequence[str]) -> list[str]:
    """The file's own names for `columns`, which are given without surrounding spaces."""
    return [name for name in file.schema_arrow.names if name.strip() in columns]


def as_named(table: pa.Table) -> pa.Table:
    """A table of `parquet_columns` without spaces around its names, in types that Arrow's functions accept.

    Arrow can neither take from nor filter views, which Polars and DataFusion may write, nor cast extensions to text.
    """
    columns = [column.cast(_plain(column.type)) for column in table.columns]
    return pa.table(columns, [name.strip() for name in table.column_names])


def _plain(kind: pa.DataType) -> pa.DataType:
    """The plain type: text for views of text, the storage type for extensions such as pandas' intervals or tensors."""
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):  # whose bytes are no text
        return _plain(kind.storage_type)
    if is_list(kind) and kind.value_type in _OF_VIEW:
        return pa.list_(_OF_VIEW[kind.value_type])
    return _OF_VIEW.get(kind, kind)


def is_parquet(path: str) -> bool:
    """Whether the name says Parquet, whatever the codec (`x.parquet.brotli` occurs in practice)."""
    return ".parquet" in os.path.basename(path).lower()


def _column_names(path: str, field: str, text: TextFormat) -> list[str]:
    if is_csv(path):
        return read_csv_header(path, text)
    if is_parquet(path):
        with open_binary(as_path(path)) as stream:
            return [name.strip() for name in pq.ParquetFile(stream).schema_arrow.names]
    if _JSON.search(path.lower()):
        # Not with pandas, which would read the id "007" as the number 7.
        copy = f"from pyarrow import json, parquet; parquet.write_table(json.read_json({path!r}), 'x.parquet')"
        remedy = f"JSON is not read: `{copy}` converts lines whose fields have one type each; else see docs/data.md"
    else:
        remedy = "unpack it, rename it by its format, or convert it as docs/data.md describes"
    raise ValueError(f"{field}: {path} is neither .csv, .csv.gz, .tsv, .tsv.gz nor .parquet: {remedy}")
