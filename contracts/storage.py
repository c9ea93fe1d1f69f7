"""File access on a POSIX file system, or below a URL of an object store.

On a POSIX file system everything happens in place: files are opened where they are, and writers rename them once their
content is on the disk. An object store handles whole objects only: files are copied to this machine before they are
read, and written here first and uploaded once they are complete.

Object stores are reached through `provide`, since this package does not depend on the libraries for them.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import glob
import os
import re
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PosixPath
from typing import Any, BinaryIO, NoReturn, Protocol

_STAGING = re.compile(r"(.*)\.staging-(?:old-)?[0-9a-f]{8}", re.DOTALL)
"""Matches whole names made by `staging_path`. Older code put old- into the names of directories it moved away."""
_URL = re.compile(r"[a-zA-Z][-a-zA-Z0-9+.]*://")


class StorageError(ValueError):
    """A path cannot be reached; the message names it and the remedy."""


class RemotePath(PosixPath):
    """A URL, such as s3://bucket/run, that is split and joined like a path, but never opened as one.

    Methods that would open it raise `StorageError`; the functions of this module read and write it.
    """

    @property
    def scheme(self) -> str:
        return self.parts[0].removesuffix(":")

    def __str__(self) -> str:
        scheme, _, rest = super().__str__().partition(":/")  # pathlib makes one slash of two
        return f"{scheme}://{rest}"

    def is_absolute(self) -> bool:
        return True

    def absolute(self) -> RemotePath:
        return self

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise StorageError(
            f"{self} is in an object store, but a local file is needed here: copy the run with `dnc fetch`"
        )

    __fspath__ = exists = is_dir = is_file = iterdir = glob = rglob = _refuse


def as_path(path: str | Path) -> Path:
    """A `RemotePath` for a URL, a `Path` for anything else."""
    return RemotePath(path) if _URL.match(str(path)) else Path(path)


def is_remote(path: Path) -> bool:
    """Whether the path is a URL."""
    return isinstance(path, RemotePath)


@dataclass(frozen=True)
class StoredObject:
    """An object as listed: its URL, its size in bytes, and a version that changes when it is rewritten."""

    url: str
    size: int
    version: str


class ObjectStore(Protocol):
    """The operations needed of an object store. Errors are `StorageError`s."""

    def exists(self, url: str) -> bool: ...

    def open(self, url: str) -> BinaryIO:
        """A readable, seekable stream."""

    def upload(self, source: Path, url: str) -> None:
        """Creates or replaces an object; nobody ever sees part of it."""

    def match(self, pattern: str) -> list[StoredObject]:
        """Objects by name; `*` stays within a directory, `**` does not."""

    def remove(self, urls: Sequence[str]) -> None:
        """Removes objects; a missing one is not an error."""


Factory = Callable[[tuple[str, ...] | None], ObjectStore]

_factory: Factory | None = None
_options: tuple[str, ...] | None = None


def provide(factory: Factory) -> None:
    """Sets the factory of object stores, which is called with the options of `connect` whenever one is needed."""
    global _factory  # noqa: PLW0603
    _factory = factory


def connect(options: Sequence[str]) -> None:
    """Sets the options for object stores: `beam.options`. Workers need not call it, since their harness has them."""
    global _options  # noqa: PLW0603
    _options = tuple(options)


def object_store(path: object) -> ObjectStore:
    """The object store that `path` is in.

    Raises:
        StorageError: nothing on this machine can open it.
    """
    try:
        if _factory is None:
            raise ImportError("beam_jobs is not imported")
        return _factory(_options)
    except ImportError as error:  # on a machine that only trains or serves
        raise StorageError(
            f"{path} is in an object store, which needs Apache Beam, and that is not available ({error}): install "
            "what docs/environment.md lists for Beam workers, or copy it to this machine"
        ) from None


def open_binary(path: Path) -> BinaryIO:
    """A stream of the file's bytes from the start; nothing is copied beforehand."""
    return object_store(path).open(str(path)) if is_remote(path) else path.open("rb")


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """A local file with this content, for the duration of the block; a remote file is copied."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dnc-") as folder:
        copy = Path(folder) / path.name
        _download(path, copy)
        yield copy


def local(path: Path) -> Path:
    """Like `reading`, but until the process ends: for files that do not change and are read more than once."""
    return _kept.get(path) if is_remote(path) else path


def _download(path: Path, copy: Path) -> None:
    with object_store(path).open(str(path)) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


class _KeptCopies:
    """Copies of remote files, each made once per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._copies: dict[Path, Path] = {}
        self._folder: str | None = None

    def get(self, path: Path) -> Path:
        with self._lock:  # one at a time: several threads of a worker ask for the same file
            if path not in self._copies:
                if self._folder is None:
                    self._folder = tempfile.mkdtemp(prefix="dnc-")
                    atexit.register(shutil.rmtree, self._folder, ignore_errors=True)
                copy = Path(self._folder) / str(len(self._copies)) / path.name  # some names become a graph's assets
                copy.parent.mkdir(exist_ok=True)  # an earlier download may have failed
                _download(path, copy)
                self._copies[path] = copy
            return self._copies[path]


_kept = _KeptCopies()


def staging_path(path: Path) -> Path:
    """A new name beside `path`, for content that will move there, or that was there and is being deleted."""
    return path.with_name(f"{path.name}.staging-{uuid.uuid4().hex[:8]}")


def staging_of(name: str) -> str | None:
    """The name of the path from which `staging_path` made `name`; None if it did not make it.

    What a dead process left behind is deleted by its name alone. So the whole form has to match: somebody may call a
    model, or one of their own directories, `dnc.staging-eu`.
    """
    found = _STAGING.fullmatch(name)
    return found and found.group(1)


def remove_leftovers(path: Path) -> None:
    """Removes the local directories that killed processes left at a `staging_path` of `path`."""
    for left in path.parent.iterdir():
        if staging_of(left.name) == path.name:
            shutil.rmtree(left, ignore_errors=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name to write to, then moves that file to `path`, so that nobody ever sees part of it.

    The file is flushed to disk first, unless it is in a staged directory: renaming that flushes everything in it.
    """
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix="dnc-") as folder:
            made = Path(folder) / path.name
            write(made)
            object_store(path).upload(made, str(path))
        return
    staging = staging_path(path)
    try:
        write(staging)
        is_staged = any(staging_of(folder.name) is not None for folder in path.parents)
        (os.replace if is_staged else rename_durably)(staging, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # Python does not say which file a write failed on
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # if the file system takes nothing, the write has said so
            staging.unlink(missing_ok=True)


def rename_durably(source: Path, target: Path, displaced_to: Path | None = None) -> None:
    """Renames a local file or directory once its content is on the disk, and waits until the new name is, too.

    Otherwise a power failure may leave the new name with empty files behind it.

    Args:
        displaced_to: where an existing directory at `target` is moved first, as a rename cannot replace one. It is
            moved only once its replacement is on the disk, which may take long and may fail.

    Raises:
        StorageError: the target's directory, mounted or linked, is on another file system.
    """
    for path in (*(source.rglob("*") if source.is_dir() else ()), source):
        _sync(path)
    if displaced_to is not None:
        os.rename(target, displaced_to)
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise StorageError(
            f"{target.parent} is on a different file system from {source.parent}, so nothing can be renamed from there "
            f"into it: mount or link {source.parent} as a whole"
        ) from None
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems do not support this call for directories.
        if not (path.is_dir() and error.errno in {errno.EINVAL, errno.ENOTSUP}):
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """A UTF-8 file, whole or absent."""
    write_whole(path, lambda staging: staging.write_text(text, encoding="utf-8"))


def read_text(path: Path) -> str:
    """A UTF-8 file's text.

    Raises:
        FileNotFoundError: there is none.
    """
    try:
        with open_binary(path) as stream:
            return stream.read().decode("utf-8")
    except StorageError:
        if exists(path):
            raise
        raise FileNotFoundError(str(path)) from None


def exists(path: Path) -> bool:
    """Whether there is such a file."""
    return object_store(path).exists(str(path)) if is_remote(path) else path.exists()


def remove(*paths: Path) -> None:
    """Removes files, if they are there."""
    remote = [str(path) for path in paths if is_remote(path)]
    if remote:
        object_store(remote[0]).remove(remote)
    for path in paths:
        if not is_remote(path):
            path.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Removes all that lies below `path`."""
    if is_remote(path):
        remove(*tree(path))
    else:
        shutil.rmtree(path, ignore_errors=True)


def store_tree(folder: Path, target: Path) -> None:
    """Copies the files below a local `folder` to the same names below `target`."""
    for source in sorted(folder.rglob("*")):
        if source.is_file():
            write_whole(target / source.relative_to(folder), lambda made, source=source: shutil.copyfile(source, made))  # type: ignore[misc]


def fetch_tree(path: Path, folder: Path) -> None:
    """Copies the files below a remote `path` to the same names below a local `folder`.

    Raises:
        StorageError: an object's name leads out of `folder`: to a store, `..` is a name like any other.
    """
    for found in tree(path):
        below = found.parts[len(path.parts) :]
        if ".." in below:
            raise StorageError(f"{found} would be written outside {folder} because of its '..': remove that object")
        copy = folder.joinpath(*below)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _download(found, copy)


def tree_bytes(path: Path) -> int:
    """Size of all files below `path`."""
    if is_remote(path):
        return sum(found.size for found in object_store(path).match(f"{glob.escape(str(path))}/**"))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tree(path: Path) -> list[Path]:
    """All files below a remote `path`, without the empty objects that consoles use to show folders."""
    found = (each.url for each in object_store(path).match(f"{glob.escape(str(path))}/**"))
    return [as_path(url) for url in found if not url.endswith("/")]


def require_literal(path: Path) -> None:
    """Refuses a directory whose name could be read as a pattern: TensorFlow looks up its own files by patterns.

    Raises:
        ValueError: it could.
    """
    if found := sorted(set(str(path)) & set("[]*?\\")):
        raise ValueError(f"{path} holds {' '.join(found)}, which TensorFlow reads as a pattern: choose another name")


def make_directory(path: Path, option: str) -> None:
    """Creates a directory on this machine to write to, unless it exists.

    Args:
        option: the command-line option that named the path.

    Raises:
        ValueError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # Path.is_file would raise if the name is too long or in a directory that we may not search.
        reason = "it is a file" if os.path.isfile(path) else error.strerror
        raise ValueError(f"{option} {path} cannot be created as a directory: {reason}; choose another one") from None
