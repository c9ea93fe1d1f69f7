"""Artifacts appear whole or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

import contracts
from contracts import artifact


def test_a_written_artifact_is_read_back(tmp_path: Path) -> None:
    final = tmp_path / "groups"
    with artifact.writing(final, "item_groups", "f1") as writer:
        (writer.path / "data.txt").write_text("x")
        writer.files.append("data.txt")
        writer.counts["items"] = 3
        assert not final.exists()
    manifest = artifact.read_manifest(final)
    assert (manifest.kind, manifest.fingerprint, manifest.files, manifest.counts) == (
        "item_groups",
        "f1",
        ["data.txt"],
        {"items": 3},
    )
    assert [path.name for path in tmp_path.iterdir()] == ["groups"]


def test_a_manifest_of_newer_code_is_read_without_what_is_new(tmp_path: Path) -> None:
    """Code that is older than a store says that it is of another version, not that its artifacts are none."""
    with artifact.writing(tmp_path / "groups", "item_groups", "f1"):
        pass
    path = tmp_path / "groups" / artifact.MANIFEST_NAME
    written = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**written, "zeal": 1}), encoding="utf-8")
    assert artifact.read_manifest(tmp_path / "groups").fingerprint == "f1"
    for text in ("[]", "3", '{"kind": "item_groups"}'):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(artifact.ArtifactError, match="is not a manifest"):
            artifact.read_manifest(tmp_path / "groups")


def test_a_failed_write_leaves_the_last_artifact(tmp_path: Path) -> None:
    final = tmp_path / "groups"
    with artifact.writing(final, "item_groups", "old"):
        pass
    with pytest.raises(RuntimeError), artifact.writing(final, "item_groups", "new"):
        raise RuntimeError
    assert artifact.read_manifest(final).fingerprint == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["groups"]


def test_an_artifact_that_does_not_reach_the_disk_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some file systems say only at fsync that they are full."""
    final = tmp_path / "groups"
    with artifact.writing(final, "item_groups", "old"):
        pass

    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"), artifact.writing(final, "item_groups", "new"):
        pass
    assert artifact.read_manifest(final).fingerprint == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["groups"]


def test_what_a_killed_writer_left_is_removed_and_never_read(tmp_path: Path) -> None:
    final = tmp_path / "groups"
    killed = artifact.writing(final, "item_groups", "killed")
    left = killed.__enter__()
    (left.path / "half.txt").write_text("half")
    assert artifact.find_manifest(final) is None
    with artifact.writing(final, "item_groups", "next"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["groups"]
    assert [path.name for path in final.iterdir()] == [artifact.MANIFEST_NAME]


def test_what_only_looks_like_a_killed_writers_stays(tmp_path: Path) -> None:
    """Log and artifact of a region, beside ours; and another artifact's directory that is being written."""
    names = ["groups.staging-eu", "groups.staging-0a1b2c3d-old", "groups.staging-eu.staging-0a1b2c3d", "g.staging-1"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "groups.staging-0a1b2c3d").mkdir()
    with artifact.writing(tmp_path / "groups", "item_groups", "a"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "groups"])


def test_files_that_are_no_artifact_stay_and_are_said_to_be_in_the_way(tmp_path: Path) -> None:
    """`dnc run -w .`, where the log lies in `events/`."""
    log = tmp_path / "events" / "2024-01-01.csv"
    log.parent.mkdir()
    log.write_text("u1,i1,1")
    with (
        pytest.raises(artifact.ArtifactError, match=r"events holds 2024-01-01\.csv, .* or choose another place .*-w"),
        artifact.writing(log.parent, "events", "f1"),
    ):
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [log]
    assert log.read_text() == "u1,i1,1"
    log.unlink()
    with artifact.writing(log.parent, "events", "f1"):  # nothing is lost of an empty directory
        pass
    assert artifact.read_manifest(log.parent).fingerprint == "f1"


def test_an_artifact_that_is_linked_is_replaced_where_it_lies(tmp_path: Path) -> None:
    """As windows that were moved to a larger disk: no data stay behind, and nothing comes back to the full one."""
    (tmp_path / "big").mkdir()
    final, moved = tmp_path / "run" / "groups", tmp_path / "big" / "groups"
    with artifact.writing(final, "item_groups", "old") as writer:
        (writer.path / "data.txt").write_text("old")
    final.rename(moved)
    final.symlink_to(moved)
    with artifact.writing(final, "item_groups", "new") as writer:
        assert writer.path.parent == moved.parent  # what is written, too, needs the larger disk
    assert artifact.read_manifest(final).fingerprint == "new"
    assert [path.name for path in moved.iterdir()] == [artifact.MANIFEST_NAME]
    assert [path.name for path in (tmp_path / "big").iterdir()] == ["groups"]
    assert list(final.parent.iterdir()) == [final] and final.readlink() == moved


def test_a_disk_that_is_mounted_in_an_artifacts_place_is_refused() -> None:
    """The kernel renames no mount point, which would be known after all the work."""
    with pytest.raises(artifact.ArtifactError, match=r"^/proc is a mount point, .* mount the disk at / instead, or"):
        artifact.require_ours(Path("/proc"))


def test_what_is_forgotten_is_no_artifact_and_is_written_anew(tmp_path: Path) -> None:
    final = tmp_path / "groups"
    artifact.forget(final)
    assert not final.exists()
    with artifact.writing(final, "item_groups", "old") as writer:
        (writer.path / "data.txt").write_text("x")
    for _ in range(2):  # a forced run that died is forced again
        artifact.forget(final)
        assert artifact.find_manifest(final) is None
    with artifact.writing(final, "item_groups", "new"):
        pass
    assert [path.name for path in final.iterdir()] == [artifact.MANIFEST_NAME]


def test_code_that_is_no_files_is_known_by_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact.code_of.cache_clear()
    monkeypatch.setattr(contracts, "__file__", str(tmp_path / "dnc.zip" / "contracts" / "__init__.py"))
    assert artifact.code_of("contracts", "trainer") == contracts.__version__
    artifact.code_of.cache_clear()


def test_the_code_of_a_folder_is_that_of_its_files_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "__file__", str(tmp_path / "contracts" / "__init__.py"))
    inner, outer = tmp_path / "room" / "folder" / "a.py", tmp_path / "room" / "b.py"
    inner.parent.mkdir(parents=True)
    codes = []
    for texts in (("1", "1"), ("1", "2"), ("2", "2")):
        for path, text in zip((inner, outer), texts, strict=True):
            path.write_text(text)
        artifact.code_of.cache_clear()
        codes.append((artifact.code_of("room/folder"), artifact.code_of("room")))
    artifact.code_of.cache_clear()
    (folder, room), after_outer, after_inner = codes
    assert (after_outer[0], after_inner[0] == folder) == (folder, False)
    assert len({room, after_outer[1], after_inner[1]}) == 3


def test_an_artifact_of_another_kind_is_refused(tmp_path: Path) -> None:
    with artifact.writing(tmp_path / "a", "events", "f"):
        pass
    assert artifact.read_manifest(tmp_path / "a", "events").kind == "events"
    with pytest.raises(artifact.ArtifactError, match=r"a holds events, not windows: name a directory"):
        artifact.read_manifest(tmp_path / "a", "windows")


@pytest.mark.parametrize("text", ["", "{", '{"kind": "x"}', '{"unknown": 1}'])
def test_a_damaged_manifest_is_no_artifact(tmp_path: Path, text: str) -> None:
    (tmp_path / artifact.MANIFEST_NAME).write_text(text)
    assert artifact.find_manifest(tmp_path) is None
    with pytest.raises(artifact.ArtifactError, match="delete"):
        artifact.read_manifest(tmp_path)


def test_fingerprints_differ_where_values_do_and_not_by_key_order() -> None:
    assert artifact.fingerprint({"a": 1, "b": 2}) == artifact.fingerprint({"b": 2, "a": 1})
    assert artifact.fingerprint({"a": 1}) != artifact.fingerprint({"a": "1"})
