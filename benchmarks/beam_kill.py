"""kill -9 in the middle of each Beam job: is every visible artifact whole, and is the rerun's data the same?

    python -m benchmarks.beam_kill [--chains N] [--markdown PATH]

A chain is a run that is killed once in each of its five jobs, at a random moment, and started again each time; the last
start is left alone, and its data must be the same as an undisturbed run's. A job that ends before its moment comes does
not count as a kill: its artifact is removed, and the run is started again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.outputs import output_file
from contracts.artifact import MANIFEST_NAME, read_manifest
from contracts.layout import Workdir
from contracts.storage import staging_of, write_text

ROOT = Path(__file__).parents[1]
DNC = [sys.executable, "-c", "from pipeline.cli import main; main()"]
TIMEOUT_SECONDS = 300
EVENTS = 400_000
JOBS = ("ingest", "statistics", "groups", "transform", "windows")
_BEGINS = re.compile(r"\[\d/\d\] (\w+): (?!done)")
_ENDS = re.compile(r"\[\d/\d\] (\w+): done in ([\d.]+) s")


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        job: the job that was running.
        second: time since the start of the job.
        staged: names of the staging directories and files that it left behind.
    """

    job: str
    second: float
    staged: list[str]


def make_log(folder: Path) -> Path:
    """The project's synthetic log, below `folder`."""
    command = [*DNC, "data", "synthetic", "--events", str(EVENTS), "--out", str(folder / "data")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return folder / "data"


def start(data: Path, workdir: Path) -> subprocess.Popen[str]:
    """Starts `dnc run` on the smoke config up to the windows, in its own process group."""
    overrides = {
        "data.events": f"{data}/events-*.csv",
        "data.user_features.path": f"{data}/users.csv",
        "data.item_features.path": f"{data}/items.csv",
    }
    command = [*DNC, "run", "-c", "configs/smoke.yaml", "-w", str(workdir), "--to", "windows"]
    command += [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str]) -> dict[str, float]:
    """Waits for a run to succeed; returns the seconds of each job that it ran.

    Raises:
        RuntimeError: the run failed.
    """
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode:
        raise RuntimeError(output[-3000:])
    return {job: float(seconds) for job, seconds in _ENDS.findall(output)}


def artifacts(workdir: Path) -> list[Path]:
    """Where the artifacts of `JOBS` belong."""
    run = Workdir(workdir)
    return [part.path for part in (run.events, run.item_statistics, run.item_groups, run.transform, run.windows)]


def hashes(workdir: Path) -> dict[str, str]:
    """SHA-256 of every data file that a manifest lists."""
    return {
        f"{path.name}/{name}": hashlib.sha256((path / name).read_bytes()).hexdigest()
        for path in artifacts(workdir)
        for name in read_manifest(path).files
    }


def half_written(workdir: Path) -> list[str]:
    """Artifacts that are visible but incomplete."""
    return [path.name for path in artifacts(workdir) if path.exists() and not (path / MANIFEST_NAME).exists()]


def leftovers(workdir: Path) -> list[str]:
    """Names of files and directories that a writer had staged under another name."""
    names = [path.name for path in workdir.iterdir()] if workdir.exists() else []
    return sorted(name for name in names if staging_of(name) is not None)


def kill_chain(data: Path, workdir: Path, seconds: dict[str, float], moments: random.Random) -> list[Kill]:
    """Kills a run on `workdir` once in each job, starts it again each time, and lets the last start finish.

    Args:
        seconds: time that each job takes undisturbed.

    Raises:
        RuntimeError: an incomplete artifact was visible, or the last start failed.
    """
    done: list[Kill] = []
    for job, artifact in zip(JOBS, artifacts(workdir), strict=True):
        while True:
            moment = moments.uniform(0.05, 0.95) * seconds[job]
            kill_in(start(data, workdir), job, moment)
            if half := half_written(workdir):
                raise RuntimeError(f"killed {moment:.2f} s into {job}, half of {half} can be seen")
            if not artifact.exists():
                break
            shutil.rmtree(artifact)
        done.append(Kill(job, round(moment, 2), leftovers(workdir)))
    finish(start(data, workdir))
    return done


def kill_in(process: subprocess.Popen[str], job: str, moment: float) -> None:
    """Sends SIGKILL to the run's process group `moment` seconds after it says that `job` begins."""
    assert process.stdout is not None
    for line in process.stdout:
        if (begins := _BEGINS.search(line)) and begins[1] == job:
            time.sleep(moment)
            break
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_SECONDS)


def main() -> None:
    """Prints the log and one JSON line; writes Markdown if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chains", type=int, default=4, help="runs killed once in each job (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: %(default)s)")
    parser.add_argument("--markdown", type=output_file, help="write the log here")
    arguments = parser.parse_args()
    moments, done, differ = random.Random(arguments.seed), [], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_log(folder)
        seconds = finish(start(data, folder / "undisturbed"))
        expected = hashes(folder / "undisturbed")
        for chain in range(arguments.chains):
            workdir = folder / f"chain-{chain}"
            done += kill_chain(data, workdir, seconds, moments)
            differ += hashes(workdir) != expected or leftovers(workdir) != []
    lines = ["| kill -9 in | after s of it | left under other names |", "|---|---|---|"]
    lines += [f"| {kill.job} | {kill.second} | {', '.join(kill.staged)} |" for kill in done]
    ending = (
        f"{len(done)} kills in {arguments.chains} runs of {EVENTS:,} events (`dnc run --to windows`, smoke config; the "
        f"jobs take {seconds}). Each run's last start completed; runs with other bytes than the undisturbed run's, or "
        f"with leftovers: {differ}."
    )
    text = "\n".join(["# Killed Beam jobs", "", *lines, "", ending, ""])
    print(text)
    if arguments.markdown:
        write_text(arguments.markdown, text)
    print(json.dumps({"kills": len(done), "runs": arguments.chains, "runs_that_differ": differ}))
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
