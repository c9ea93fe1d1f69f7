"""Where files lie: on a POSIX file system, or below a URL of an object store.

On a POSIX file system everything happens in place: names are opened as they are, and writers rename, once what they
wrote is on the disk. An object store takes and gives whole objects: what is read is copied to this machine first, and
what is written is made here and sent when it is whole.

Object stores are reached through `provide`, since the libraries that know them are not this package's.
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
"""Whole names as `staging_path` makes them. Older code wrote old- in those of what it moved away."""
_URL = re.compile(r"[a-zA-Z][-a-zA-Z0-9+.]*://")


class StorageError(ValueError):
    """A path cannot be reached; the message names it and the remedy."""


class RemotePath(PosixPath):
    """A URL, such as s3://bucket/run, that is taken apart and joined like a path, and never opened as one.

    Whatever would open it raises `StorageError`: the functions of this module read and write it.
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
        raise StorageError(f"{self} is in an object store, and this needs a local file: copy the run with `dnc fetch`")

    __fspath__ = exists = is_dir = is_file = iterdir = glob = rglob = _refuse


def as_path(path: str | Path) -> Path:
    """A `RemotePath` of a URL, a `Path` of anything else."""
    return RemotePath(path) if _URL.match(str(path)) else Path(path)


def is_remote(path: Path) -> bool:
    """Whether the path is a URL."""
    return isinstance(path, RemotePath)


@dataclass(frozen=True)
class StoredObject:
    """An object as listed: its URL, its size in bytes, and what changes when it is written anew."""

    url: str
    size: int
    version: str


class ObjectStore(Protocol):
    """What is needed of an object store. Errors are `StorageError`s."""

    def exists(self, url: str) -> bool: ...

    def open(self, url: str) -> BinaryIO:
        """A stream to read, which can seek."""

    def upload(self, source: Path, url: str) -> None:
        """Makes or replaces an object; nobody sees a part of it."""

    def match(self, pattern: str) -> list[StoredObject]:
        """Objects by name; `*` stays within a directory, `**` does not."""

    def remove(self, urls: Sequence[str]) -> None:
        """Removes objects; one that is not there is no error."""


Factory = Callable[[tuple[str, ...] | None], ObjectStore]

_factory: Factory | None = None
_options: tuple[str, ...] | None = None


def provide(factory: Factory) -> None:
    """Says what opens the object stores, given the options of `connect`; called whenever one is needed."""
    global _factory  # noqa: PLW0603
    _factory = factory


def connect(options: Sequence[str]) -> None:
    """Says how to reach object stores: `beam.options`. Workers need not, since their harness has them."""
    global _options  # noqa: PLW0603
    _options = tuple(options)


def object_store(path: object) -> ObjectStore:
    """The object store that `path` is in.

    Raises:
        StorageError: nothing on this machine opens it.
    """
    try:
        if _factory is None:
            raise ImportError("beam_jobs is not imported")
        return _factory(_options)
    except ImportError as error:  # of a machine that only trains or serves
        raise StorageError(
            f"{path} is in an object store, which is reached through Apache Beam, and that is not here ({error}): "
            "install what docs/environment.md names for Beam workers, or copy it to this machine"
        ) from None


def open_binary(path: Path) -> BinaryIO:
    """The file's bytes, from the start on; nothing is copied beforehand."""
    return object_store(path).open(str(path)) if is_remote(path) else path.open("rb")


@contextmanager
def reading(path: Path) -> Iterator[Path]:
    """A local file with this content, for the time of the block: a remote file is copied."""
    if not is_remote(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="dnc-") as folder:
        copy = Path(folder) / path.name
        _download(path, copy)
        yield copy


def local(path: Path) -> Path:
    """As `reading`, for as long as the process lives: for files that do not change and are read more than once."""
    return _kept.get(path) if is_remote(path) else path


def _download(path: Path, copy: Path) -> None:
    with object_store(path).open(str(path)) as source, copy.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)


class _KeptCopies:
    """Copies of remote files, each made once a process."""

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
                copy.parent.mkdir()
                _download(path, copy)
                self._copies[path] = copy
            return self._copies[path]


_kept = _KeptCopies()


def staging_path(path: Path) -> Path:
    """A new name beside `path`, for what shall be there, or has been there and is deleted."""
    return path.with_name(f"{path.name}.staging-{uuid.uuid4().hex[:8]}")


def staging_of(name: str) -> str | None:
    """The name of the path that `staging_path` was given to make `name`; None of a name that it did not make.

    What a dead process left is deleted by its name alone. Therefore no part of the form is enough: somebody may call a
    model, or a directory of their own, `dnc.staging-eu`.
    """
    found = _STAGING.fullmatch(name)
    return found and found.group(1)


def remove_leftovers(path: Path) -> None:
    """Removes the local directories that killed processes have left at a `staging_path` of `path`."""
    for left in path.parent.iterdir():
        if staging_of(left.name) == path.name:
            shutil.rmtree(left, ignore_errors=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name to write to, then puts that file at `path`, so that nobody ever sees a part of it.

    It is flushed to the disk first, unless it lies in a staged directory: renaming that one flushes all that it holds.
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
        if error.errno is not None and error.filename is None:  # of a write that fails, Python does not say which file
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(OSError):  # of a file system that takes nothing, which the write has said
            staging.unlink(missing_ok=True)


def rename_durably(source: Path, target: Path, displaced_to: Path | None = None) -> None:
    """Renames a local file or directory once all that it holds is on the disk, and waits until its name is, too.

    Otherwise a machine that loses its power may come up with the name and empty files behind it.

    Args:
        displaced_to: where a `target` that is a directory is moved first, as no rename replaces one. Not before what
            shall take its place is on the disk, which may take long and may fail.

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
            f"{target.parent} is on another file system than {source.parent}, from where nothing can be renamed into "
            f"it: mount, or link, {source.parent} as a whole"
        ) from None
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call for a directory.
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
        StorageError: an object's name leads out of there: to a store `..` is a name like any other.
    """
    for found in tree(path):
        below = found.parts[len(path.parts) :]
        if ".." in below:
            raise StorageError(f"{found} would be written outside of {folder}, by its '..': remove that object")
        copy = folder.joinpath(*below)
        copy.parent.mkdir(parents=True, exist_ok=True)
        _download(found, copy)


def tree_bytes(path: Path) -> int:
    """Size of all files below `path`."""
    if is_remote(path):
        return sum(found.size for found in object_store(path).match(f"{glob.escape(str(path))}/**"))
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def tree(path: Path) -> list[Path]:
    """All files below a remote `path`, without the empty objects by which consoles show a folder."""
    found = (each.url for each in object_store(path).match(f"{glob.escape(str(path))}/**"))
    return [as_path(url) for url in found if not url.endswith("/")]


def require_literal(path: Path) -> None:
    """Refuses a directory whose name reads as a pattern: TensorFlow looks its own files up by patterns.

    Raises:
        ValueError: it does.
    """
    if found := sorted(set(str(path)) & set("[]*?\\")):
        raise ValueError(f"{path} holds {' '.join(found)}, which TensorFlow reads as a pattern: choose another name")


def make_directory(path: Path, option: str) -> None:
    """Makes a directory of this machine to write to, unless it is there.

    Args:
        option: of the command line, which named the path.

    Raises:
        ValueError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        # Path.is_file would raise for a name that is too long, or lies where we may not look.
        reason = "it is a file" if os.path.isfile(path) else error.strerror
        raise ValueError(f"{option} {path} cannot be made a directory: {reason}; name another one") from None
