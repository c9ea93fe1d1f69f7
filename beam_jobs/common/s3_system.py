"""S3 through Beam's client, one per thread: Beam's file system makes one per operation, in a tenth of a second each."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any, BinaryIO

from apache_beam.io.aws import s3io
from apache_beam.io.aws.clients.s3 import boto3_client
from apache_beam.io.filesystem import FileMetadata, FileSystem

_WILDCARD = re.compile(r"[*?\[]")


class S3System:
    """The part of `apache_beam.io.filesystems.FileSystems` that is used here."""

    def __init__(self, options: Any) -> None:
        self._options = options
        self._threads = threading.local()

    def exists(self, url: str) -> bool:
        return bool(self._io.exists(url))

    def open(self, url: str) -> BinaryIO:
        stream: BinaryIO = self._io.open(url, "rb")
        return stream

    def create(self, url: str) -> BinaryIO:
        stream: BinaryIO = self._io.open(url, "wb")
        return stream

    def create_empty(self, url: str) -> None:
        """Creates an empty object: Beam sends objects in parts, and S3 refuses one without any."""
        bucket, key = s3io.parse_s3_path(url)
        self._io.client.client.put_object(Bucket=bucket, Key=key)

    def check_bucket(self, url: str) -> None:
        """Raises at once where Beam would wait for minutes in case missing keys turn up."""
        bucket, _ = s3io.parse_s3_path(url, object_optional=True)
        self._io.client.client.head_bucket(Bucket=bucket)

    def match(self, pattern: str) -> list[FileMetadata]:
        matches = re.compile(FileSystem.translate_pattern(pattern)).match
        listed = self._io.list_files(_WILDCARD.split(pattern, maxsplit=1)[0], with_metadata=True)
        return [FileMetadata(url, size, updated) for url, (size, updated) in listed if matches(url)]

    def delete(self, urls: Sequence[str]) -> None:
        failed = {url: error for url, error in self._io.delete_files(list(urls)) if error is not None}
        if failed:
            raise OSError(f"not removed: {failed}")

    @property
    def _io(self) -> s3io.S3IO:
        if not hasattr(self._threads, "io"):
            self._threads.io = s3io.S3IO(client=boto3_client.Client(self._options))
        return self._threads.io
