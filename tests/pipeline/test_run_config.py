"""A workdir that code of before has left is asked and served as it was."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from contracts.artifact import writing
from contracts.config_io import dump_config, load_config
from contracts.layout import Workdir
from contracts.run_config import find_run_config
from pipeline.cli import main


def served(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The base paths that `dnc serve -w` would serve."""
    found: dict[str, Any] = {}
    monkeypatch.setattr("serving.server.run.serve", lambda bases, server, started: found.update(bases))
    done = CliRunner().invoke(main, ["serve", "-w", str(workdir.path)])
    assert done.exit_code == 0, done.output
    return found


def test_a_run_of_older_code_is_served_by_the_config_that_it_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """config.yaml was the name once: without it, names and indexes would be those by default."""
    workdir = Workdir(tmp_path)
    with writing(workdir.export, "export", "f"):
        pass
    older = load_config(None, ["serving.model_name=mine", "serving.indexes=[exact]"])
    (tmp_path / "config.yaml").write_text(dump_config(older), encoding="utf-8")
    assert served(workdir, monkeypatch) == {"mine": workdir.servable("mine")}
    workdir.config.write_text("serving: {model_name: newer, indexes: [exact]}", encoding="utf-8")
    assert served(workdir, monkeypatch) == {"newer": workdir.servable("newer")}


def test_a_config_without_an_export_is_its_owners(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("serving: {model_name: mine}", encoding="utf-8")
    assert find_run_config(Workdir(tmp_path)) is None
    done = CliRunner().invoke(main, ["query", "-w", str(tmp_path), "--user", "u"])
    assert done.exit_code == 2 and "holds no finished run" in done.output
