"""What a request may ask for, before anything is searched."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import ServingConfig
from contracts.names import Request
from serving.controls import Controls


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
