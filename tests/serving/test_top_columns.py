"""The best columns of each row against a stable sort by NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from serving.search.top_columns import kth_largest, top_columns, top_of_many


@pytest.mark.parametrize(
    ("width", "k"),
    [
        pytest.param(1, 1, id="one"),
        pytest.param(7, 0, id="none"),
        pytest.param(40, 40, id="all"),
        pytest.param(40, 20, id="sorted whole"),
        pytest.param(41, 20, id="the best alone"),
        pytest.param(900, 3, id="few of many"),
        pytest.param(1000, 300, id="a third"),
    ],
)
@pytest.mark.parametrize("distinct", [1, 5, 10**6], ids=["all equal", "ties", "no ties"])
@pytest.mark.parametrize("absent", [0.0, 0.5, 0.99, 1.0])
def test_as_a_stable_sort(width, k, distinct, absent):
    rng = np.random.default_rng(width)
    key = rng.integers(-distinct, distinct, [6, width]).astype(np.float32)
    key[rng.random(key.shape) < absent] = -np.inf
    key[::2, 0] = 2 * distinct  # a row's best is its first
    expected = np.argsort(-key, axis=1, kind="stable")[:, :k]
    for best in (top_columns, top_of_many) if k else (top_columns,):
        values, columns = tf.function(best)(tf.constant(key), tf.constant(k))
        assert columns.numpy().tolist() == expected.tolist()
        assert values.numpy().tolist() == np.take_along_axis(key, expected, axis=1).tolist()
    if k:
        assert kth_largest(tf.constant(key), tf.constant(k)).numpy().tolist() == values.numpy()[:, -1:].tolist()
