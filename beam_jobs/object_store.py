"""Object stores through Beam's file systems: whatever scheme Beam knows, with Beam's options, clients and retries."""

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

from contracts.storage import StorageError, StoredObject

_RAW = {"compression_type": CompressionTypes.UNCOMPRESSED}  # else Beam unpacks by the name's ending

_REMEDIES = {
    "gs": "`pip install 'apache-beam[gcp]'`, log in with `gcloud auth application-default login` or as a service "
    "account, and see that the bucket exists and that you may list, read, write and delete in it",
    "s3": "`pip install 'apache-beam[aws]'`, give the keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "--s3_access_key_id and --s3_secret_access_key in beam.options; --s3_endpoint_url for a store that is not "
    "Amazon's), and see that the bucket exists and that you may list, read, write and delete in it",
    "hdfs": "`pip install 'apache-beam[hadoop]'`, and set --hdfs_host, --hdfs_port and --hdfs_user in beam.options",
}
_UNKNOWN = "Beam knows gs, s3, hdfs and azfs, each with the package for it; --beam_plugins may name another"


class BeamStore:
    """`contracts.storage.ObjectStore` of Beam's file systems."""

    def exists(self, url: str) -> bool:
        with _explained(url, "looked for"):
            return bool(FileSystems.exists(url))

    def open(self, url: str) -> BinaryIO:
        with _explained(url, "read"):
            stream: BinaryIO = FileSystems.open(url, **_RAW)
            return stream

    def upload(self, source: Path, url: str) -> None:
        with _explained(url, "written"), source.open("rb") as content, FileSystems.create(url, **_RAW) as target:
            shutil.copyfileobj(content, target, 1 << 20)

    def match(self, pattern: str) -> list[StoredObject]:
        with _explained(pattern, "listed"):
            [found] = FileSystems.match([pattern])
            return [
                StoredObject(entry.path, entry.size_in_bytes, str(entry.last_updated_in_seconds))
                for entry in found.metadata_list
            ]

    def remove(self, urls: Sequence[str]) -> None:
        if urls:
            with _explained(urls[0], "removed"):
                FileSystems.delete(list(urls))


@contextmanager
def _explained(url: str, what: str) -> Iterator[None]:
    """Each client has errors of its own, without a common class: all that one of them raises is said in words."""
    try:
        yield
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        remedy = _REMEDIES.get(url.partition("://")[0], _UNKNOWN)
        raise StorageError(f"{url} cannot be {what} ({cause}): {remedy}") from error


@functools.lru_cache(1)
def open_store(options: tuple[str, ...] | None) -> BeamStore:
    """The stores that a pipeline with these options reaches; None on a worker, whose harness has set them."""
    if options is not None:
        FileSystems.set_options(PipelineOptions(list(options)))
    return BeamStore()
