"""What a request may ask for, before anything is searched."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import ServingConfig
from contracts.names import Request
from serving.graph.controls import Controls


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


def answering(num_groups: int, groups: np.ndarray) -> np.ndarray:
    """bool [len(groups), num_groups]: whether a group may answer, where all are boosted by 1."""
    rows = len(groups)
    request = {
        Request.NUM_CANDIDATES: tf.zeros([rows], tf.int32),
        Request.ALPHA: tf.zeros([rows]),
        Request.MERGE: tf.fill([rows], ""),
        Request.GROUP_BOOST: tf.ones([rows, num_groups]),
        Request.GROUPS: tf.constant(groups, tf.int32, groups.shape),
        Request.MAX_GROUPS: tf.zeros([rows], tf.int32),
        Request.NUM_EXPLORATION: tf.zeros([rows], tf.int32),
    }
    log_boost = Controls.of(request, ServingConfig(), 10, 0.0).log_boost.numpy()
    assert np.isin(log_boost, [0.0, -np.inf]).all()
    return log_boost == 0.0


@pytest.mark.parametrize("seed", range(40))
def test_a_group_may_answer_if_it_is_listed_or_none_is(seed: int) -> None:
    """By Python's sets: repeated groups, unknown ones and the extremes of int32, rows of padding, no rows, no lists."""
    rng = np.random.default_rng(seed)
    rows, num_groups, length = rng.integers(0, 5), rng.integers(1, 8), rng.integers(0, 7)
    values = [-(2**31), -7, *[-1] * 5, *range(num_groups), num_groups, num_groups + 1, 2**31 - 1]
    groups = rng.choice(values, (rows, length))
    expected = []
    for row in groups.tolist():
        named = {group for group in row if group >= 0}
        expected.append([group in named or not named for group in range(num_groups)])
    np.testing.assert_array_equal(answering(num_groups, groups), np.reshape(expected, [rows, num_groups]))


def test_of_a_long_list_of_groups_nothing_is_larger_than_itself() -> None:
    """A request may hold 2**20. Compared with each of 1,000 groups, they took 16 s and 1 GB."""
    length, num_groups = 2**20, 1000
    specs = {
        Request.NUM_CANDIDATES: tf.TensorSpec([1], tf.int32),
        Request.ALPHA: tf.TensorSpec([1], tf.float32),
        Request.MERGE: tf.TensorSpec([1], tf.string),
        Request.GROUP_BOOST: tf.TensorSpec([1, num_groups], tf.float32),
        Request.GROUPS: tf.TensorSpec([1, length], tf.int32),
        Request.MAX_GROUPS: tf.TensorSpec([1], tf.int32),
        Request.NUM_EXPLORATION: tf.TensorSpec([1], tf.int32),
    }
    function = tf.function(lambda request: Controls.of(request, ServingConfig(), 10, 0.0).log_boost, autograph=False)
    graph = function.get_concrete_function(specs).graph
    sizes = [output.shape.num_elements() for operation in graph.get_operations() for output in operation.outputs]
    assert None not in sizes
    assert max(sizes) == length


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
