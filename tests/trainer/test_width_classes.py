from itertools import combinations

import numpy as np
import pytest
import tensorflow as tf

from benchmarks.training import batches, catalogue
from contracts.config import Config
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.losses.width_classes import width_classes
from trainer.models.build import build_model


def cost(width: np.ndarray, positives: np.ndarray, classes: list[np.ndarray]) -> float:
    """Rows, four of them padding of each group, times the width of the class, and 250,000 for each class."""
    return sum((3_000 * positives[g].sum() + 4 * len(g)) * width[g].max() + 250_000 for g in classes)


@pytest.mark.parametrize(
    ("exponent", "widest", "is_shared"),
    [(0.0, 4_000, True), (1.0, 4_000, True), (2.5, 4_000, True), (1.0, 20_000, False)],
)
def test_no_other_split_costs_less(exponent: float, widest: float, is_shared: bool) -> None:
    """Against all splits of ten groups in the order of their width; that of even groups is no split.

    Where all positives are of the widest group, the padding of the others alone is worth a class.
    """
    rng = np.random.default_rng(0)
    width = rng.permutation(widest / (1 + np.arange(10)) ** exponent)
    positives = rng.dirichlet(np.full(10, 0.5)) if is_shared else (width == widest).astype(float)
    found = width_classes(width, positives)
    order = np.argsort(-width, kind="stable")
    splits = [np.split(order, cuts) for number in range(10) for cuts in combinations(range(1, 10), number)]
    assert cost(width, positives, found) == pytest.approx(min(cost(width, positives, split) for split in splits))
    assert sorted(np.concatenate(found)) == list(range(10))
    assert (len(found) > 1) == (exponent > 0)


def loss_and_gradients(config: Config, items: Catalogue, groups: int) -> tuple[int, float, list[np.ndarray]]:
    """Of a new model of always the same weights and the positives of the first groups, and how many classes it has."""
    tf.keras.utils.set_random_seed(0)
    model = build_model(config, items)
    batch = batches(items, 1, 1)[0]
    batch = batch._replace(is_target=batch.is_target & (items.group_id[batch.item_index] < groups))
    with tf.GradientTape() as tape:
        loss = model.loss_terms(batch, training=True)["loss"]
    gradients = [tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, model.trainable_variables)]
    return len(model._softmax._pools.width_classes), float(loss), gradients


@pytest.mark.parametrize("groups", [1, 40], ids=["positives of the widest class alone", "positives of all"])
@pytest.mark.parametrize("exact_softmax_max_items", [0, 3_000])
def test_classes_change_no_loss_and_no_gradient(
    exact_softmax_max_items: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of forty groups, the first with a third of all items and the last with none, against a layout of one width."""
    items = catalogue(3_000, 40)
    share = 1 / (1 + np.arange(39)) ** 1.2
    items.group_id[1:] = np.random.default_rng(0).choice(39, 3_000, p=share / share.sum())
    config = small_config(
        groups={"num_groups": 40},
        windows={"length": 50},
        training={"loss": {"exact_softmax_max_items": exact_softmax_max_items}},
        model={"dropout": 0.0, "conditioning_dropout": 0.0},
    )
    results = []
    for together in (False, True):
        if together:
            monkeypatch.setattr("trainer.losses.negative_pools.width_classes", lambda width, _: [np.arange(len(width))])
        results.append(loss_and_gradients(config, items, groups))
    (classes, loss, gradients), (_, expected, of_one_width) = results
    assert classes > 1
    assert loss == pytest.approx(expected, rel=1e-6)
    for found, wanted in zip(gradients, of_one_width, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
