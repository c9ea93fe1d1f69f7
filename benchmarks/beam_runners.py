"""Compares hashes of the Beam jobs' files from one worker, several, and a job server with a worker pool.

    python -m benchmarks.beam_runners [--s3] [--markdown PATH]

PortableRunner against a job server with an EXTERNAL environment is how Flink and Spark run Python pipelines: the
workers are other processes, which get the steps over gRPC and nothing else. `--s3` does all of it again with log and
workdir in an S3 server on this machine (`pip install boto3 'moto[server]'`), which is all that the workers share.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

import beam_jobs  # noqa: F401  (with it, `storage` reads object stores)
from benchmarks.outputs import output_file
from contracts import storage
from contracts.artifact import current, read_manifest
from contracts.config import Config
from contracts.config_io import dump_config, load_config
from contracts.layout import Events, Workdir

JOBS = ("ingest", "statistics", "groups", "transform", "windows")
ROOT = Path(__file__).parents[1]
# The pool starts workers by name, so the interpreter's own directory must come first on PATH.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}
JOB_TIMEOUT = 180  # seconds: a worker that cannot start leaves the submitter waiting for ever
START_TIMEOUT = 60
ONE_WORKER = ("--runner=FnApiRunner",)
SEVERAL = {
    f"FnApiRunner, 2 workers, {mode}": (*ONE_WORKER, "--direct_num_workers=2", f"--direct_running_mode={mode}")
    for mode in ("multi_processing", "multi_threading")
}
BUCKET = "s3://bucket"


def write_config(folder: Path, place: str | None = None) -> Path:
    """Writes three logs with duplicates, malformed rows and time ties, and a config with all four kinds of negatives.

    Args:
        folder: where the config and the files are written.
        place: where the config says that the files are; default: `folder`.
    """
    place = place or str(folder)
    rng = np.random.default_rng(0)
    for number in range(3):
        lines = [f"u{u},i{i},{t},{'click' if t % 3 else 'exposure'}" for u, i, t in rng.integers(0, 40, (700, 3))]
        text = "\n".join(["user_id,item_id,timestamp,event", *lines, "u1,i1,never,click", ",i2,7,click", ""])
        (folder / f"log-{number}.csv").write_text(text, encoding="utf-8")
    np.savez(folder / "e.npz", item_id=[f"i{i}" for i in range(40)], embedding=rng.normal(size=(40, 4)))
    data = {
        "events": f"{place}/log-*.csv",
        "num_buckets": 3,
        "columns": {"event": "event"},
        "feedback": {"levels": ["exposure", "click"], "target_level": "click"},
    }
    negatives = {"exposed_negatives": 2, "mined_negatives": 2, "mined_from": f"{place}/e.npz", "resamples": 2}
    groups = {"num_groups": 2, "embedding_dim": 8, "fit": "distributed"}
    config = Config.model_validate({"data": data, "groups": groups, "windows": negatives})
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder / "config.yaml"


def run_jobs(
    config_path: Path, workdir: Path, options: Sequence[str], environment: dict[str, str] | None = None
) -> dict[str, bytes]:
    """Runs each job as its own program; returns the artifacts' files, uncompressed.

    Args:
        config_path: as returned by `write_config`.
        workdir: a directory, or a URL.
        options: Beam's options, the runner first.
        environment: further variables; FnApiRunner's processes inherit them, but get no pipeline options.

    Raises:
        RuntimeError: a job failed.
    """
    runner, *others = options
    beam = [f"beam.runner={runner.removeprefix('--runner=')}", f"beam.options={json.dumps(others)}"]
    with tempfile.TemporaryDirectory(prefix="driver-") as scratch:
        for job in JOBS:
            command = [
                sys.executable,
                "-m",
                f"beam_jobs.{job}",
                "--config",
                str(config_path),
                "--workdir",
                str(workdir),
            ]
            command += [part for key in beam for part in ("--set", key)]
            done = subprocess.run(
                command,
                env={**ENVIRONMENT, **(environment or {}), "TMPDIR": scratch},
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=JOB_TIMEOUT,
                check=False,
            )
            if done.returncode:
                raise RuntimeError(f"{job}: {done.stderr[-3000:]}")
    return contents(workdir, load_config(config_path, beam).data.events[0].rpartition("/")[0])


def contents(workdir: Path, log: str) -> dict[str, bytes]:
    """All data files of the artifacts, uncompressed, and the dead letters, with `log` in their file names replaced."""
    run = Workdir(workdir)
    found = {}
    for artifact in (run.events, run.item_statistics, run.item_groups, run.transform, run.windows):
        folder = current(artifact.path)
        manifest = read_manifest(folder)
        sources = range(len(manifest.details["sources"])) if artifact.KIND == Events.KIND else ()
        letters = [Events(folder).dead_letters(source).name for source in sources]  # each has some
        for name in [*letters, *manifest.files]:
            with storage.open_binary(folder / name) as stream:
                data = stream.read()
            data = data.replace(log.encode(), b"log") if name in letters else data
            found[f"{artifact.KIND}/{name}"] = gzip.decompress(data) if name.endswith(".gz") else data
    return found


@contextlib.contextmanager
def job_server(folder: Path, environment: dict[str, str] | None = None) -> Iterator[tuple[str, ...]]:
    """Runs a job server and an EXTERNAL worker pool during the block; yields options of a PortableRunner for them.

    The workers have a different working directory and a different temporary directory from the submitter's.

    Args:
        folder: for the files of server and workers.
        environment: variables of the workers, which are processes of the pool and get no pipeline options.
    """
    server, pool, elsewhere = free_port(), free_port(), folder / "worker"
    elsewhere.mkdir(parents=True)
    staging = f"--staging_dir={folder / 'staging'}"
    with (
        service("apache_beam.runners.portability.local_job_service_main", f"--port={server}", staging, cwd=elsewhere),
        service(
            "apache_beam.runners.worker.worker_pool_main",
            f"--service_port={pool}",
            cwd=elsewhere,
            environment=environment,
        ),
    ):
        wait_for(server)
        wait_for(pool)
        endpoints = f"--job_endpoint=localhost:{server}", f"--environment_config=localhost:{pool}"
        yield "--runner=PortableRunner", "--environment_type=EXTERNAL", *endpoints


@contextlib.contextmanager
def s3_server(files: Path) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Runs an S3 server with a folder's files below `BUCKET`/log; yields the options and environment to reach it."""
    port = free_port()
    reach = ("--s3_access_key_id=key", "--s3_secret_access_key=secret", "--s3_region_name=us-east-1")
    options = (*reach, f"--s3_endpoint_url=http://localhost:{port}")
    with service("moto.server", f"--port={port}", cwd=files):
        wait_for(port)
        request = urllib.request.Request(f"http://localhost:{port}/{BUCKET.removeprefix('s3://')}", method="PUT")
        urllib.request.urlopen(request, timeout=START_TIMEOUT).close()
        storage.connect(options)
        storage.store_tree(files, storage.as_path(f"{BUCKET}/log"))
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        yield options, {**keys, "AWS_ENDPOINT_URL_S3": f"http://localhost:{port}"}


@contextlib.contextmanager
def service(module: str, *arguments: str, cwd: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Runs another program during the block; `cwd` is also its directory for temporary files."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        env={**ENVIRONMENT, **(environment or {}), "TMPDIR": str(cwd)},
        cwd=cwd,
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


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    """Returns once something listens on the port.

    Raises:
        RuntimeError: nothing does for too long.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.2)
    raise RuntimeError(f"nothing listens on port {port} after {START_TIMEOUT} s")


def all_runs(folder: Path, *, s3: bool) -> dict[str, dict[str, bytes]]:
    """The files written by each way to run the jobs."""
    (folder / "log").mkdir(parents=True)
    config_path = write_config(folder / "log")
    runs = {"FnApiRunner": run_jobs(config_path, folder / "one", ONE_WORKER)}
    for number, (runner, options) in enumerate(SEVERAL.items()):
        runs[runner] = run_jobs(config_path, folder / f"several-{number}", options)
    with job_server(folder / "server") as options:
        runs["PortableRunner, job server, EXTERNAL pool"] = run_jobs(config_path, folder / "portable", options)
    if s3:
        runs |= s3_runs(folder / "s3")
    return runs


def s3_runs(folder: Path) -> dict[str, dict[str, bytes]]:
    """Like `all_runs`, with log and workdir in an S3 server."""
    ways = {"FnApiRunner": ONE_WORKER, "2 processes": SEVERAL["FnApiRunner, 2 workers, multi_processing"]}
    (folder / "log").mkdir(parents=True)
    config_path = write_config(folder / "log", f"{BUCKET}/log")
    with s3_server(folder / "log") as (reach, environment), job_server(folder / "server", environment) as portable:
        ways["EXTERNAL pool"] = portable
        return {
            f"s3://, {name}": run_jobs(config_path, storage.as_path(f"{BUCKET}/{number}"), (*way, *reach), environment)
            for number, (name, way) in enumerate(ways.items())
        }


def main() -> None:
    """Prints a table of hashes, and writes it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--s3", action="store_true", help="again with log and workdir in an S3 server")
    parser.add_argument("--markdown", type=output_file, help="write the table here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs = all_runs(Path(name), s3=arguments.s3)
    reference = runs["FnApiRunner"]
    others = [runner for runner in runs if runner != "FnApiRunner"]
    lines = [f"# One log, {len(runs)} ways to run the jobs", ""]
    lines.append(f"| file, gzip undone | SHA-256 | {' | '.join(others)} |")
    lines.append("|---|---|" + "---|" * len(others))
    for file, data in sorted(reference.items()):
        verdicts = ["same" if runs[runner].get(file) == data else "DIFFERENT" for runner in others]
        lines.append(f"| {file} | `{hashlib.sha256(data).hexdigest()[:16]}` | {' | '.join(verdicts)} |")
    same = all(found == reference for found in runs.values())
    lines += ["", f"{len(reference)} files, all the same: {same}.", ""]
    text = "\n".join(lines)
    print(text)
    if arguments.markdown:
        storage.write_text(arguments.markdown, text)
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
