"""The popularity baseline."""

from __future__ import annotations

import numpy as np

from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers

_USERS_PER_CHUNK = 1024


def popularity_lists(catalogue: Catalogue, users: EvaluationUsers, length: int) -> np.ndarray:
    """Each user's unseen items of the highest train_count; ties in a fixed random order.

    Returns:
        int32 [num_users, min(length, num_items)], item_index, 0 = absent.
    """
    length = min(length, catalogue.num_items)
    tie_break = np.random.default_rng(0).permutation(catalogue.num_items)
    ranked = np.lexsort([tie_break, -catalogue.train_count[1:]]).astype(np.int32) + np.int32(1)
    place = np.zeros(catalogue.num_items + 1, np.int64)
    place[ranked] = np.arange(catalogue.num_items)
    parts = []
    for start in range(0, len(users), _USERS_PER_CHUNK):
        seen = users.seen.take(np.arange(start, min(start + _USERS_PER_CHUNK, len(users))))
        # The best `length` unseen items are among the best `length + most seen`.
        width = min(catalogue.num_items, length + int(seen.lengths.max(initial=0)))
        unseen = np.ones((len(seen), width), bool)
        column = place[seen.values]
        unseen[seen.row_ids()[column < width], column[column < width]] = False
        order = np.argsort(~unseen, axis=1, kind="stable")[:, :length]
        kept = np.take_along_axis(unseen, order, axis=1)
        parts.append(np.where(kept, ranked[order], 0))
    return np.concatenate(parts)
