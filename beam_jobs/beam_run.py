"""Running a pipeline on the configured runner, and getting small results back from any runner."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from contracts.config import Config

logger = logging.getLogger(__name__)


@contextmanager
def pipeline(config: Config) -> Iterator[beam.Pipeline]:
    """A Beam pipeline with `config.beam`'s runner and options, run when the block ends."""
    options = PipelineOptions([f"--runner={config.beam.runner}", *config.beam.options])
    with beam.Pipeline(options=options) as built:
        yield built


class CollectSummaries(beam.PTransform):
    """Writes a PCollection of small JSON values to one file: results that any runner can hand back."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = str(path)

    def expand(self, summaries: beam.PCollection) -> beam.PCollection:
        return (
            summaries
            | "Encode" >> beam.Map(json.dumps).with_output_types(str)
            | "Gather" >> beam.combiners.ToList()
            | "Write" >> beam.ParDo(_WriteLines(self._path))
        )


class _WriteLines(beam.DoFn):
    def __init__(self, path: str) -> None:
        self._path = path

    def process(self, lines: list[str]) -> Iterable[None]:
        write_whole(Path(self._path), lambda staging: staging.write_text("\n".join(lines), encoding="utf-8"))
        return ()


def take_summaries(path: Path) -> list[Any]:
    """Reads and removes what `CollectSummaries` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    path.unlink()
    return [json.loads(line) for line in lines]


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a name beside `path`, then renames: a retried bundle never leaves half a file."""
    staging = path.with_name(f"{path.name}.staging-{uuid.uuid4().hex[:8]}")
    try:
        write(staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def write_parquet(table: pa.Table, path: Path) -> None:
    """One Parquet file, whole or absent."""
    write_whole(path, lambda staging: pq.write_table(table, staging, compression="zstd", compression_level=1))
