"""Positions of ids in a long list that is searched repeatedly, for a few ids at a time."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.common.arrays import Int64
from beam_jobs.common.hashing import hash_strings


class IdIndex:
    """Sorted hashes of a list's ids: `pc.index_in` would hash the whole list again on every call."""

    def __init__(self, ids: pa.Array) -> None:
        self._ids = ids
        hashes = hash_strings(ids)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def find(self, ids: pa.Array) -> Int64:
        """[num_ids] 1-based position of each id, as in a vocabulary; 0 if it is absent."""
        hashes = hash_strings(ids)
        first, last = (np.searchsorted(self._hashes, hashes, side) for side in ("left", "right"))
        most = int((last - first).max(initial=0))  # 1 or 0, unless two ids of the list share a hash
        places = np.concatenate([np.zeros(0, np.int64), *(first[first + more < last] + more for more in range(most))])
        alike = self._order[places]
        found = pc.index_in(ids, self._ids.take(pa.array(alike)))
        return np.append(alike + 1, 0)[pc.fill_null(found, -1).to_numpy(zero_copy_only=False)]
