"""Lloyd's algorithm as Beam jobs: one pipeline per iteration, one partial sum per block of items."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import numpy as np

from beam_jobs.common.arrays import Float32, Int64
from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_array, write_array
from beam_jobs.grouping.embedding_blocks import EmbeddingBlock
from beam_jobs.grouping.kmeans import nearest_centroid, squared_distances
from contracts.config import BeamConfig
from contracts.storage import as_path, remove

log = logging.getLogger(__name__)


_UNIT = 1 << 30
"""Sums are whole multiples of 1 / _UNIT: the result does not depend on the order of the blocks."""

_LEAST_GAIN = 1e-4  # relative fall of inertia, without which iterations end


def refine_centroids(
    config: BeamConfig, blocks: Sequence[EmbeddingBlock], start: Float32, iterations: int, scratch: Path
) -> Float32:
    """[num_groups, dim] centroids after at most `iterations` of Lloyd's algorithm over all rows that are not 0.

    Args:
        config: runner and its options.
        blocks: the rows, [num_items, dim] of at most unit length.
        start: [num_groups, dim] initial centroids, such as a fit on a sample.
        iterations: maximum; fewer if inertia no longer falls.
        scratch: directory that the workers can read and write.
    """
    current = _write_centroids(scratch, start)
    before = np.inf
    for iteration in range(iterations):
        moved = _new_file(scratch)
        [result] = collect(config, blocks, LloydStep(current, moved), scratch)
        remove(current)
        current = moved
        log.info("groups: distributed k-means, iteration %d, inertia %.6g", iteration + 1, result["inertia"])
        if result["inertia"] > before * (1 - _LEAST_GAIN):
            break
        before = result["inertia"]
    centroids: Float32 = read_array(current)
    remove(current)
    return centroids


def assign_items(config: BeamConfig, blocks: Sequence[EmbeddingBlock], centroids: Float32, scratch: Path) -> Int64:
    """[num_items] nearest centroid of each row of `blocks`; each block is a Beam element."""
    target = _write_centroids(scratch, centroids)
    paths = [as_path(path) for path in collect(config, blocks, beam.ParDo(AssignBlock(target, scratch)), scratch)]
    groups = np.concatenate([read_array(path) for path in sorted(paths)]) if paths else np.zeros(0)
    remove(target, *paths)
    return groups.astype(np.int64)


def _write_centroids(scratch: Path, centroids: Float32) -> Path:
    path = _new_file(scratch)
    write_array(path, centroids)
    return path


def _new_file(scratch: Path) -> Path:
    return scratch / f"centroids-{uuid.uuid4().hex[:8]}.npy"


class LloydStep(beam.PTransform):
    """Blocks -> a file with the mean of the rows nearest to each centroid; yields inertia.

    The means go to another file than the centroids: a runner that has lost a worker reads blocks again, even after some
    of the last step is done, and must find the same centroids.
    """

    def __init__(self, centroids: Path, means: Path) -> None:
        super().__init__()
        self._centroids = centroids
        self._means = means

    def expand(self, blocks: beam.PCollection) -> beam.PCollection:
        return (
            blocks
            | "SumBlocks" >> beam.ParDo(_SumBlock(self._centroids))
            | "SumAll" >> beam.CombineGlobally(sum).without_defaults()
            | "WriteMeans" >> beam.ParDo(_WriteMeans(self._centroids, self._means))
        )


class _SumBlock(beam.DoFn):
    """Block -> int64 [num_groups, dim + 2]: sums of the rows, their number, their squared distance."""

    def __init__(self, centroids: Path) -> None:
        self._centroids = centroids

    def process(self, block: EmbeddingBlock) -> Iterator[Int64]:
        rows, centroids = block.read(), read_array(self._centroids)
        rows = rows[rows.any(axis=1)]  # rows of 0, about whose items nothing is known, would pull centroids to 0
        groups = nearest_centroid(rows, centroids)
        distances = squared_distances(rows, centroids, groups)
        order = np.argsort(groups, kind="stable")
        present, first = np.unique(groups[order], return_index=True)
        columns = np.concatenate([rows, np.ones((len(rows), 1)), distances[:, None]], axis=1)[order]
        sums = np.zeros((len(centroids), rows.shape[1] + 2), np.int64)
        sums[present] = np.add.reduceat(np.rint(columns * _UNIT).astype(np.int64), first, axis=0)
        yield sums


class _WriteMeans(beam.DoFn):
    """Sums of all blocks -> the file of their means; yields inertia."""

    def __init__(self, centroids: Path, path: Path) -> None:
        self._centroids = centroids
        self._path = path

    def process(self, sums: Int64) -> Iterator[dict[str, float]]:
        means = sums[:, :-2] / np.maximum(sums[:, -2:-1], 1)
        # A centroid that is nearest to no row stays: `fill_empty` gives its group an item in the end.
        moved = np.where(sums[:, -2:-1] > 0, means, read_array(self._centroids)).astype(np.float32)
        write_array(self._path, moved)
        yield {"inertia": float(sums[:, -1].sum() / _UNIT)}


class AssignBlock(beam.DoFn):
    """Block -> file of its rows' groups."""

    def __init__(self, centroids: Path, folder: Path) -> None:
        self._centroids = centroids
        self._folder = folder

    def process(self, block: EmbeddingBlock) -> Iterator[str]:
        groups = nearest_centroid(block.read(), read_array(self._centroids))
        path = self._folder / f"assigned-{block.start:012d}.npy"
        write_array(path, groups.astype(np.int32))
        yield str(path)
