"""The item tower against NumPy."""

from pathlib import Path

import numpy as np
import tensorflow as tf

from tests.trainer.artifacts import Log, write_artifacts
from trainer.catalogue import Catalogue
from trainer.towers.candidate_tower import CandidateTower

NUM_ITEMS, COLD = 6, 6
SPEC = {"name": "price", "kind": "numeric", "vocabulary_size": 0, "max_tokens": 1}


def catalogue_of(path: Path, cooccurrence: np.ndarray | None) -> Catalogue:
    """Item 6 is in no training sequence."""
    sequences = [np.array([1, 2, 3, 4, 5, 1, 2]), np.array([2, 4, 1, 3, 5, 4, 3])]
    prices = np.arange(NUM_ITEMS, dtype=np.float32)
    log = Log(sequences, np.zeros(NUM_ITEMS, int), item_features={"price": (SPEC, prices)}, cooccurrence=cooccurrence)
    return Catalogue.load(write_artifacts(log, path))


def tower_of(catalogue: Catalogue, use_features: bool = False, use_cooccurrence: bool = True) -> CandidateTower:
    return CandidateTower(catalogue, 4, use_features, use_cooccurrence, num_buckets=0)


def test_a_vector_is_the_sum_of_id_features_and_cooccurrence(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cooccurrence = rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    tower = tower_of(catalogue_of(tmp_path, cooccurrence), use_features=True)
    index = tf.constant([[1, 0], [COLD, 3]], tf.int64)
    tower(index)
    values = {}
    for weight in tower.trainable_variables:
        values[weight.name.removesuffix(":0")] = rng.normal(size=weight.shape).astype(np.float32)
        weight.assign(values[weight.name.removesuffix(":0")])
    padded = np.concatenate([np.zeros((1, 3), np.float32), cooccurrence])
    expected = values["id_embedding"] + padded @ values["cooccurrence_projection"]
    expected[1:] += np.arange(NUM_ITEMS)[:, None] * values["feature/price"]
    np.testing.assert_allclose(tower(index), expected[index.numpy()], atol=1e-5)


def test_training_starts_as_if_there_were_no_cooccurrence_and_only_the_projection_learns(tmp_path: Path) -> None:
    cooccurrence = np.random.default_rng(0).normal(size=(NUM_ITEMS, 3)).astype(np.float32)
    catalogue = catalogue_of(tmp_path, cooccurrence)
    tower = tower_of(catalogue)
    np.testing.assert_array_equal(tower(tf.constant([0, COLD], tf.int64))[1], np.zeros(4))
    assert {weight.name for weight in tower.trainable_variables} == {"id_embedding:0", "cooccurrence_projection:0"}
    without = tower_of(catalogue, use_cooccurrence=False)
    assert [weight.name for weight in without.weights] == ["id_embedding:0"]


def test_a_grouping_without_embeddings_gives_a_tower_without(tmp_path: Path) -> None:
    tower = tower_of(catalogue_of(tmp_path, None))
    assert [weight.name for weight in tower.weights] == ["id_embedding:0"]
