"""The same jobs give the same files on one worker, on several, and through a job server with a worker pool."""

from pathlib import Path

import pytest

from benchmarks.beam_runners import ONE_WORKER, SEVERAL, run_jobs, run_on_a_job_server, write_config


@pytest.fixture(scope="module")
def config_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def expected(config_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    contents = run_jobs(config_path, tmp_path_factory.mktemp("plain"), ONE_WORKER)
    assert len(contents["dead_letters"].splitlines()) == 6
    # Letters; 3 buckets; tables; groups; 3 shards of two draws and of two evaluation splits.
    assert len(contents) == 1 + 3 + 4 + 4 + 12
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
    assert_same(run_on_a_job_server(config_path, tmp_path), expected)
