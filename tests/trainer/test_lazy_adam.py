import numpy as np
import pytest
import tensorflow as tf

from trainer.training.lazy_adam import LazyAdam


def test_a_step_that_reads_every_row_is_adams_and_another_leaves_rows_alone() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    lazy, dense = tf.Variable(start), tf.Variable(start)
    lazily, plainly = LazyAdam(0.1), tf.keras.optimizers.Adam(0.1, beta_2=0.98)
    for _ in range(3):
        # Down to what epsilon counts for.
        gradient = (rng.normal(size=(5, 3)) * np.logspace(0, -6, 5)[:, None]).astype(np.float32)
        # Row 2 comes in two parts, which add up.
        rows = np.array([4, 2, 0, 1, 3, 2])
        values = gradient[rows] * np.array([1, 0.25, 1, 1, 1, 0.75])[:, None]
        lazily.apply_gradients([(tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), [5, 3]), lazy)])
        plainly.apply_gradients([(tf.constant(gradient), dense)])
    np.testing.assert_allclose(lazy, dense, rtol=1e-4, atol=1e-5)
    before = lazy.numpy()
    lazily.apply_gradients([(tf.IndexedSlices(tf.ones([1, 3]), tf.constant([2]), [5, 3]), lazy)])
    assert np.flatnonzero(np.abs(lazy.numpy() - before).max(axis=1) > 0).tolist() == [2]


@pytest.mark.parametrize(("size", "last"), [(5, -0.1), (4, -0.16733)], ids=["less than half", "half"])
def test_rows_that_a_step_seldom_reads_have_no_momentum(size: int, last: float) -> None:
    """A step of the whole rate by a first gradient, and none by a second one that is 0.

    Adam takes 0.1 sqrt(1 - .98^2) / (1 - .9^2) * .36 / .56 = .06733 more: its moments are .9 * .4 and .98 * .32.
    """
    table, lazily = tf.Variable(tf.zeros([size, 1])), LazyAdam(0.1)
    for gradient, expected in ((4.0, -0.1), (0.0, last)):
        values = tf.constant([[gradient], [gradient]])
        lazily.apply_gradients([(tf.IndexedSlices(values, tf.constant([1, 3]), [size, 1]), table)])
        np.testing.assert_allclose(table.numpy()[[0, 1, 2, 3], 0], [0, expected, 0, expected], atol=1e-5)


def test_the_second_moment_of_a_seldom_row_is_that_of_its_last_thousand_reads() -> None:
    """Ever smaller gradients: a moment of fifty reads, as that of other weights, would soon be as small as they are."""
    rng, table, lazily = np.random.default_rng(0), tf.Variable(tf.zeros([5, 2])), LazyAdam(0.1)
    expected, second = np.zeros((2, 5, 2))
    for step in range(1, 31):
        rows, values = rng.permutation(5)[:2], rng.normal(size=(2, 2)) * 10 ** (-step / 10)
        second[rows] = 0.999 * second[rows] + 0.001 * values**2
        expected[rows] -= 0.1 * np.sqrt(1 - 0.999**step) * values / np.sqrt(second[rows])
        lazily.apply_gradients([(tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), [5, 2]), table)])
    np.testing.assert_allclose(table, expected, rtol=1e-3, atol=1e-4)


def test_an_update_is_not_compiled_for_each_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.compat.v2.config, "list_physical_devices", lambda kind=None: ["a GPU"])
    assert tf.keras.optimizers.Adam(0.1).jit_compile
    assert not LazyAdam(0.1).jit_compile
