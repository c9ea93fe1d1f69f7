"""An object store for tests, as strict as the real ones: whole objects under flat keys, no directory, no rename.

Beam finds it as `strict://`. Objects lie under hashed names in the folder of `ROOT`, so that whoever takes a URL for a
path of this machine finds nothing. `file://localhost/` is the same with objects where TensorFlow's own `file://` looks.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

ROOT = "STRICT_STORE_ROOT"
"""Environment variable: where the objects lie, for all processes."""


class StrictFileSystem(FileSystem):
    """`strict://bucket/key`.

    Attributes:
        changes_left: after as many objects were written or removed, nothing can be reached; None for no limit.
    """

    changes_left: int | None = None

    @classmethod
    def scheme(cls) -> str:
        return "strict"

    def join(self, basepath: str, *paths: str) -> str:
        return "/".join([basepath.rstrip("/"), *(path.strip("/") for path in paths)])

    def split(self, path: str) -> tuple[str, str]:
        head, _, tail = path.rpartition("/")
        return head, tail

    def has_dirs(self) -> bool:
        return False

    def mkdirs(self, path: str) -> None:
        raise AssertionError(f"mkdirs({path}): an object store has no directories")

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise AssertionError(f"rename({source_file_names[0]}): an object store cannot rename")

    def copy(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        raise AssertionError(f"copy({source_file_names[0]}): nothing here has to be copied")

    def _object(self, url: str) -> Path:
        assert url.startswith(f"{self.scheme()}://") and "//" not in url.split("://", 1)[1], url
        if StrictFileSystem.changes_left == 0:
            raise ConnectionError("the store cannot be reached")
        return Path(os.environ[ROOT]) / hashlib.sha256(url.encode()).hexdigest()

    def _urls(self) -> list[str]:
        return [path.read_text() for path in Path(os.environ[ROOT]).glob("*.url")]

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for url in self._urls():
            if url.startswith(dir_or_prefix) and self._object(url).is_file():
                yield self.metadata(url)

    def create(self, path: str, *_: Any, **__: Any) -> BinaryIO:
        return _Upload(self, path)

    def put(self, url: str, content: bytes) -> None:
        target = self._object(url)
        _replace(target.with_suffix(".url"), url.encode())
        _replace(target, content)
        _count_change(url)

    def open(self, path: str, *_: Any, **__: Any) -> BinaryIO:
        if not self.exists(path):
            raise BeamIOError(f"no object {path}")
        return self._object(path).open("rb")

    def exists(self, path: str) -> bool:
        return self._object(path).is_file()

    def metadata(self, path: str) -> FileMetadata:
        status = self._object(path).stat()
        return FileMetadata(path, status.st_size, status.st_mtime)

    def size(self, path: str) -> int:
        return int(self.metadata(path).size_in_bytes)

    def last_updated(self, path: str) -> float:
        return float(self.metadata(path).last_updated_in_seconds)

    def checksum(self, path: str) -> str:
        return hashlib.sha256(self._object(path).read_bytes()).hexdigest()

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            assert not path.endswith("/"), path
            self._object(path).unlink(missing_ok=True)
            _count_change(path)


class SharedFileSystem(StrictFileSystem):
    """`file://localhost/path`, which TensorFlow opens, too, as it opens gs://.

    TFT writes its vocabularies by Beam's own text sink, which renames files one by one, as real stores let it.
    """

    @classmethod
    def scheme(cls) -> str:
        return "file"

    def _object(self, url: str) -> Path:
        path = Path(url.removeprefix("file://localhost"))
        assert path.is_relative_to(os.environ[ROOT]), url
        return path

    def _urls(self) -> list[str]:
        return [f"file://localhost{path}" for path in Path(os.environ[ROOT]).rglob("*") if path.is_file()]

    def put(self, url: str, content: bytes) -> None:
        _replace(self._object(url), content)

    def mkdirs(self, path: str) -> None:
        pass

    def rename(self, source_file_names: list[str], destination_file_names: list[str]) -> None:
        for source, target in zip(source_file_names, destination_file_names, strict=True):
            assert self._object(source).is_file(), source
            self._object(target).parent.mkdir(parents=True, exist_ok=True)
            self._object(source).replace(self._object(target))

    def delete(self, paths: list[str]) -> None:
        for path in paths:
            shutil.rmtree(self._object(path)) if path.endswith("/") else self._object(path).unlink(missing_ok=True)


class _Upload(io.BytesIO):
    """What is written is an object once it is closed, as of real stores; a process that dies before leaves nothing."""

    def __init__(self, system: StrictFileSystem, url: str) -> None:
        super().__init__()
        self._system = system
        self._url = url

    def close(self) -> None:
        if not self.closed:
            self._system.put(self._url, self.getvalue())
        super().close()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{uuid.uuid4().hex}")
    staging.write_bytes(content)
    staging.replace(path)


def _count_change(url: str) -> None:
    """Of a lock's file none: it is written anew every few seconds, and a busy machine takes more of these."""
    if StrictFileSystem.changes_left is not None and not url.endswith("/.lock"):
        StrictFileSystem.changes_left -= 1
