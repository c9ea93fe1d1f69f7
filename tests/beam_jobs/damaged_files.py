"""Writes logs that are damaged on their way."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.beam_jobs.helpers import HEADER


def truncated_parquet(path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["u"] * 999, "item_id": ["a"] * 999, "timestamp": [1] * 999}), path)
    path.write_bytes(path.read_bytes()[:-20])


def changed_parquet(path: Path) -> None:
    """With a changed byte of an id, which only the page's checksum tells from the id."""
    columns = {"user_id": [f"u{row}" for row in range(999)], "item_id": ["a"] * 999, "timestamp": [1] * 999}
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"u500", b"u5x0"))


def cut_gzip(path: Path) -> None:
    rng = np.random.default_rng(0)
    body = "".join(f"{u},{u},{u}\n" for u in rng.integers(0, 10**9, 300_000))
    data = gzip.compress(f"{HEADER}\n{body}".encode(), 1)
    path.write_bytes(data[: len(data) - 5_000])
