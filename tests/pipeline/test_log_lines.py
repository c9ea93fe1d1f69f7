"""Lines of long work in a log."""

import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
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
    monkeypatch.setattr("pipeline.log_lines.SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        return [message for message in caplog.messages if "still runs" in message]

    def silent() -> None:
        end = time.monotonic() + 30
        while len(lines()) < 3 and time.monotonic() < end:
            time.sleep(0.01)

    run_a_stage(silent, tmp_path)
    assert all(line.startswith("[1/1] groups: still runs, after ") for line in lines())
    assert len(lines()) >= 3
    said = len(lines())
    time.sleep(0.3)
    assert len(lines()) == said


def test_a_stage_that_tells_its_progress_gets_no_further_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.log_lines.SECONDS_BETWEEN_LINES", 2.0)
    caplog.set_level(logging.INFO)

    def talks() -> None:
        for percent in range(30):
            logging.getLogger("trainer.progress").info("rank users: %d%%", percent)
            time.sleep(0.1)

    run_a_stage(talks, tmp_path)
    assert not [message for message in caplog.messages if "still runs" in message]


_LOGGED = """
import logging
from pipeline.log_lines import log_to_stderr
log_to_stderr(logging.INFO)
logging.getLogger("beam_jobs.ingest").info("ingest: %s", "a/rather/long/path " * 10 + "end")
logging.getLogger("pipeline.runner").info("[1/9] ingest: done")
logging.getLogger("another").warning("of another package")
"""


def test_a_log_has_a_whole_line_with_its_date_for_each_message() -> None:
    """What is cut at 80 columns cannot be searched, and a scheduler's log goes on for days."""
    done = subprocess.run([sys.executable, "-c", _LOGGED], capture_output=True, text=True, check=True)
    dates, said = zip(
        *(re.fullmatch(r"(\S+ \S+) (.*)", line).groups() for line in done.stderr.splitlines()), strict=True
    )
    assert said == ("ingest: " + "a/rather/long/path " * 10 + "end", "[1/9] ingest: done", "of another package")
    assert [datetime.strptime(date, "%Y-%m-%d %H:%M:%S").year >= 2024 for date in dates] == [True] * 3


_AS_A_LIBRARY = """
import logging
from pipeline.log_lines import sign_of_life
with sign_of_life("groups"):
    logging.getLogger("beam_jobs.groups").warning("few items")
"""


def test_without_logging_set_up_warnings_of_a_stage_are_shown_by_python_itself() -> None:
    done = subprocess.run([sys.executable, "-c", _AS_A_LIBRARY], capture_output=True, text=True, check=True)
    assert done.stderr == "few items\n"
