"""Splits by hand and against a per-user loop."""

import numpy as np

from beam_jobs.splits import by_time, leave_one_out, time_quantile
from contracts.names import Split

TRAIN, VALIDATION, TEST = int(Split.TRAIN), int(Split.VALIDATION), int(Split.TEST)


def test_leave_one_out_by_hand() -> None:
    # user 0: t t x t x t x  -> the 4th event is the validation target, the 6th the test target (t: target level)
    # user 1: t t            -> too few, trains only
    users = np.array([0] * 7 + [1] * 2)
    target = np.array([1, 1, 0, 1, 0, 1, 0, 1, 1], bool)
    expected = [TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST, TRAIN, TRAIN]
    assert leave_one_out(users, target, min_user_events=3).tolist() == expected


def test_leave_one_out_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 60, 500))
    target = rng.random(500) < 0.5
    expected = []
    for user in np.unique(users):
        mine = target[users == user]
        places = np.flatnonzero(mine)
        split = np.full(len(mine), TRAIN)
        if len(places) >= 4:
            split[places[-2] :] = VALIDATION
            split[places[-1] :] = TEST
        expected += split.tolist()
    assert leave_one_out(users, target, min_user_events=4).tolist() == expected


def test_each_moment_opens_its_split() -> None:
    assert by_time(np.array([9, 10, 19, 20]), 10, 20).tolist() == [TRAIN, VALIDATION, VALIDATION, TEST]


def test_quantile_of_counted_seconds() -> None:
    # Events at 1, 1, 1, 5, 9: three of five lie at 1, so the 60% quantile is 1 and the 61% one is 5.
    seconds, counts = np.array([1, 5, 9]), np.array([3, 1, 1])
    assert [time_quantile(seconds, counts, q) for q in (0.6, 0.61, 1.0)] == [1, 5, 9]
