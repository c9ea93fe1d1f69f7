"""A runner may run what is done once more, as Flink and Spark do when they have lost a worker: nothing must change."""

import gc
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.utils.shared import Shared

from beam_jobs import groups, ingest, statistics, transform, windows
from beam_jobs.common.files import write_array
from beam_jobs.grouping.distributed_kmeans import refine_centroids
from beam_jobs.grouping.embedding_blocks import blocks_of
from beam_jobs.grouping.item_embeddings import normalise_rows
from benchmarks.beam_runners import contents, write_config
from contracts.config import BeamConfig
from contracts.config_io import load_config
from contracts.layout import Workdir


class RunsTwice(FnApiRunner):
    """Runs each pipeline again from its inputs once all of it has been done."""

    def run_pipeline(self, pipeline: Any, options: PipelineOptions) -> Any:
        super().run_pipeline(pipeline, options)
        lose_shared_objects()
        return super().run_pipeline(pipeline, options)


def lose_shared_objects() -> None:
    """Forgets what steps keep in a worker's memory, as a worker that is lost does.

    TensorFlow Transform keeps the graph that it has loaded, and does not take another in its place in one process.
    Beam keeps the object that was acquired last; what nothing keeps goes once its cycles are collected.
    """
    Shared().acquire(set)
    gc.collect()


TWICE = f"{__name__}.{RunsTwice.__name__}"


def run(config_path: Path, workdir: Path, runner: str) -> dict[str, bytes]:
    config = load_config(config_path, [f"beam.runner={runner}"])
    for job in (ingest, statistics, groups, transform, windows):
        job.run(config, Workdir(workdir), "f")
    return contents(workdir, str(config_path.parent))


def test_jobs_whose_steps_are_done_again_write_the_same(tmp_path: Path) -> None:
    config_path = write_config(tmp_path)
    expected, found = (run(config_path, tmp_path / runner, runner) for runner in ("FnApiRunner", TWICE))
    assert found.keys() == expected.keys()
    assert [name for name, data in found.items() if data != expected[name]] == []


def test_an_iteration_of_k_means_that_is_done_again_is_one(tmp_path: Path) -> None:
    rows = normalise_rows(np.random.default_rng(0).normal(size=(500, 4)))
    write_array(tmp_path / "rows.npy", rows)
    start = rows[:6].copy()
    found = refine_centroids(BeamConfig(runner=TWICE), blocks_of(tmp_path / "rows.npy", 500), start, 1, tmp_path)
    nearest = ((rows[:, None] - start) ** 2).sum(axis=2).argmin(axis=1)
    means = [rows[nearest == centroid].mean(axis=0) for centroid in range(6)]
    np.testing.assert_allclose(found, means, atol=1e-6)
