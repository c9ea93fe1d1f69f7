"""What a request may ask for, before anything is searched."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import ServingConfig
from contracts.names import Request
from serving.controls import Controls


def test_boosts_and_listed_groups_are_each_rows_own() -> None:
    """Whoever shares the batch: a row that lists no group may be given all, beside one that lists one."""
    nan, inf, largest = float("nan"), float("inf"), np.finfo(np.float32).max
    # Of three groups: the boosts, the listed ones, and what the boosts are as numbers, 0 where a group may not answer.
    rows = [
        ([1.0, 2.0, 0.5], [-1, -1], [1.0, 2.0, 0.5]),
        ([nan, -1.0, inf], [-7, -1], [1.0, 0.0, largest]),
        ([1.0, 2.0, 0.5], [1, -1], [0.0, 2.0, 0.0]),
        ([1.0, 2.0, 0.5], [2, 0], [1.0, 0.0, 0.5]),
        ([1.0, 2.0, 0.5], [77, -1], [0.0, 0.0, 0.0]),
    ]
    boosts, groups, expected = (list(column) for column in zip(*rows, strict=True))
    request = {
        Request.NUM_CANDIDATES: tf.zeros([5], tf.int32),
        Request.ALPHA: tf.zeros([5]),
        Request.MERGE: tf.fill([5], ""),
        Request.GROUP_BOOST: tf.constant(boosts),
        Request.GROUPS: tf.constant(groups),
        Request.MAX_GROUPS: tf.zeros([5], tf.int32),
        Request.NUM_EXPLORATION: tf.zeros([5], tf.int32),
    }
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(Controls.of(request, ServingConfig(), 10, 0.0).log_boost, np.log(expected))


@pytest.mark.parametrize(("num_items", "largest"), [(1_000_000, 50), (7, 7)])
def test_a_list_is_no_longer_than_the_servable_allows(num_items: int, largest: int) -> None:
    wanted = [0, 5, 10**9, -3]
    request = {
        Request.NUM_CANDIDATES: tf.constant(wanted, tf.int32),
        Request.ALPHA: tf.fill([4], float("nan")),
        Request.MERGE: tf.fill([4], ""),
        Request.GROUP_BOOST: tf.ones([4, 2]),
        Request.GROUPS: tf.fill([4, 0], 0),
        Request.MAX_GROUPS: tf.zeros([4], tf.int32),
        Request.NUM_EXPLORATION: tf.constant([0, 99, -1, -1], tf.int32),
    }
    serving = ServingConfig(num_candidates=6, max_candidates=50)
    # Who does not say gets the share: a quarter of 50, 12.5, is 13, of 7, 1.75, is 2, and of 6, 1.5, is 2.
    for share, explored in {0.25: [0, 5, {50: 13, 7: 2}[largest], 2], 0.0: [0, 5, 0, 0]}.items():
        controls = Controls.of(request, serving, num_items, share)
        np.testing.assert_array_equal(controls.num_candidates, [6, 5, largest, 6])
        np.testing.assert_array_equal(controls.num_exploration, explored)
