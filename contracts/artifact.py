"""Artifacts: directories that appear whole or not at all, with a manifest that says what they are.

An artifact is written beside its final place and renamed. A directory without a manifest is not an
artifact: readers refuse it, and so do writers if it holds files, which may be somebody's log.

Object stores cannot rename a directory. There, an artifact holds generations, which are directories written once, and
a small object that names the current one and is replaced last. Anything that a killed run left, or that a worker
outliving it still writes, belongs to a generation that nothing names.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import contracts
from contracts import storage

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

MANIFEST_NAME = "manifest.json"
_CURRENT = "current.txt"
_FORGOTTEN = "forgotten-manifest.json"
"""Name of the manifest of an artifact that `forget` has marked to be rewritten."""
_GENERATION = "generation-"
"""Prefix of generation names: eight hex digits alone might be a log's directory for a day, such as 20240131."""
T = TypeVar("T", bound="DataclassInstance")
Parsed = TypeVar("Parsed")


def now() -> str:
    """This moment, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(frozen=True)
class Manifest:
    """What an artifact is and where it came from.

    Attributes:
        kind: the artifact's name, e.g. "item_groups".
        fingerprint: hash of the config sections, input fingerprints and code that made it.
        code_version: version of the code that wrote it.
        created: when it was written, as given by `now`.
        counts: named record counts, for reports.
        files: names of the data files whose number or names may differ, relative to the artifact. Readers
            go by this list, so a stray file beside them is never read. Graphs and logs are not in it.
        details: anything else worth keeping (JSON values).
        seconds: wall time of the stage that wrote it.
    """

    kind: str
    fingerprint: str
    code_version: str = contracts.__version__
    created: str = field(default_factory=now)
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


@functools.cache
def code_of(*rooms: str) -> str:
    """A hash of the Python files of rooms or of their folders; the version if they are not files, as in a zip.

    Cached: a process writes artifacts of the code that it started with.
    """
    root = Path(contracts.__file__).parent.parent
    files = [path for room in rooms for path in sorted((root / room).rglob("*.py"))]
    sources = [(str(path.relative_to(root)), path.read_text(encoding="utf-8")) for path in files]
    return fingerprint(sources) if sources else contracts.__version__


def from_json(kind: type[T], text: str) -> T:
    """Reads a dataclass from its JSON `text`; fields that only newer code knows are ignored.

    After a failed upgrade, older code must still be able to read the records that newer code wrote.

    Raises:
        ValueError: it is not JSON.
        TypeError: it is not an object, or lacks a field.
    """
    known = {field.name for field in fields(kind)}
    return kind(**{name: value for name, value in {**json.loads(text)}.items() if name in known})


def read_json(path: Path, what: str, parse: Callable[[str], Parsed], remedy: str) -> Parsed:
    """Reads a local file that must hold JSON of some form.

    Args:
        what: what the file must be, e.g. "a plan".
        parse: converts the file's text, or raises ValueError, TypeError or KeyError.
        remedy: what to do with a damaged file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged; the message names it and the remedy.
    """
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is not {what} ({error}): {remedy}") from None


def require_this_version(path: Path) -> None:
    """Refuses the model at `path` if another version of the project trained its weights.

    The version number changes when weights get another meaning, though their shapes may stay the same.

    Raises:
        ArtifactError: another version trained them, or there is no model.
    """
    version = read_manifest(path).code_version
    if version != contracts.__version__:
        raise ArtifactError(
            f"the model in {path} was trained by code version {version}, but this is version {contracts.__version__}, "
            "which gives its weights another meaning: train it again"
        )


def read_manifest(path: Path, kind: str | None = None) -> Manifest:
    """Reads an artifact's manifest.

    Args:
        kind: the kind that the artifact must have; None accepts any.

    Raises:
        ArtifactError: there is no complete artifact at `path`, or one of another kind.
    """
    try:
        manifest = from_json(Manifest, storage.read_text(current(path) / MANIFEST_NAME))
    except storage.StorageError:
        raise
    except FileNotFoundError:
        raise ArtifactError(f"no artifact at {path}: check the path, or create it with `dnc run`") from None
    except (ValueError, TypeError) as error:
        raise ArtifactError(
            f"{path / MANIFEST_NAME} is not a manifest ({error}): delete {path} and run again"
        ) from None
    if kind not in (None, manifest.kind):
        raise ArtifactError(f"{path} holds {manifest.kind}, not {kind}: name a directory that holds {kind}")
    return manifest


def find_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`, or None if there is no complete artifact."""
    try:
        return read_manifest(path)
    except ArtifactError:
        return None


def is_whole(path: Path) -> bool:
    """Whether there is a complete artifact at `path`, with every file that its manifest names."""
    manifest = find_manifest(path)
    return manifest is not None and all(storage.exists(current(path) / name) for name in manifest.files)


def find_current(path: Path, fingerprint: str) -> Manifest | None:
    """The manifest at `path`, or None if there is no complete artifact with that fingerprint."""
    manifest = find_manifest(path)
    return manifest if manifest is not None and manifest.fingerprint == fingerprint else None


def forget(path: Path) -> None:
    """Renames the manifest at `path`, so that the directory no longer counts as an artifact and is rewritten."""
    place = current(path)
    if storage.exists(place / MANIFEST_NAME):
        storage.write_text(place / _FORGOTTEN, storage.read_text(place / MANIFEST_NAME))
        storage.remove(place / MANIFEST_NAME)


def require_ours(path: Path) -> None:
    """Refuses to write an artifact over files that are not part of one, or over a mount point.

    An artifact replaces the directory at `path`, and somebody may keep a log in the workdir, for example in `events/`.

    Raises:
        ArtifactError: there are such files at `path`, or a disk is mounted there.
    """
    path = _followed(path)
    require_no_mount(path, "an artifact replaces the directory itself")
    if storage.is_remote(path):
        found = set() if current(path) != path else {file.parts[len(path.parts)] for file in storage.tree(path)}
        found = {name for name in found if not name.startswith(_GENERATION)}  # such as a killed run leaves
    else:
        found = set(os.listdir(path)) if path.is_dir() else set()
    if found and not found & {MANIFEST_NAME, _FORGOTTEN}:
        raise ArtifactError(
            f"{path} holds {min(found)}, which is not part of an artifact and would be lost: move or delete it, or "
            "choose another place to write to (-w, -s or --out)"
        )


def require_no_mount(path: Path, why: str) -> None:
    """Raises ArtifactError if a disk is mounted at `path`, since nothing beside it can be renamed into it."""
    if not storage.is_remote(path) and path.is_mount():
        raise ArtifactError(
            f"{path} is a mount point, but {why}: mount the disk at {path.parent} instead, or mount it elsewhere and "
            f"make {path} a link to a directory on it"
        )


def current(path: Path) -> Path:
    """Where the files of the artifact at `path` are now: there, or in its current generation in an object store.

    A plain copy of an artifact in an object store has no generations.
    """
    if not storage.is_remote(path):
        return path
    try:
        return path / storage.read_text(path / _CURRENT)
    except FileNotFoundError:
        return path


@dataclass
class ArtifactWriter:
    """What a stage fills in while it writes into `path`, the staging directory."""

    path: Path
    counts: dict[str, int] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@contextmanager
def writing(final: Path, kind: str, fingerprint: str) -> Iterator[ArtifactWriter]:
    """Writes an artifact: yields a directory to write into, which then replaces `final`, or its target if it is a link.

    On an exception that directory is removed and `final` is left as it was. Leftovers of a killed run are removed
    first.

    Raises:
        ArtifactError: there are files at `final` that are not part of an artifact.
    """
    final = _followed(final)
    _remove_leftovers(final)
    writer = ArtifactWriter(_begin(final))
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
        _put(writer.path, final)
    except BaseException:
        with suppress(storage.StorageError):  # the error being raised says more
            storage.remove_tree(writer.path)
        raise
    if storage.is_remote(final):
        _remove_others(final, writer.path)


def fetch(source: Path, final: Path) -> Manifest:
    """Copies the artifact at `source`, in an object store, to the local `final`, which appears whole or not at all.

    Raises:
        ArtifactError: there is none, or there are files at `final` that are not part of an artifact.
    """
    stored, final = current(source), _followed(final)
    manifest = read_manifest(stored)
    if find_manifest(final) != manifest:
        _remove_leftovers(final)
        staging = _begin(final)
        try:
            storage.fetch_tree(stored, staging)
            replace_directory(staging, final)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _followed(final: Path) -> Path:
    """The target of a link, for example to a larger disk: the next artifact is written there, and the link stays."""
    return Path(os.path.realpath(final)) if not storage.is_remote(final) and final.is_symlink() else final


def _begin(final: Path) -> Path:
    """The directory in which the new content of `final` is written."""
    if storage.is_remote(final):
        return final / f"{_GENERATION}{uuid.uuid4().hex[:8]}"
    staging = storage.staging_path(final)
    staging.mkdir()
    return staging


def _remove_leftovers(final: Path) -> None:
    require_ours(final)
    if not storage.is_remote(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        storage.remove_leftovers(final)
    elif (kept := current(final)) != final:
        _remove_others(final, kept)
    elif find_manifest(final) is None:
        storage.remove_tree(final)


def _put(staging: Path, final: Path) -> None:
    """Puts what was written to `staging` at `final`."""
    if storage.is_remote(final):
        storage.write_text(final / _CURRENT, staging.name)
    else:
        replace_directory(staging, final)


def _remove_others(final: Path, kept: Path) -> None:
    """Removes all generations but one, and the files of a plain copy."""
    storage.remove(*(path for path in storage.tree(final) if not {kept, final / _CURRENT} & {path, *path.parents}))


def replace_directory(source: Path, final: Path) -> None:
    """Renames `source` to `final`; an existing `final` is moved out of the way for that, and removed afterwards."""
    old = storage.staging_path(final)
    storage.rename_durably(source, final, displaced_to=old if final.exists() else None)
    shutil.rmtree(old, ignore_errors=True)


def remove_directory(final: Path) -> None:
    """Removes a local artifact; if killed meanwhile, nothing is at `final`, and the next writer removes the rest."""
    final = _followed(final)
    old = storage.staging_path(final)
    os.rename(final, old)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any] | list[Any]) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never part of one."""
    storage.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
