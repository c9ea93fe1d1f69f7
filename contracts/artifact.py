"""Artifacts: directories that appear whole or not at all, with a manifest that says what they are.

An artifact is written beside its final place and renamed. A directory without a manifest is not an
artifact: readers refuse it, writers replace it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import contracts

MANIFEST_NAME = "manifest.json"
_STAGING_MARK = ".staging-"


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        kind: the artifact's name, e.g. "item_groups".
        fingerprint: hash of the config sections, input fingerprints and code version that made it.
        counts: named record counts, for reports.
        files: names of the data files, relative to the artifact. Readers go by this list, so a
            stray file beside them is never read.
        details: anything else worth keeping (JSON values).
        seconds: wall time of the stage that wrote it.
    """

    kind: str
    fingerprint: str
    code_version: str = contracts.__version__
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


class ArtifactError(ValueError):
    """An artifact is missing, half-written, or of another kind."""


def fingerprint(*parts: object) -> str:
    """A stable hash of JSON-like values."""
    text = json.dumps(parts, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_manifest(path: Path) -> Manifest:
    """Reads an artifact's manifest.

    Raises:
        ArtifactError: there is no complete artifact at `path`.
    """
    try:
        return Manifest(**json.loads((path / MANIFEST_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ArtifactError(f"no artifact at {path}: run the stage that writes it") from None
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST_NAME} is not a manifest ({error}): delete {path} and run again"
        ) from None


def find_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None if there is no complete artifact."""
    try:
        return read_manifest(path)
    except ArtifactError:
        return None


@dataclass
class ArtifactWriter:
    """What a stage fills in while it writes into `path`, the staging directory."""

    path: Path
    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@contextmanager
def writing(final: Path, kind: str, fingerprint: str) -> Iterator[ArtifactWriter]:
    """Writes an artifact: yields a staging directory, then renames it to `final`.

    On an exception the staging directory is removed and `final` is left as it was. Staging
    directories that a killed run left behind are removed first.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f"{final.name}{_STAGING_MARK}*"):
        shutil.rmtree(left, ignore_errors=True)
    writer = ArtifactWriter(final.with_name(f"{final.name}{_STAGING_MARK}{uuid.uuid4().hex[:8]}"))
    writer.path.mkdir()
    started = time.monotonic()
    try:
        yield writer
        manifest = Manifest(
            kind=kind,
            fingerprint=fingerprint,
            counts=writer.counts,
            files=sorted(writer.files),
            details=writer.details,
            seconds=round(time.monotonic() - started, 3),
        )
        write_json(writer.path / MANIFEST_NAME, asdict(manifest))
        replace_directory(writer.path, final)
    finally:
        shutil.rmtree(writer.path, ignore_errors=True)


def replace_directory(source: Path, final: Path) -> None:
    """Renames `source` to `final`, an existing `final` having been moved out of the way and removed."""
    if final.exists():
        old = final.with_name(f"{final.name}{_STAGING_MARK}old-{uuid.uuid4().hex[:8]}")
        os.rename(final, old)
        os.rename(source, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(source, final)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never a part."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file beside `path`, then renames it into place."""
    staging = path.with_name(f"{path.name}{_STAGING_MARK}{uuid.uuid4().hex[:8]}")
    staging.write_text(text, encoding="utf-8")
    os.replace(staging, path)
