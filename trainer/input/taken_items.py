"""Which items the training users took."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from contracts.layout import Workdir
from trainer.input.training_windows import training_events


def taken_items(workdir: Workdir, num_items: int) -> sp.csr_matrix:
    """float32 [num_users, num_items], 1 if a user took an item, however often.

    A user with a single event in training has no window and is left out. Of a user with more positives than
    `windows.max_user_positives`, such as a crawler, only the newest count.
    """
    users, items = [], []
    for events in training_events(workdir):
        users.append(events.user_index[events.is_taken])
        items.append(events.item_index[events.is_taken])
    user, item = np.concatenate(users), np.concatenate(items)
    _, row = np.unique(user, return_inverse=True)
    taken = sp.csr_matrix((np.ones(len(row), np.float32), (row, item - 1)), shape=(int(row.max()) + 1, num_items))
    taken.data[:] = 1.0  # an item that a user took twice, or that two windows hold, counts once
    return taken
