"""Reading and writing the kinds of files that jobs exchange, wherever they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.storage import reading, write_whole


def write_parquet(table: pa.Table, path: Path, rows_per_group: int | None = None) -> None:
    """Writes one Parquet file, whole or not at all, in row groups of `rows_per_group`, about a million by default."""
    options = {"compression": "zstd", "compression_level": 1, "row_group_size": rows_per_group}
    write_whole(path, lambda staging: pq.write_table(table, staging, **options))


def read_parquet(path: Path, **options: Any) -> pa.Table:
    """Reads a Parquet file, all of it unless `options` of pyarrow's `read_table` restrict it."""
    with reading(path) as file:
        return pq.read_table(file, use_threads=False, **options)


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Writes one .npy file, whole or not at all."""

    def write(staging: Path) -> None:
        # NumPy fills a write-only file in C, and on a full disk only reports "9,184 written", without a reason.
        with staging.open("w+b") as stream:
            np.save(stream, array)

    write_whole(path, write)


def read_array(path: Path) -> npt.NDArray[Any]:
    """Reads an .npy file's array into memory."""
    with reading(path) as file:
        array: npt.NDArray[Any] = np.load(file)
        return array
