"""URLs as paths that nobody opens by mistake."""

import copy
import errno
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from contracts import artifact, storage
from contracts.layout import Workdir
from contracts.storage import (
    RemotePath,
    StorageError,
    as_path,
    exists,
    make_directory,
    rename_durably,
    require_literal,
    staging_of,
    staging_path,
    write_text,
    write_whole,
)

URL = "s3://bucket/some run"


def test_a_url_survives_what_paths_go_through() -> None:
    run = as_path(URL)
    assert isinstance(run, RemotePath) and run.scheme == "s3"
    table = Workdir(run).item_statistics.items
    assert str(table) == f"{URL}/item_statistics/items.parquet"
    assert str(table.with_name("x.txt").parent) == f"{URL}/item_statistics"
    assert (table.name, table.suffix) == ("items.parquet", ".parquet")
    for same in (as_path(str(table)), pickle.loads(pickle.dumps(table)), copy.deepcopy(table), table.absolute()):
        assert same == table and hash(same) == hash(table) and str(same) == str(table)
        assert isinstance(same, RemotePath)


@pytest.mark.parametrize("path", ["runs/mine", "/tmp/a:b", "s3:/bucket", "a://", "C:/x"])
def test_what_is_no_url_is_a_path(path: str) -> None:
    assert isinstance(as_path(path), RemotePath) == (path == "a://")


@pytest.mark.parametrize("use", [open, os.stat, os.listdir, os.fspath, lambda path: os.replace("/tmp/x", path)])
def test_nothing_opens_a_url_as_a_file(use: Callable[[Path], object]) -> None:
    with pytest.raises(StorageError, match=f"{URL}/x is in an object store.*dnc fetch"):
        use(as_path(URL) / "x")


@pytest.mark.parametrize("method", ["exists", "is_dir", "is_file", "iterdir", "mkdir", "read_bytes", "stat", "unlink"])
def test_nor_do_its_own_methods(method: str) -> None:
    with pytest.raises(StorageError, match=f"{URL}/x is in an object store.*dnc fetch"):
        getattr(as_path(URL) / "x", method)()


def test_without_beam_a_url_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that only serves, whose run has its item table in a bucket: titles are not worth a traceback."""

    def open_store(options: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'apache_beam'")

    for factory, cause in ((open_store, "No module named 'apache_beam'"), (None, "beam_jobs is not imported")):
        monkeypatch.setattr(storage, "_factory", factory)
        with pytest.raises(StorageError, match=rf"{URL}/x is in an object store.*\({cause}\): install .* or copy it"):
            exists(as_path(URL) / "x")


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def broken(staging: Path) -> None:
        staging.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "a.txt", broken)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["dnc", "labels.json", "dnc.staging-eu", "a.staging-0a1b2c3d", ".staging-\n"])
def test_a_staging_name_says_what_it_is_of(name: str, tmp_path: Path) -> None:
    made = staging_path(tmp_path / name)
    assert made.parent == tmp_path and made != staging_path(tmp_path / name)
    assert staging_of(made.name) == name


@pytest.mark.parametrize(
    ("name", "of"),
    [
        ("dnc.staging-0a1b2c3d", "dnc"),
        ("dnc.staging-old-0a1b2c3d", "dnc"),  # as older code wrote
        (".staging-0a1b2c3d", ""),  # so did it, where it deleted
        *((name, None) for name in ("dnc", "dnc.staging-eu", "dnc.staging-2024", "dnc.staging-0A1B2C3D")),
        *((name, None) for name in ("dnc.staging-0a1b2c3d4", "dnc.staging-0a1b2c3d.yaml", "retrain.staging-eu.yaml")),
    ],
)
def test_a_part_of_the_form_is_no_staging_name(name: str, of: str | None) -> None:
    assert staging_of(name) == of


def test_what_has_a_name_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and directories are synced before the rename, the directory of the new name after it."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.split(".staging-")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    write_text(tmp_path / "a.txt", "new")
    assert done == ["a.txt", "rename", tmp_path.name]
    done.clear()
    with artifact.writing(tmp_path / "groups", "groups", "f") as writer:
        (writer.path / "deep").mkdir()
        (writer.path / "deep" / "data").write_text("x")
        write_text(writer.path / "deep" / "whole", "x")
        assert done == ["rename"]  # not each file: all of them, when the artifact gets its name
    last = done[-1 - done[::-1].index("rename") :]
    assert last == ["rename", tmp_path.name]
    assert {"data", "whole", "deep", artifact.MANIFEST_NAME, "groups"} <= set(done[: -len(last)])


def test_a_directory_of_another_file_system_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a store whose base path alone is mounted, or linked, to a faster disk."""

    def replace(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "dnc").mkdir()
    (tmp_path / "dnc.staging-1").mkdir()
    with pytest.raises(StorageError, match=f"{tmp_path}/dnc is on a different .* {tmp_path}, .* link {tmp_path} as"):
        rename_durably(tmp_path / "dnc.staging-1", tmp_path / "dnc" / "1")


def test_a_directory_that_cannot_be_synced_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "fsync")

    monkeypatch.setattr(os, "fsync", fsync)
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"


def test_a_file_that_does_not_reach_the_disk_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "fsync")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="fsync"):
        write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["run [1]", "a*", "what?", r"run\1"])
def test_a_directory_whose_name_is_a_pattern_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="TensorFlow reads as a pattern: choose another name"):
        require_literal(tmp_path / name)
    require_literal(tmp_path / "my run é")


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x")
    long = "a" * 300
    for path, reason in (("a.csv", "it is a file"), ("a.csv/deeper", "Not a directory"), (long, "File name too long")):
        with pytest.raises(ValueError, match=f"-s {tmp_path / path} cannot be created as a directory: {reason}"):
            make_directory(tmp_path / path, "-s")
    for _ in range(2):
        make_directory(tmp_path / "runs" / "mine", "-s")


def test_a_download_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runner calls a step's setup again, in the same process."""
    asked: list[str] = []

    def download(source: Path, target: Path) -> None:
        asked.append(source.name)
        if len(asked) == 1:
            raise StorageError("503 Slow Down")
        target.write_text(source.name)

    monkeypatch.setattr(storage, "_download", download)
    copies = storage._KeptCopies()
    with pytest.raises(StorageError, match="503 Slow Down"):
        copies.get(Path("far/table.npy"))
    assert [copies.get(Path("far") / name).read_text() for name in ("other.npy", "table.npy", "other.npy")] == [
        "other.npy",
        "table.npy",
        "other.npy",
    ]
    assert asked == ["table.npy", "other.npy", "table.npy"]
