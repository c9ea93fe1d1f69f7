"""Published sequence files as event logs: order instead of time.

Two layouts are in use: one line per user (`user item item ...`, oldest first: S3-Rec), and one line per event
(`user item`, oldest first: SASRec, BERT4Rec). An event's time is its place in the user's sequence.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts import artifact
from contracts.names import EventColumn
from pipeline.datasets import writing

EVENTS = "events.parquet"
_FIRST_SECOND = 1_000_000_000
"""The unit of times is read from their magnitude: this one is seconds, in 2001."""


def convert(source: Path, out: Path) -> artifact.Manifest:
    """Writes `out`/events.parquet (user_id, item_id, timestamp); an up-to-date one is kept.

    Raises:
        ValueError: the file is missing, empty or not of a known layout.
    """
    try:
        status = source.stat()
    except OSError as error:
        raise ValueError(
            f"cannot read sequences from {source}: {error.strerror}; name the file that has them (`dnc benchmark` "
            "takes its directory by --data NAME=PATH)"
        ) from None
    fingerprint = artifact.fingerprint(str(source.resolve()), status.st_size, status.st_mtime_ns)
    if manifest := artifact.find_current(out, fingerprint):
        return manifest
    user, item = _read(source)
    order = np.argsort(user, kind="stable")
    lengths = np.unique(user, return_counts=True)[1]
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    table = pa.table(
        {
            EventColumn.USER_ID: pa.array(user[order]).cast(pa.string()),
            EventColumn.ITEM_ID: pa.array(item[order]).cast(pa.string()),
            EventColumn.TIMESTAMP: pa.array(_FIRST_SECOND + place),
        }
    )
    with writing(out, fingerprint) as writer:
        pq.write_table(table, writer.path / EVENTS)
        writer.files.append(EVENTS)
        writer.counts |= {"events": len(user), "users": len(lengths), "items": len(np.unique(item))}
    return artifact.read_manifest(out)


def _read(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """int64 users and items, one per event, each user's oldest first."""
    try:
        text = source.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not UTF-8 text ({error}): if it is compressed, decompress it") from None
    lines = [words for words in map(str.split, text.splitlines()) if words]
    if min(map(len, lines), default=0) < 2:
        raise ValueError(f"{source} must hold lines of a user and one or more items, separated by spaces")
    try:
        users = np.array([int(user) for user, *_ in lines], np.int64)
        items = np.array([int(item) for _, *listed in lines for item in listed], np.int64)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{source} must hold whole numbers for users and items ({error})") from None
    return np.repeat(users, [len(words) - 1 for words in lines]), items
