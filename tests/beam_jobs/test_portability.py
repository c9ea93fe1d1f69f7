"""The same jobs give the same shards on one worker, on several, and through a job server with a worker pool.

PortableRunner against a job server with an EXTERNAL environment is how Flink and Spark run Python pipelines:
the workers are other processes, which get the steps over gRPC and nothing else.
"""

import contextlib
import gzip
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from contracts.artifact import read_manifest
from contracts.config_io import dump_config
from contracts.layout import Workdir
from tests.beam_jobs.helpers import make_config, write_log

JOBS = ("ingest", "statistics", "groups", "windows")
ROOT = Path(__file__).parents[2]
# The pool starts workers by name, so the interpreter's own directory must come first on PATH.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
}
JOB_TIMEOUT = 120  # seconds: a worker that cannot start leaves the submitter waiting for ever


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files with ties in time, duplicates and malformed rows."""
    folder = tmp_path_factory.mktemp("log")
    rng = np.random.default_rng(0)
    for number in range(3):
        lines = [f"u{u},i{i},{t}" for u, i, t in rng.integers(0, 40, (700, 3))]
        write_log(folder / f"log-{number}.csv", [*lines, "u1,i1,never", ",i2,7"])
    path = folder / "config.yaml"
    path.write_text(dump_config(make_config(folder / "log-*.csv")), encoding="utf-8")
    return path


def run_jobs(config_path: Path, folder: Path, beam: dict[str, str]) -> dict[str, bytes]:
    """Each job as its own program; returns the artifacts' files, gzip undone."""
    for job in JOBS:
        command = [sys.executable, "-m", f"beam_jobs.{job}", "--config", str(config_path), "--workdir", str(folder)]
        command += [part for key, value in beam.items() for part in ("--set", f"beam.{key}={value}")]
        done = subprocess.run(
            command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=JOB_TIMEOUT, check=False
        )
        assert done.returncode == 0, f"{job}: {done.stderr[-3000:]}"
    workdir = Workdir(folder)
    contents = {"dead_letters": workdir.events.dead_letters.read_bytes()}
    for artifact in (workdir.events, workdir.item_statistics, workdir.item_groups, workdir.windows):
        for name in read_manifest(artifact.path).files:
            data = (artifact.path / name).read_bytes()
            contents[f"{artifact.KIND}/{name}"] = gzip.decompress(data) if name.endswith(".gz") else data
    return contents


@pytest.fixture(scope="module")
def expected(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    contents = run_jobs(config_path, tmp_path_factory.mktemp("plain"), {"runner": "FnApiRunner"})
    assert len(contents["dead_letters"].splitlines()) == 6
    assert len(contents) == 1 + 3 + 4 + 4 + 9  # letters; 3 buckets; tables; groups; 3 shards of 3 splits
    return contents


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, data in found.items() if data != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["multi_processing", "multi_threading"])
def test_several_workers(mode: str, config_path: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    options = f"[--direct_num_workers=2, --direct_running_mode={mode}]"
    assert_same(run_jobs(config_path, tmp_path, {"runner": "FnApiRunner", "options": options}), expected)


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
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
            return
        time.sleep(0.2)
    pytest.fail(f"nothing listens on port {port} after 60 s")


@pytest.mark.slow
def test_job_server_with_external_workers(config_path: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    server, pool = _free_port(), _free_port()
    with (
        _service(
            "apache_beam.runners.portability.local_job_service_main",
            f"--port={server}",
            f"--staging_dir={tmp_path / 'staging'}",
        ),
        _service("apache_beam.runners.worker.worker_pool_main", f"--service_port={pool}"),
    ):
        _wait_for(server)
        _wait_for(pool)
        options = (
            f"[--job_endpoint=localhost:{server}, --environment_type=EXTERNAL, '--environment_config=localhost:{pool}']"
        )
        found = run_jobs(config_path, tmp_path / "run", {"runner": "PortableRunner", "options": options})
    assert_same(found, expected)
