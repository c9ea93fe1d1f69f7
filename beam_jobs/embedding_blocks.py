"""Rows of an .npy file as Beam elements: a worker maps the file and reads its block, nothing is shipped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

ROWS_PER_BLOCK = 1 << 17


@dataclass(frozen=True)
class EmbeddingBlock:
    """Rows `start` to `stop - 1` of a file."""

    path: str
    start: int
    stop: int

    def read(self) -> npt.NDArray[np.float32]:
        """[stop - start, dim]."""
        return np.asarray(np.load(self.path, mmap_mode="r")[self.start : self.stop])


def blocks_of(path: str) -> list[EmbeddingBlock]:
    """All rows of a file, in order."""
    rows = len(np.load(path, mmap_mode="r"))
    return [EmbeddingBlock(path, start, min(start + ROWS_PER_BLOCK, rows)) for start in range(0, rows, ROWS_PER_BLOCK)]
