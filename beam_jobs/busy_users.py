"""How many positives of one user are trained on.

Every user is measured once, but trained on as often as they have positives. Where a few (crawlers, shared accounts)
have most of the log, the model would be theirs; so of nobody much more is read than of the others, as YouTube takes one
number of examples of each user (Covington et al., RecSys 2016). docs/experiments/events.md has what it is worth.
"""

from __future__ import annotations

import math

import numpy as np

from beam_jobs.files import read_parquet
from contracts.config import WindowsConfig
from contracts.layout import ItemStatistics
from contracts.names import UserColumn

_TIMES_THE_AVERAGE = 20
_LEAST = 1000
"""Positives that anybody may have, and as which the average counts a user who has more: it is not the busy ones'."""


def max_user_positives(windows: WindowsConfig, statistics: ItemStatistics) -> int:
    """`windows.max_user_positives` or, where it is not set, 20 times what the average user has, at least 1000."""
    if windows.max_user_positives is not None:
        return windows.max_user_positives
    counts = read_parquet(statistics.users, columns=[UserColumn.TRAIN_COUNT])[UserColumn.TRAIN_COUNT].to_numpy()
    counts = counts[counts > 0]
    average = np.minimum(counts, _LEAST).mean() if len(counts) else 0.0
    return max(_LEAST, math.ceil(_TIMES_THE_AVERAGE * average))
