"""Local copies of what lies in an object store."""

import io
from pathlib import Path
from typing import BinaryIO

import pytest

from contracts import artifact, storage
from contracts.storage import StorageError, StoredObject, as_path, local, write_text


class InMemory:
    """An object store of this process."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    def exists(self, url: str) -> bool:
        return url in self._contents

    def open(self, url: str) -> BinaryIO:
        if url not in self._contents:
            raise StorageError(url)
        return io.BytesIO(self._contents[url])

    def upload(self, source: Path, url: str) -> None:
        self._contents[url] = source.read_bytes()

    def match(self, pattern: str) -> list[StoredObject]:
        below = pattern.removesuffix("**")
        return [StoredObject(url, len(content), "") for url, content in self._contents.items() if url.startswith(below)]

    def remove(self, urls: list[str]) -> None:
        for url in urls:
            self._contents.pop(url, None)


@pytest.fixture(autouse=True)
def object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    store = InMemory()
    monkeypatch.setattr(storage, "_factory", lambda options: store)


def test_copies_of_files_of_one_name_are_kept_apart() -> None:
    """As of item_statistics/items.parquet and transform/items.parquet."""
    paths = [as_path(f"memory://bucket/{folder}/items.txt") for folder in "ab"]
    for path, text in zip(paths, ("first", "second"), strict=True):
        write_text(path, text)
    copies = [local(path) for path in paths]
    assert [copy.read_text() for copy in copies] == ["first", "second"]
    assert {copy.name for copy in copies} == {"items.txt"}


def test_a_rewritten_artifact_is_fetched_again(tmp_path: Path) -> None:
    remote = as_path("memory://bucket/run/events")
    for content in ("one", "two"):
        with artifact.writing(remote, "events", content) as writer:
            write_text(writer.path / "x", content)
        assert artifact.fetch(remote, tmp_path / "events").fingerprint == content
        assert (tmp_path / "events" / "x").read_text() == content
