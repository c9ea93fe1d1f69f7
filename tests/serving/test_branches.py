"""One function of several, in a graph and without one."""

import pytest
import tensorflow as tf

from serving.search.branches import Branches


def _halved(number: tf.Tensor) -> list[tf.Tensor]:
    with tf.control_dependencies([tf.debugging.assert_equal(number % 2, 0, "an odd number")]):
        return [number // 2]


BRANCHES = Branches(
    [_halved, lambda number: [3 * number + 1]], [tf.TensorSpec([], tf.int32)], [tf.TensorSpec([], tf.int32)]
)


def chosen(number: tf.Tensor) -> tf.Tensor:
    return BRANCHES(number % 2, number)[0]


@pytest.mark.parametrize("called", [chosen, tf.function(chosen)], ids=["eager", "graph"])
@pytest.mark.parametrize(("number", "expected"), [(10, 5), (7, 22)])
def test_only_the_branch_that_is_taken_runs(called, number, expected):
    assert int(called(tf.constant(number))) == expected


def test_a_branch_fails_as_its_function_does():
    with pytest.raises(tf.errors.InvalidArgumentError, match="an odd number"):
        tf.function(lambda number: BRANCHES(0, number))(tf.constant(7))
