"""kill -9 at random moments: the rerun completes, and its data are those of a run that nobody disturbed."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from contracts.artifact import MANIFEST_NAME, find_manifest
from contracts.layout import Workdir

ROOT = Path(__file__).parents[2]
KILLS = 5
DNC = [sys.executable, "-c", "from pipeline.cli import main; main()"]


def start(data: Path, workdir: Path) -> subprocess.Popen[str]:
    """`dnc run` on the smoke config up to the windows, in a process group of its own."""
    overrides = {
        "data.events": f"{data}/events-*.csv",
        "data.user_features.path": f"{data}/users.csv",
        "data.item_features.path": f"{data}/items.csv",
    }
    command = [*DNC, "run", "-c", "configs/smoke.yaml", "-w", str(workdir)]
    command += ["--to", "windows"]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]


def artifacts(workdir: Path) -> list[Path]:
    run = Workdir(workdir)
    return [part.path for part in (run.events, run.item_statistics, run.item_groups, run.transform, run.windows)]


def hashes(workdir: Path) -> dict[str, str]:
    """SHA-256 of every data file that a manifest lists."""
    found = {}
    for path in artifacts(workdir):
        manifest = find_manifest(path)
        assert manifest is not None, path
        for name in manifest.files:
            found[f"{path.name}/{name}"] = hashlib.sha256((path / name).read_bytes()).hexdigest()
    return found


@pytest.mark.slow
def test_killed_runs_resume_to_the_same_data(tmp_path: Path) -> None:
    data = tmp_path / "data"
    subprocess.run(
        [*DNC, "data", "synthetic", "--out", str(data)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    begun = time.monotonic()
    finish(start(data, tmp_path / "undisturbed"))
    length = time.monotonic() - begun
    expected = hashes(tmp_path / "undisturbed")

    disturbed = tmp_path / "disturbed"
    moments = random.Random(time.time_ns())
    killed_at = []
    for _ in range(KILLS):
        process = start(data, disturbed)
        moment = moments.uniform(0.15, 0.9) * length
        time.sleep(moment)
        # A run that resumes may be done by then; that is no kill, and no failure either.
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed_at.append(round(moment, 2))
        process.communicate(timeout=60)
        for path in artifacts(disturbed):  # whatever can be seen is whole
            assert not path.exists() or (path / MANIFEST_NAME).exists(), f"half an artifact at {path}; {killed_at}"
    assert killed_at
    finish(start(data, disturbed))
    assert hashes(disturbed) == expected, f"killed after {killed_at} s"
    left = [path.name for path in disturbed.iterdir() if ".staging-" in path.name]
    assert left == [], f"killed after {killed_at} s"
