"""The kinds of files that jobs exchange, wherever they lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.storage import reading, write_whole


def write_parquet(table: pa.Table, path: Path, rows_per_group: int | None = None) -> None:
    """One Parquet file, whole or absent, in row groups of `rows_per_group`, by default of a million rows or so."""
    options = {"compression": "zstd", "compression_level": 1, "row_group_size": rows_per_group}
    write_whole(path, lambda staging: pq.write_table(table, staging, **options))


def read_parquet(path: Path, **options: Any) -> pa.Table:
    """All of a Parquet file, or what `options` of pyarrow's `read_table` leave of it."""
    with reading(path) as file:
        return pq.read_table(file, use_threads=False, **options)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """One .npy file, whole or absent."""

    def write(staging: Path) -> None:
        # A file to write alone NumPy fills by C, and of a disk that fills up says "9,184 written" and no reason.
        with staging.open("w+b") as stream:
            np.save(stream, array)

    write_whole(path, write)


def read_array(path: Path) -> npt.NDArray[Any]:
    """An .npy file's array, in memory."""
    with reading(path) as file:
        array: npt.NDArray[Any] = np.load(file)
        return array
