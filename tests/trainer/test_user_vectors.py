"""The vectors that a step trains, where some positives train the shared one."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import TrainingWindows
from trainer.layers.multiply_conditioning import MultiplyConditioning
from trainer.models.two_tower_model import TwoTowerModel
from trainer.towers.user_vectors import ConditionedVectors

GROUPS, DIM = 3, 4


@pytest.mark.parametrize("kept", [None, [True, False, True, False, False]], ids=["all", "some dropped"])
def test_dropped_positives_have_the_shared_vector_for_every_group(kept: list[bool] | None) -> None:
    rng = np.random.default_rng(0)
    shared, scale = rng.normal(size=(5, DIM)).astype(np.float32), rng.normal(size=(GROUPS, DIM)).astype(np.float32)
    layer = MultiplyConditioning(GROUPS, DIM)
    layer.set_weights([scale])
    vectors = ConditionedVectors(tf.constant(shared), layer, None if kept is None else tf.constant(kept))
    expected = shared[:, None] * scale
    expected[~np.array(kept or [True] * 5)] = shared[~np.array(kept or [True] * 5), None]
    np.testing.assert_allclose(vectors.all_groups(), expected, rtol=1e-6)
    group = np.array([2, 0, 1, 1, 0])
    np.testing.assert_allclose(vectors.own_group(tf.constant(group)), expected[np.arange(5), group], rtol=1e-6)


def test_conditioning_dropout_is_the_share_of_positives_that_train_the_shared_vector(workdir: Workdir) -> None:
    model = TwoTowerModel(small_config(model={"conditioning_dropout": 0.8}), Catalogue.load(workdir))
    batch = next(TrainingWindows(workdir, 1000, 0).epoch(0))
    place = tf.where(batch.is_target)
    items = model.candidate_embeddings(batch.item_index)
    group, number = tf.zeros([len(place)], tf.int32), 0
    for _ in range(20):
        number += len(model._vectors(batch, items, place, training=True).conditioned(group)[0])
    # Four standard errors.
    assert number / (20 * len(place)) == pytest.approx(0.2, abs=4 * 0.4 / np.sqrt(20 * len(place)))
    assert len(model._vectors(batch, items, place, training=False).conditioned(group)[0]) == len(place)
