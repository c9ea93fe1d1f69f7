"""How many positives of one user are trained on.

Evaluation counts every user once, training as often as they have positives. If a few users (crawlers, shared
accounts) have most of the log, they decide what is learnt, so the number of positives per user is capped. YouTube
similarly takes the same number of examples from each user (Covington et al., RecSys 2016). docs/experiments/events.md
shows the effect.
"""

from __future__ import annotations

import math

import numpy as np

from beam_jobs.common.files import read_parquet
from contracts.config import WindowsConfig
from contracts.layout import ItemStatistics
from contracts.names import UserColumn

_TIMES_THE_AVERAGE = 20
_LEAST = 1000
"""Positives that any user may have. The average counts users with more as if they had this many, so that busy users do
not raise it."""


def max_user_positives(windows: WindowsConfig, statistics: ItemStatistics) -> int:
    """`windows.max_user_positives` or, if it is not set, 20 times what the average user has, at least 1000."""
    if windows.max_user_positives is not None:
        return windows.max_user_positives
    counts = read_parquet(statistics.users, columns=[UserColumn.TRAIN_COUNT])[UserColumn.TRAIN_COUNT].to_numpy()
    counts = counts[counts > 0]
    average = np.minimum(counts, _LEAST).mean() if len(counts) else 0.0
    return max(_LEAST, math.ceil(_TIMES_THE_AVERAGE * average))
