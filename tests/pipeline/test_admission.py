"""What was exported becomes a version when it is validated, and not before, whatever is killed or refused."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import serving.export
import serving.validate
import serving.validation.servable_evaluation
import serving.versions
from contracts.config import Config
from contracts.config_io import load_config
from contracts.errors import Unfit
from contracts.layout import Workdir
from contracts.serving_labels import versions_on_disk
from pipeline.runner import run_stages
from pipeline.stages import STAGES, exported_servable
from serving.versions import appearing, next_version, unvalidated

NAMES = ("dnc", "dnc_exact")  # of the default indexes, the main one first
BY_NAME = {stage.name: stage for stage in STAGES}


class Run:
    """A workdir whose stages export files that say which export they are of, and whose checks find `failures`."""

    def __init__(self, folder: Path):
        self.workdir = Workdir(folder / "run")
        self.failures: list[str] = []
        self.exports = 0
        self.seen_while_checked: list[list[int]] = []

    def __call__(self, *overrides: str) -> None:
        stages = (replace(BY_NAME["export"], after=()), replace(BY_NAME["validate"], after=("export",)))
        run_stages(stages, load_config(None, overrides), self.workdir)

    def export(self, config: Config, workdir: Workdir, *_: object) -> Path:
        self.exports += 1
        number = max(next_version(workdir.servable(name)) for name in NAMES)
        for name in NAMES:
            with appearing(unvalidated(workdir.servable(name) / str(number))) as staging:
                staging.mkdir()
                (staging / "saved_model.pb").write_text(f"export {self.exports}")
        return unvalidated(workdir.servable("dnc") / str(number))

    def check(self, workdir: Workdir, servable: Path, config: Path, report: Path) -> dict[str, Any]:
        self.seen_while_checked.append(self.polled("dnc"))
        report.write_text("{}")
        return {"requests": 1, "failures": self.failures, "servables": {}}

    def polled(self, name: str) -> list[int]:
        """What a server that polls takes for versions."""
        return versions_on_disk(self.workdir.servable(name))

    def on_disk(self, name: str) -> dict[str, str]:
        """Directory -> the export that it is of."""
        found = sorted(self.workdir.servable(name).iterdir())
        return {path.name: (path / "saved_model.pb").read_text() for path in found}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run(tmp_path)
    monkeypatch.setattr(serving.export, "export", run.export)
    monkeypatch.setattr(serving.validate, "_check_in_fresh_process", run.check)
    monkeypatch.setattr(serving.validation.servable_evaluation, "evaluate_servable", lambda *_: {})
    return run


def test_a_version_appears_after_its_validation(run: Run) -> None:
    run()
    run("serving.alpha=0.5")
    assert run.seen_while_checked == [[], [1]]
    for name in NAMES:
        assert run.on_disk(name) == {"1": "export 1", "2": "export 2"}
    assert exported_servable(run.workdir) == run.workdir.servable("dnc") / "2"


def test_what_is_refused_is_no_version_and_stays_until_the_next_export(run: Run) -> None:
    run()
    run.failures = ["too bad"]
    for number in (2, 3):
        for _ in range(2):  # the same command again exports nothing
            with pytest.raises(Unfit, match=rf"dnc/unvalidated-{number} is not fit to serve:\n  too bad"):
                run(f"serving.alpha=0.{number}")
        for name in NAMES:
            assert run.polled(name) == [1]
            assert run.on_disk(name) == {"1": "export 1", f"unvalidated-{number}": f"export {number}"}
    run.failures = []
    run("serving.alpha=0.4")
    for name in NAMES:
        assert run.on_disk(name) == {"1": "export 1", "4": "export 4"}


def test_a_death_between_the_renames_is_taken_up(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed: list[Path] = []
    rename = serving.versions.rename_durably

    def dying(source: Path, target: Path) -> None:
        if target.name == "1" and renamed:
            raise KeyboardInterrupt
        renamed.extend([target] if target.name == "1" else [])
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(serving.versions, "rename_durably", dying)
        run()
    assert [run.polled(name) for name in NAMES] == [[], [1]]  # the main one is the last
    assert not run.workdir.validation.exists()
    run()
    assert run.exports == 1
    for name in NAMES:
        assert run.on_disk(name) == {"1": "export 1"}


def test_a_death_in_an_export_leaves_what_the_last_one_left(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The killed one's files must not pass for what was exported before, of another config."""
    run.failures = ["too bad"]
    with pytest.raises(Unfit, match="unvalidated-1"):
        run()

    def dying(*arguments: Any) -> Path:
        run.export(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(serving.export, "export", dying)
        run("serving.alpha=0.5")
    run.failures = []
    run()
    assert run.on_disk("dnc") == {"1": "export 1", "unvalidated-2": "export 2"}
    run("serving.alpha=0.5")
    assert run.on_disk("dnc") == {"1": "export 1", "2": "export 3"}


@pytest.mark.parametrize("exported_before", [False, True])
def test_exports_that_die_do_not_pile_up(run: Run, monkeypatch: pytest.MonkeyPatch, exported_before: bool) -> None:
    """Each on a disk that has no room for its last servable: the first ones are whole, and as large."""
    before = ["1"] if exported_before else []
    if exported_before:
        run()

    def full(*arguments: Any) -> Path:
        run.export(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(serving.export, "export", full)
        for _ in range(3):
            with pytest.raises(OSError, match="No space left"):
                run("serving.alpha=0.5")
            assert [*run.on_disk("dnc")] == [*before, f"unvalidated-{len(before) + 1}"]
    run("serving.alpha=0.5")
    for name in NAMES:
        assert [*run.on_disk(name)] == [*before, f"{len(before) + 1}"]
