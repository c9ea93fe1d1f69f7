"""Rows of an .npy file as Beam elements: a worker maps the file and reads its block, no data are shipped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from beam_jobs.common.arrays import Float32
from contracts.storage import local

ROWS_PER_BLOCK = 1 << 17


@dataclass(frozen=True)
class EmbeddingBlock:
    """Rows `start` to `stop - 1` of a file."""

    path: Path
    start: int
    stop: int

    def read(self) -> Float32:
        """[stop - start, dim]."""
        return np.asarray(np.load(local(self.path), mmap_mode="r")[self.start : self.stop])


def blocks_of(path: Path, rows: int) -> list[EmbeddingBlock]:
    """All of a file's rows, in order."""
    return [EmbeddingBlock(path, start, min(start + ROWS_PER_BLOCK, rows)) for start in range(0, rows, ROWS_PER_BLOCK)]
