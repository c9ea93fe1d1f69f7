"""The popularity baseline."""

from __future__ import annotations

import numpy as np

from contracts.layout import Workdir
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.taken_items import taken_items

_USERS_PER_CHUNK = 1024


def popularity_lists(workdir: Workdir, num_items: int, users: EvaluationUsers, length: int) -> np.ndarray:
    """Each user's unseen items that the most users took in training; ties in a fixed random order.

    Counts users (those of `taken_items`), not events: a user who takes an item again and again says little about what
    others want.

    Returns:
        int32 [num_users, min(length, num_items)], item_index, 0 = absent.
    """
    length = min(length, num_items)
    tie_break = np.random.default_rng(0).permutation(num_items)
    num_takers = taken_items(workdir, num_items).getnnz(axis=0)
    ranked = np.lexsort([tie_break, -num_takers]).astype(np.int32) + np.int32(1)
    place = np.zeros(num_items + 1, np.int64)
    place[ranked] = np.arange(num_items)
    parts = []
    for start in range(0, len(users), _USERS_PER_CHUNK):
        seen = users.seen.take(np.arange(start, min(start + _USERS_PER_CHUNK, len(users))))
        # The best `length` unseen items are among the best `length + most seen`.
        width = min(num_items, length + int(seen.lengths.max(initial=0)))
        unseen = np.ones((len(seen), width), bool)
        column = place[seen.values]
        unseen[seen.row_ids()[column < width], column[column < width]] = False
        order = np.argsort(~unseen, axis=1, kind="stable")[:, :length]
        kept = np.take_along_axis(unseen, order, axis=1)
        parts.append(np.where(kept, ranked[order], 0))
    return np.concatenate(parts)
