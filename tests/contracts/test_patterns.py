"""The files of a log: which of them a pattern names, and which it may not pass over."""

import os
from pathlib import Path

import pytest

from contracts.patterns import identities, matching
from contracts.storage import StorageError
from tests.contracts.nobody import as_nobody


def test_patterns_descend(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "deep/c.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert matching(f"{tmp_path}/*.csv") == [f"{tmp_path}/a.csv", f"{tmp_path}/b.csv"]
    assert matching(f"{tmp_path}/**/*.csv") == [f"{tmp_path}/{name}" for name in ("a.csv", "b.csv", "deep/c.csv")]


def test_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.csv")).touch()
    with pytest.raises(StorageError, match=r"caf\\xe9.csv' is a file name that is not UTF-8: rename the file"):
        matching(f"{tmp_path}/*.csv")


@pytest.mark.parametrize("pattern", ["log/*/*.csv", "log/**/*.csv", "log/**/a.csv", "log/*/a.csv"])
@pytest.mark.parametrize("mode", [0o000, 0o644])
def test_a_day_that_may_not_be_looked_into_is_told(
    pattern: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # what lies above may be for its owner alone
    tmp_path.chmod(0o755)
    for day in ("1", "2", "lost+found"):
        (tmp_path / "log" / day).mkdir(parents=True)
        (tmp_path / "log" / day / "a.csv").touch()
    Path("log/lost+found").chmod(0o000)  # a volume has it, and no log is in it
    Path("log/2").chmod(mode)
    with as_nobody():
        assert matching("log/1/*.csv") == ["log/1/a.csv"]
        with pytest.raises(StorageError, match=r"^log/2/ cannot be read \(.*\), so .* log/\*.* missed"):
            matching(pattern)
    Path("log/2").chmod(0o755)
    with as_nobody():
        assert matching(pattern) == ["log/1/a.csv", "log/2/a.csv"]


def test_what_is_only_passed_through_need_not_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    (tmp_path / "home" / "log").mkdir(parents=True)
    (tmp_path / "home" / "log" / "a.csv").touch()
    Path("home").chmod(0o311)
    with as_nobody():
        assert matching("home/log/*.csv") == ["home/log/a.csv"]
    Path("home").chmod(0o755)


def test_a_file_is_found_whatever_characters_its_name_has(tmp_path: Path) -> None:
    path = tmp_path / "[x] log.csv"
    path.touch()
    assert matching(str(path)) == [str(path)]


@pytest.mark.parametrize("pattern", ["*.csv", "b.csv"])
def test_a_link_that_leads_nowhere_is_told(pattern: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "b.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(StorageError, match=f"^{tmp_path}/b.csv is listed, but there is no such file: .* fix or remove"):
        identities(f"{tmp_path}/{pattern}")
