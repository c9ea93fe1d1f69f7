"""The same jobs give the same files on one worker, on several, through a job server with a worker pool, and on S3."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.beam_runners import BUCKET, ONE_WORKER, SEVERAL, job_server, run_jobs, s3_server, write_config
from contracts import storage

needs_moto = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "boto3"))),
    reason="needs an S3 server: pip install boto3 'moto[server]'",
)


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def expected(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    contents = run_jobs(config_path, tmp_path_factory.mktemp("plain"), ONE_WORKER)
    letters = [data.splitlines() for name, data in contents.items() if name.startswith("events/dead_letters-")]
    assert [len(lines) for lines in letters] == [2, 2, 2]
    # Letters; 3 buckets; tables; groups; transformed tables and their features; 3 shards of two draws and two splits,
    # and the draws' shares.
    assert len(contents) == 3 + 3 + 4 + 4 + 3 + (12 + 1)
    return contents


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name, data in found.items() if data != expected[name]] == []


@pytest.mark.slow
@pytest.mark.parametrize("runner", SEVERAL)
def test_several_workers(runner: str, config_path: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    assert_same(run_jobs(config_path, tmp_path, SEVERAL[runner]), expected)


@pytest.mark.slow
def test_job_server_with_external_workers(config_path: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    with job_server(tmp_path / "server") as options:
        assert_same(run_jobs(config_path, tmp_path / "run", options), expected)


@pytest.fixture(scope="module")
def reach(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """Options and environment that reach an S3 server which holds the log."""
    files = tmp_path_factory.mktemp("s3")
    write_config(files, f"{BUCKET}/log")
    with s3_server(files) as found:
        yield found


@pytest.fixture(scope="module")
def remote_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("config"), f"{BUCKET}/log")


@needs_moto
@pytest.mark.slow
@pytest.mark.parametrize("way", ["one worker", "processes", "external workers"])
def test_log_and_workdir_on_s3(
    way: str,
    reach: tuple[tuple[str, ...], dict[str, str]],
    remote_config: Path,
    expected: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Nothing is shared with the workers but the S3 server: they have their own place for temporary files."""
    workdir = storage.as_path(f"{BUCKET}/{way.replace(' ', '-')}")
    reaching, environment = reach
    if way == "external workers":
        with job_server(tmp_path / "server", environment) as options:
            found = run_jobs(remote_config, workdir, (*options, *reaching), environment)
    else:
        runner = ONE_WORKER if way == "one worker" else SEVERAL["FnApiRunner, 2 workers, multi_processing"]
        found = run_jobs(remote_config, workdir, (*runner, *reaching), environment)
    assert_same(found, expected)
