"""Object stores through Beam's file systems: any scheme that Beam knows, with Beam's options, clients and retries."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.common.s3_system import S3System
from contracts.storage import StorageError, StoredObject

_RAW = {"compression_type": CompressionTypes.UNCOMPRESSED}  # else Beam decompresses by file extension

_REMEDIES = {
    "gs": "`pip install 'apache-beam[gcp]'`, log in with `gcloud auth application-default login` or as a service "
    "account, and check that the bucket exists and that you may list, read, write and delete in it",
    "s3": "`pip install 'apache-beam[aws]'`, give the keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "--s3_access_key_id and --s3_secret_access_key in beam.options; --s3_endpoint_url for a store that is not "
    "Amazon's), and check that the bucket exists and that you may list, read, write and delete in it",
    "hdfs": "`pip install 'apache-beam[hadoop]'`, and set --hdfs_host, --hdfs_port and --hdfs_user in beam.options",
}
_UNKNOWN = "Beam supports gs, s3, hdfs and azfs, each with its own package; --beam_plugins may add others"


class BeamStore:
    """`contracts.storage.ObjectStore` on Beam's file systems."""

    def __init__(self, options: PipelineOptions | None) -> None:
        self._options = options
        self._s3: S3System | None = None
        self._checked: set[str] = set()

    def exists(self, url: str) -> bool:
        with self._reaching(url, "looked for") as s3:
            return s3.exists(url) if s3 else bool(FileSystems.exists(url))

    def open(self, url: str) -> BinaryIO:
        with self._reaching(url, "read") as s3:
            stream: BinaryIO = s3.open(url) if s3 else FileSystems.open(url, **_RAW)
            return stream

    def upload(self, source: Path, url: str) -> None:
        with self._reaching(url, "written") as s3, source.open("rb") as content:
            if s3 and not source.stat().st_size:
                s3.create_empty(url)
                return
            with s3.create(url) if s3 else FileSystems.create(url, **_RAW) as target:
                shutil.copyfileobj(content, target, 1 << 20)

    def match(self, pattern: str) -> list[StoredObject]:
        with self._reaching(pattern, "listed") as s3:
            found = s3.match(pattern) if s3 else FileSystems.match([pattern])[0].metadata_list
            return [StoredObject(each.path, each.size_in_bytes, str(each.last_updated_in_seconds)) for each in found]

    def remove(self, urls: Sequence[str]) -> None:
        if urls:
            with self._reaching(urls[0], "removed") as s3:
                s3.delete(urls) if s3 else FileSystems.delete(list(urls))

    @contextmanager
    def _reaching(self, url: str, what: str) -> Iterator[S3System | None]:
        """Puts whatever a client raises into words: each client has its own errors, without a common class."""
        try:
            if self._options is not None:
                FileSystems.set_options(self._options)  # each pipeline sets its own
            yield self._s3_of(url) if url.startswith("s3://") else None
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            remedy = _REMEDIES.get(url.partition("://")[0], _UNKNOWN)
            raise StorageError(f"{url} cannot be {what} ({cause}): {remedy}") from error

    def _s3_of(self, url: str) -> S3System:
        if self._s3 is None:
            # A worker of a pool gets no options: there, the environment says how to reach the store.
            self._s3 = S3System(self._options or FileSystems.get_filesystem(url)._options or {})
        bucket = url.split("/")[2]
        if bucket not in self._checked:
            self._s3.check_bucket(url)
            self._checked.add(bucket)
        return self._s3


@functools.lru_cache(1)
def open_store(options: tuple[str, ...] | None) -> BeamStore:
    """The stores that a pipeline with these options reaches; pass None on a worker, whose harness has set them."""
    return BeamStore(None if options is None else PipelineOptions(list(options)))
