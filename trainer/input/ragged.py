"""Rows of different lengths. Pure NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values[splits[r]:splits[r + 1]]` is row r."""

    values: np.ndarray
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.splits)

    def take(self, rows: np.ndarray) -> Ragged:
        """The given rows, int [n] counted from 0, in that order."""
        starts = self.splits[rows]
        lengths = self.splits[rows + 1] - starts  # not `self.lengths`, of all rows: a batch has few of a chunk's
        splits = np.concatenate([[0], np.cumsum(lengths)])
        offset = np.repeat(starts - splits[:-1], lengths)
        return Ragged(self.values[np.arange(splits[-1]) + offset], splits)

    def padded(self) -> np.ndarray:
        """[rows, longest], left-aligned, 0 to the right."""
        result = np.zeros((len(self), int(self.lengths.max(initial=0))), self.values.dtype)
        result[np.arange(result.shape[1]) < self.lengths[:, None]] = self.values
        return result

    def row_ids(self) -> np.ndarray:
        """[number of values], the row of each value."""
        return np.repeat(np.arange(len(self)), self.lengths)
