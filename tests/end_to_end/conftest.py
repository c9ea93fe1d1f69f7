"""One smoke run, made once in fresh processes and shared by the tests that look at it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipeline.cli import main

ROOT = Path(__file__).parents[2]
DNC = str(Path(sys.executable).with_name("dnc"))


@dataclass(frozen=True)
class SmokeRun:
    """The generated log, the workdir, the command that made it, and what the command printed."""

    data: Path
    workdir: Path
    command: list[str]
    output: str


def run_dnc(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([DNC, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def invoke(*arguments: str) -> Result:
    """As `run_dnc`, in this process: a fresh one imports TensorFlow for seconds."""
    return CliRunner().invoke(main, arguments)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> SmokeRun:
    folder = tmp_path_factory.mktemp("smoke")
    data, workdir = folder / "data", folder / "run"
    made = run_dnc("data", "synthetic", "--out", str(data))
    assert made.returncode == 0, made.stderr
    command = ["run", "-c", "configs/smoke.yaml", "-w", str(workdir)]
    command += ["--set", f"data.events={data}/events-*.csv"]
    command += ["--set", f"data.user_features.path={data}/users.csv"]
    command += ["--set", f"data.item_features.path={data}/items.csv"]
    done = run_dnc(*command)
    assert done.returncode == 0, done.stderr[-4000:]
    return SmokeRun(data, workdir, command, done.stdout)
