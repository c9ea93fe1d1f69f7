"""What the user tower gives its encoder to read, and what it makes of the answer."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.towers.query_tower import QueryTower

AGE = {"name": "age", "kind": "numeric", "vocabulary_size": 0, "width": 1}


@pytest.mark.parametrize("user_tower", ["transformer", "gru", "mean"])
def test_a_history_is_read_after_the_start_and_the_users_features_are_added(user_tower: str, tmp_path: Path) -> None:
    log = cyclic_log(num_users=12)
    log.user_features = {"age": (AGE, np.arange(12, dtype=np.float32))}
    config = small_config(model={"user_tower": user_tower})
    tower = QueryTower(config, Catalogue.load(write_artifacts(log, tmp_path)), tf.random.Generator.from_seed(0))
    rng = np.random.default_rng(0)
    history, age = rng.normal(size=(2, 5, 16)).astype(np.float32), np.array([2.0, -1.0], np.float32)
    tower(history, {"age": age})
    weights = {}
    for weight in tower.trainable_variables:
        weight.assign(rng.normal(size=weight.shape))
        weights[weight.name.removesuffix(":0")] = weight.numpy()
    tokens = np.concatenate([np.tile(weights["start"], (2, 1, 1)), history], axis=1)
    # Embeddings are scaled as in "Attention is all you need"; 16 values, so by 4.
    encoded = tower.encoder(tf.constant(4 * tokens + weights["positions"][:6])).numpy()
    expected = encoded + age[:, None, None] * weights["feature/age"]
    np.testing.assert_allclose(tower(history, {"age": age}), expected, rtol=1e-4, atol=1e-4)
    after = tower(history, {"age": age}, num_events=tf.constant([0, 3]))
    np.testing.assert_allclose(after, expected[[0, 1], [0, 3]], rtol=1e-4, atol=1e-4)


def test_in_training_a_users_features_are_dropped_out_at_all_positions_alike(tmp_path: Path) -> None:
    log = cyclic_log(num_users=12)
    log.user_features = {"age": (AGE, np.arange(12, dtype=np.float32))}
    config = small_config(model={"dropout": 0.25})
    tower = QueryTower(config, Catalogue.load(write_artifacts(log, tmp_path)), tf.random.Generator.from_seed(0))
    history, age = np.zeros((400, 3, 16), np.float32), np.ones(400, np.float32)
    tower(history, {"age": age})
    for weight in tower.trainable_variables:
        weight.assign(tf.zeros_like(weight))  # whatever the encoder reads, it says 0
    [of_age] = [weight for weight in tower.trainable_variables if weight.name == "feature/age:0"]
    of_age.assign(tf.ones_like(of_age))
    found = tower(history, {"age": age}, training=True).numpy()
    # A dimension in four is 0, and the others are larger by 4 / 3, so that the mean stays.
    np.testing.assert_allclose(np.unique(found), [0, 4 / 3], rtol=1e-6)
    assert (found == found[:, :1]).all()
    assert np.mean(found == 0) == pytest.approx(0.25, abs=0.03)  # six standard errors of 6,400 draws
    np.testing.assert_array_equal(tower(history, {"age": age}), 1)
