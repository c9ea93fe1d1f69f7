"""kill -9 at random moments of the Beam side: is whatever can be seen whole, and the rerun's data the same?

    python benchmarks/beam_kill.py [--kills N] [--markdown PATH]

A run that resumes and ends before its moment comes is no kill: the workdir is emptied and it begins anew.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contracts.artifact import MANIFEST_NAME, read_manifest
from contracts.layout import Workdir

ROOT = Path(__file__).parents[1]
DNC = [sys.executable, "-c", "from pipeline.cli import main; main()"]
TIMEOUT_SECONDS = 300


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        second: when, from the start of the process.
        whole: names of the artifacts that were there.
        staged: names of the staging directories and files that it left.
    """

    second: float
    whole: list[str]
    staged: list[str]


def make_log(folder: Path) -> Path:
    """The project's synthetic log, below `folder`."""
    command = [*DNC, "data", "synthetic", "--out", str(folder / "data")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=TIMEOUT_SECONDS)
    return folder / "data"


def start(data: Path, workdir: Path) -> subprocess.Popen[str]:
    """`dnc run` on the smoke config up to the windows, in a process group of its own."""
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


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for a run to end well.

    Raises:
        RuntimeError: it did not.
    """
    output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    if process.returncode:
        raise RuntimeError(output[-3000:])


def artifacts(workdir: Path) -> list[Path]:
    """Where the Beam side's artifacts belong."""
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
    """Artifacts that can be seen without being whole."""
    return [path.name for path in artifacts(workdir) if path.exists() and not (path / MANIFEST_NAME).exists()]


def leftovers(workdir: Path) -> list[str]:
    """What a writer had under another name."""
    return sorted(path.name for path in workdir.iterdir() if ".staging-" in path.name) if workdir.exists() else []


def kill_runs(data: Path, workdir: Path, kills: int, length: float, moments: random.Random) -> list[Kill]:
    """Starts runs on `workdir` and kills each, `kills` times.

    Raises:
        RuntimeError: half an artifact could be seen.
    """
    done: list[Kill] = []
    while len(done) < kills:
        process = start(data, workdir)
        moment = moments.uniform(0.1, 0.95) * length
        time.sleep(moment)
        killed = process.poll() is None
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=TIMEOUT_SECONDS)
        if half := half_written(workdir):
            raise RuntimeError(f"killed after {moment:.2f} s, half of {half} can be seen")
        if killed:
            whole = [path.name for path in artifacts(workdir) if path.exists()]
            done.append(Kill(round(moment, 2), whole, leftovers(workdir)))
        else:
            shutil.rmtree(workdir)
    return done


def main() -> None:
    """Prints the log and one JSON line; writes Markdown if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the log here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = make_log(folder)
        begun = time.monotonic()
        finish(start(data, folder / "undisturbed"))
        length = time.monotonic() - begun
        moments = random.Random(arguments.seed)
        done = kill_runs(data, folder / "disturbed", arguments.kills, length, moments)
        finish(start(data, folder / "disturbed"))
        same = hashes(folder / "disturbed") == hashes(folder / "undisturbed")
        left = leftovers(folder / "disturbed")
    lines = ["| kill -9 after s | whole artifacts | left under other names |", "|---|---|---|"]
    lines += [f"| {kill.second} | {', '.join(kill.whole)} | {', '.join(kill.staged)} |" for kill in done]
    ending = (
        f"{len(done)} kills of a run of {length:.1f} s (`dnc run --to windows`, smoke config). The last rerun "
        f"completed; its data files are {'byte-identical to' if same else 'NOT those of'} the undisturbed run's; "
        f"left over: {left or 'nothing'}."
    )
    text = "\n".join(["# Killed Beam jobs", "", *lines, "", ending, ""])
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    print(json.dumps({"kills": len(done), "identical": same, "left_over": left}))
    sys.exit(0 if same and not left else 1)


if __name__ == "__main__":
    main()
