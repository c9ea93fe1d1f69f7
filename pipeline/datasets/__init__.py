"""Event logs to run on: a real one fetched from the package index, published sequence files, and two seeded logs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from contracts import artifact

KIND = "dataset"
"""The kind in their manifests."""


@contextmanager
def writing(out: Path, fingerprint: str) -> Iterator[artifact.ArtifactWriter]:
    """Like `artifact.writing`, one process at a time: a second one would take what the first staged for leftovers."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_name(f".{out.name}.lock")), artifact.writing(out, KIND, fingerprint) as writer:
        yield writer
