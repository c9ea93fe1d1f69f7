"""An object store for tests, as strict as the real ones: whole objects under flat keys, no directory, no rename.

Beam finds it as `strict://`. Objects lie under hashed names in the folder of `ROOT`, so that whoever takes a URL for a
path of this machine finds nothing. `file://` is the same with objects where TensorFlow's own `file://` looks.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from apache_beam.io.filesystem import BeamIOError, FileMetadata, FileSystem

ROOT = "STRICT_STORE_ROOT"
"""Environment variable: where the objects lie, for all processes."""


class StrictFileSystem(FileSystem):
    """`strict://bucket/key`."""

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
        return Path(os.environ[ROOT]) / hashlib.sha256(url.encode()).hexdigest()

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for listed in Path(os.environ[ROOT]).glob("*.json"):
            entry = json.loads(listed.read_text())
            if entry["url"].startswith(dir_or_prefix) and self._object(entry["url"]).exists():
                yield self.metadata(entry["url"])

    def create(self, path: str, *_: Any, **__: Any) -> BinaryIO:
        return _Upload(self._object(path), path)

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


class _Upload(io.BytesIO):
    """What is written is an object once it is closed, as of real stores; a process that dies before leaves nothing."""

    def __init__(self, target: Path, url: str) -> None:
        super().__init__()
        self._target = target
        self._url = url

    def close(self) -> None:
        if not self.closed:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            for path, content in ((self._target.with_suffix(".json"), json.dumps({"url": self._url}).encode()),
                                  (self._target, self.getvalue())):  # fmt: skip
                staging = path.with_name(f"{uuid.uuid4().hex}.part")
                staging.write_bytes(content)
                staging.replace(path)
            _record("put", self._url)
        super().close()


def _record(what: str, url: str) -> None:
    with (Path(os.environ[ROOT]) / "log.txt").open("a") as log:
        log.write(f"{time.time():.3f} {what} {url}\n")


class SharedFileSystem(StrictFileSystem):
    """`file://localhost/path`, which TensorFlow opens, too, as it opens gs://."""

    @classmethod
    def scheme(cls) -> str:
        return "file"

    def _object(self, url: str) -> Path:
        path = Path(url.removeprefix("file://localhost"))
        assert path.is_relative_to(os.environ[ROOT]), url
        return path

    def _list(self, dir_or_prefix: str) -> Iterator[FileMetadata]:
        for path in Path(os.environ[ROOT]).rglob("*"):
            url = f"file://localhost{path}"
            if path.is_file() and url.startswith(dir_or_prefix):
                yield self.metadata(url)
