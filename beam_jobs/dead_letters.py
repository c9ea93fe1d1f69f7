"""The rows of a file of the log that are no events, as JSON lines: set aside where the file is read, by who reads it;
and what the commonest reason calls for.

They are neither sent to another worker nor held in memory: of a log whose every row is malformed, as by a wrong name of
a column, they are as many as its rows.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType

import pyarrow as pa

from beam_jobs.column_text import NOT_UTF8
from beam_jobs.csv_quotes import UNCLOSED, is_not_fields
from beam_jobs.event_columns import NO_FLAG, NO_LEVEL
from beam_jobs.timestamps import NEGATIVE, UNREADABLE
from contracts.config import DataConfig
from contracts.names import EventColumn
from contracts.storage import write_whole

_IN_MEMORY = 1 << 20  # bytes; more are on the disk, in a file without a name, which a killed worker leaves nothing of
_MOST_EXAMPLES = 3

_REMEDIES = {
    NO_LEVEL: "name all values of data.columns.event in data.feedback.levels, lowest first, and as target_level the "
    "lowest that counts; or leave the other rows out",
    NO_FLAG: "of numbers name the column in data.columns.rating, and the least that counts in rating_thresholds",
    NOT_UTF8: "save the log as UTF-8, e.g. by `iconv -f latin1 -t utf-8`",
}
"""By what a reason ends with."""


class DeadLetters:
    """Those of one file, to be used in a `with` block.

    Attributes:
        reasons: how many there are of each reason.
        examples: the first ones, in words.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._lines = SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  (`__exit__` closes it)
        self.reasons: Counter[str] = Counter()
        self.examples: list[str] = []

    def __enter__(self) -> DeadLetters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._lines.close()

    def add(self, letters: pa.Table) -> None:
        """Takes those of a batch, of `DEAD_LETTER_SCHEMA`, in any order; batches come in the file's."""
        for batch in letters.sort_by([("row", "ascending"), ("reason", "ascending")]).to_batches(1 << 14):
            rows = batch.to_pylist()
            self.reasons.update(row["reason"] for row in rows)
            for row in rows[: _MOST_EXAMPLES - len(self.examples)]:
                self.examples.append(f"{self._source} row {row['row']}: {row['reason']} ({row['value']!r})")
            lines = (json.dumps({"source": self._source, **row}, ensure_ascii=False) + "\n" for row in rows)
            self._lines.write("".join(lines).encode())

    def write(self, path: Path) -> None:
        """Puts them into a file, if there are any."""
        if not self.reasons:
            return
        self._lines.seek(0)

        def copy(staging: Path) -> None:
            with staging.open("wb") as target:
                shutil.copyfileobj(self._lines, target, 1 << 20)

        write_whole(path, copy)


def remedy(reasons: Counter[str], data: DataConfig, num_files: int, has_quote: bool) -> str:
    """What the commonest reason calls for, if that can be told; `has_quote`: so has an example."""
    reason, count = reasons.most_common(1)[0] if reasons else ("", 0)
    if reason.startswith(EventColumn.TIMESTAMP):
        return _remedy_of_times(reason, data, is_header=bool(data.header) and count <= num_files)
    for end, cure in _REMEDIES.items():
        if reason.endswith(end):
            return cure
    if is_not_fields(reason) and not has_quote:
        return "write as many fields a row as the header has, with quotes around values that hold the separator"
    if data.has_quotes and (reason == UNCLOSED or is_not_fields(reason)):
        return "if a quote is a character like any other, set data.quoting=none"
    return ""


def _remedy_of_times(reason: str, data: DataConfig, is_header: bool) -> str:
    if reason.endswith(NEGATIVE):
        return "times before 1970 are not read; were they meant? Check data.timestamp_unit"
    if not reason.endswith(UNREADABLE):
        return ""
    if is_header:
        return "if that is the line that names the columns, leave data.header out: it is for files without one"
    if data.timestamp_format is not None:
        return f"check data.timestamp_format={data.timestamp_format!r}, by which alone they are read"
    return (
        "times are read as numbers since 1970 or ISO 8601, such as 2019-11-01T13:05:58; of others set "
        "data.timestamp_format, such as '%m/%d/%Y %I:%M:%S %p' (YAML needs these quotes), or rewrite the column"
    )
