import numpy as np
import pytest
import tensorflow as tf

from trainer.losses.hierarchy_loss import PADDING_LEVEL, hierarchy_loss

# A purchase (2), padding, an exposure (0), a click (1), a random item (-1).
LOGITS, LEVELS = [2.0, 9.0, 0.5, 1.0, -1.0], [2, PADDING_LEVEL, 0, 1, -1]


@pytest.mark.parametrize("kind", ["softmax", "pairwise"])
def test_levels_are_compared_downwards_only(kind: str) -> None:
    """Anchors are the purchase, above exposure, click and random item, and the exposure, above the random one."""
    loss = hierarchy_loss(tf.constant([LOGITS]), tf.constant([LEVELS]), 3, kind)
    if kind == "softmax":
        purchase = np.log(np.exp([2, 0.5, 1, -1]).sum()) - 2
        exposure = np.log(np.exp([0.5, -1]).sum()) - 0.5
    else:
        purchase = np.mean([np.log1p(np.exp(other - 2)) for other in (0.5, 1, -1)])
        exposure = np.log1p(np.exp(-1 - 0.5))
    assert float(loss) == pytest.approx((purchase + exposure) / 2, rel=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "pairwise"])
def test_nothing_below_adds_nothing_and_no_nan(kind: str) -> None:
    logits = tf.Variable([[3.0, 4.0]])
    with tf.GradientTape() as tape:
        loss = hierarchy_loss(logits, tf.constant([[1, 1]]), 1, kind)
    assert float(loss) == 0
    assert not np.isnan(tape.gradient(loss, logits)).any()


@pytest.mark.parametrize("kind", ["softmax", "pairwise"])
def test_the_mean_is_over_anchors_that_have_something_below_them(kind: str) -> None:
    """Of a click (1) and an exposure (0), nothing is below the exposure."""
    loss = hierarchy_loss(tf.constant([[3.0, 2.0]]), tf.constant([[1, 0]]), 2, kind)
    assert float(loss) == pytest.approx(np.log1p(np.exp(2 - 3)), rel=1e-5)
