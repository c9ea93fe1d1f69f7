"""The Beam side's files on one worker, on several, and through a job server with a worker pool: the same hashes?

    python -m benchmarks.beam_runners [--markdown PATH]

PortableRunner against a job server with an EXTERNAL environment is how Flink and Spark run Python pipelines: the
workers are other processes, which get the steps over gRPC and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.config_io import dump_config
from contracts.layout import Workdir

JOBS = ("ingest", "statistics", "groups", "windows")
ROOT = Path(__file__).parents[1]
# The pool starts workers by name, so the interpreter's own directory must come first on PATH.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}
JOB_TIMEOUT = 180  # seconds: a worker that cannot start leaves the submitter waiting for ever
START_TIMEOUT = 60
ONE_WORKER = {"runner": "FnApiRunner"}
SEVERAL = {
    f"FnApiRunner, 2 workers, {mode}": {
        "runner": "FnApiRunner",
        "options": f"[--direct_num_workers=2, --direct_running_mode={mode}]",
    }
    for mode in ("multi_processing", "multi_threading")
}


def write_config(folder: Path) -> Path:
    """A config of three files with ties in time, duplicates and malformed rows, all four kinds of negatives."""
    rng = np.random.default_rng(0)
    for number in range(3):
        lines = [f"u{u},i{i},{t},{'click' if t % 3 else 'exposure'}" for u, i, t in rng.integers(0, 40, (700, 3))]
        text = "\n".join(["user_id,item_id,timestamp,event", *lines, "u1,i1,never,click", ",i2,7,click", ""])
        (folder / f"log-{number}.csv").write_text(text, encoding="utf-8")
    np.savez(folder / "e.npz", item_id=[f"i{i}" for i in range(40)], embedding=rng.normal(size=(40, 4)))
    data = {
        "events": str(folder / "log-*.csv"),
        "num_buckets": 3,
        "columns": {"event": "event"},
        "feedback": {"levels": ["exposure", "click"], "target_level": "click"},
    }
    negatives = {"exposed_negatives": 2, "mined_negatives": 2, "mined_from": str(folder / "e.npz"), "resamples": 2}
    groups = {"num_groups": 2, "embedding_dim": 8, "fit": "distributed"}
    config = Config.model_validate({"data": data, "groups": groups, "windows": negatives})
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder / "config.yaml"


def run_jobs(config_path: Path, folder: Path, beam: dict[str, str]) -> dict[str, bytes]:
    """Each job as its own program; returns the artifacts' files, gzip undone.

    Raises:
        RuntimeError: a job failed.
    """
    for job in JOBS:
        command = [sys.executable, "-m", f"beam_jobs.{job}", "--config", str(config_path), "--workdir", str(folder)]
        command += [part for key, value in beam.items() for part in ("--set", f"beam.{key}={value}")]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=JOB_TIMEOUT, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{job}: {done.stderr[-3000:]}")
    workdir = Workdir(folder)
    contents = {"dead_letters": workdir.events.dead_letters.read_bytes()}
    for artifact in (workdir.events, workdir.item_statistics, workdir.item_groups, workdir.windows):
        for name in read_manifest(artifact.path).files:
            data = (artifact.path / name).read_bytes()
            contents[f"{artifact.KIND}/{name}"] = gzip.decompress(data) if name.endswith(".gz") else data
    return contents


def run_on_a_job_server(config_path: Path, folder: Path) -> dict[str, bytes]:
    """`run_jobs` on a PortableRunner whose job server and EXTERNAL worker pool are started for it."""
    server, pool = _free_port(), _free_port()
    staging = f"--staging_dir={folder / 'staging'}"
    with (
        _service("apache_beam.runners.portability.local_job_service_main", f"--port={server}", staging),
        _service("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"),
    ):
        _wait_for(server)
        _wait_for(pool)
        options = (
            f"[--job_endpoint=localhost:{server}, --environment_type=EXTERNAL, '--environment_config=localhost:{pool}']"
        )
        return run_jobs(config_path, folder / "run", {"runner": "PortableRunner", "options": options})


@contextlib.contextmanager
def _service(module: str, *arguments: str) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # with the workers that it started
        process.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port} after {START_TIMEOUT} s")


def main() -> None:
    """Prints a table of hashes, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config_path = write_config(folder)
        runs = {"FnApiRunner": run_jobs(config_path, folder / "one", ONE_WORKER)}
        for number, (runner, beam) in enumerate(SEVERAL.items()):
            runs[runner] = run_jobs(config_path, folder / f"several-{number}", beam)
        runs["PortableRunner, job server, EXTERNAL pool"] = run_on_a_job_server(config_path, folder / "portable")
    reference = runs["FnApiRunner"]
    others = [runner for runner in runs if runner != "FnApiRunner"]
    lines = ["# One log, four ways to run the jobs", "", f"| file, gzip undone | SHA-256 | {' | '.join(others)} |"]
    lines.append("|---|---|" + "---|" * len(others))
    for file, data in sorted(reference.items()):
        verdicts = ["same" if runs[runner].get(file) == data else "DIFFERENT" for runner in others]
        lines.append(f"| {file} | `{hashlib.sha256(data).hexdigest()[:16]}` | {' | '.join(verdicts)} |")
    same = all(found == reference for found in runs.values())
    lines += ["", f"{len(reference)} files, all the same: {same}.", ""]
    text = "\n".join(lines)
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
