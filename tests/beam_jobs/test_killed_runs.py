"""kill -9 in each job: the rerun completes, and its data are those of a run that nobody disturbed."""

import random
import time
from pathlib import Path

import pytest

from benchmarks.beam_kill import finish, hashes, kill_chain, leftovers, make_log, start


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_data(tmp_path: Path) -> None:
    data = make_log(tmp_path)
    seconds = finish(start(data, tmp_path / "undisturbed"))
    killed = kill_chain(data, tmp_path / "disturbed", seconds, random.Random(time.time_ns()))
    assert hashes(tmp_path / "disturbed") == hashes(tmp_path / "undisturbed"), killed
    assert leftovers(tmp_path / "disturbed") == [], killed
