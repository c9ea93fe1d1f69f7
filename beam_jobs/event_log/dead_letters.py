"""The rows of a log file that are not events, as JSON lines, set aside by the worker that reads the file.

They are neither sent to another worker nor held in memory: if every row is malformed, for example because of a wrong
column name, there are as many of them as rows.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import TracebackType

import pyarrow as pa

from contracts.storage import write_whole

_IN_MEMORY = 1 << 20  # bytes; more go to an unnamed file on disk, of which a killed worker leaves nothing behind
_MOST_EXAMPLES = 3


class DeadLetters:
    """The dead letters of one file, to be used in a `with` block.

    Attributes:
        reasons: number of dead letters by reason.
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
        """Adds those of a batch, of `DEAD_LETTER_SCHEMA`, in any order; batches come in the file's order."""
        for batch in letters.sort_by([("row", "ascending"), ("reason", "ascending")]).to_batches(1 << 14):
            rows = batch.to_pylist()
            self.reasons.update(row["reason"] for row in rows)
            for row in rows[: _MOST_EXAMPLES - len(self.examples)]:
                self.examples.append(f"{self._source} row {row['row']}: {row['reason']} ({row['value']!r})")
            lines = (json.dumps({"source": self._source, **row}, ensure_ascii=False) + "\n" for row in rows)
            self._lines.write("".join(lines).encode())

    def write(self, path: Path) -> None:
        """Writes the dead letters to a file, if there are any."""
        if not self.reasons:
            return
        self._lines.seek(0)

        def copy(staging: Path) -> None:
            with staging.open("wb") as target:
                shutil.copyfileobj(self._lines, target, 1 << 20)

        write_whole(path, copy)
