"""A job as a program: its exit code and its words."""

import re
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from contracts.layout import Workdir

ROOT = Path(__file__).parents[2]


def test_a_second_run_on_a_workdir_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "beam_jobs.ingest", "--workdir", str(tmp_path)]
    with FileLock(Workdir(tmp_path).lock):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{tmp_path} is held by another process" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [Workdir(tmp_path).lock]


def test_a_workdir_that_tensorflow_would_not_find_again_is_refused(tmp_path: Path) -> None:
    workdir = tmp_path / "run [1]"
    command = [sys.executable, "-m", "beam_jobs.ingest", "--workdir", str(workdir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert f"{workdir} holds [ ], which TensorFlow reads as a pattern" in done.stderr
    assert not workdir.exists()


_SILENT = """
import time
from beam_jobs import statistics
from beam_jobs.common.command import main
from contracts import log_lines

def run(config, workdir, fingerprint):
    time.sleep(1)
    raise ValueError("it is over")

log_lines.SECONDS_BETWEEN_LINES = 0.1
statistics.run = run
main("beam_jobs.statistics")
"""


def test_a_job_that_says_nothing_is_said_to_run_still(tmp_path: Path) -> None:
    """As a stage of `dnc run` is: Beam's steps say nothing for minutes."""
    command = [sys.executable, "-c", _SILENT, "--workdir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    *lines, last = done.stderr.splitlines()
    assert (done.returncode, last) == (2, "error: it is over")
    assert len([line for line in lines if re.fullmatch(r"\S+ \S+ statistics: still running after \d+ s", line)]) >= 3
