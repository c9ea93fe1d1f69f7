"""Lines of a stage in a log."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from pipeline.runner import run_stages
from pipeline.stages import STAGES


def run_a_stage(works: Callable[[], object], workdir: Path) -> None:
    def run(config: Config, workdir: Workdir, fingerprint: str) -> None:
        works()
        with artifact.writing(workdir.item_groups.path, "item_groups", fingerprint):
            pass

    groups = replace(STAGES[2], after=(), run=run)
    run_stages((groups,), Config(), Workdir(workdir))


def test_a_stage_that_says_nothing_is_said_to_run_still(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As k-means over many items, or a Beam pipeline: who reads the log cannot tell them from a run that hangs."""
    monkeypatch.setattr("contracts.log_lines.SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        return [message for message in caplog.messages if "still running" in message]

    def silent() -> None:
        end = time.monotonic() + 30
        while len(lines()) < 3 and time.monotonic() < end:
            time.sleep(0.01)

    run_a_stage(silent, tmp_path)
    assert all(line.startswith("[1/1] groups: still running after ") for line in lines())
    assert len(lines()) >= 3
    said = len(lines())
    time.sleep(0.3)
    assert len(lines()) == said


def test_a_stage_that_tells_its_progress_gets_no_further_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("contracts.log_lines.SECONDS_BETWEEN_LINES", 2.0)
    caplog.set_level(logging.INFO)

    def talks() -> None:
        for percent in range(30):
            logging.getLogger("trainer.progress").info("rank users: %d%%", percent)
            time.sleep(0.1)

    run_a_stage(talks, tmp_path)
    assert not [message for message in caplog.messages if "still running" in message]
