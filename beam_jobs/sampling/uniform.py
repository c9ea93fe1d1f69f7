"""Uniform draws from lists of items, many at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from beam_jobs.common.arrays import Float64, Int64


class UniformLists:
    """One list of distinct items per key.

    Attributes:
        items: [total] the lists back to back; of any integer type, since the neighbours in a large catalogue add up.
        starts: [num_keys + 1] where each list starts, and where the last one ends.
    """

    def __init__(self, items: npt.NDArray[np.integer], sizes: Int64) -> None:
        """Takes lists of `sizes` [num_keys], which may be empty, back to back."""
        self.items = items
        self.starts = np.concatenate([[0], np.cumsum(sizes)])

    @property
    def sizes(self) -> Int64:
        """[num_keys] number of items in each list."""
        return np.diff(self.starts)

    def draw(self, keys: Int64, number: int, rng: np.random.Generator) -> Int64:
        """[num_keys_asked, number] items, one row per list asked for; none of these may be empty."""
        place = (rng.random((len(keys), number)) * self.sizes[keys][:, None]).astype(np.int64)
        return self.items[self.starts[keys][:, None] + place].astype(np.int64)

    def of(self, key: int) -> tuple[Int64, Float64]:
        """[size] items of a list, and their weights, all 1."""
        items = self.items[self.starts[key] : self.starts[key + 1]].astype(np.int64)
        return items, np.ones(len(items))
