"""What is validated and shipped is the average of the weights along training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.artifact import read_manifest
from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import train
from trainer.training.training_state import TrainingState
from trainer.training.weight_average import SNAPSHOTS_PER_EPOCH, WeightAverage


@pytest.fixture
def weights() -> list[tf.Variable]:
    return [tf.Variable([[1.0, 2.0]]), tf.Variable(3.0)]


def set_to(weights: list[tf.Variable], value: float) -> None:
    for weight in weights:
        weight.assign(tf.fill(weight.shape, value))


def averaged(average: WeightAverage, weights: list[tf.Variable]) -> float:
    with average.in_place():
        return float(weights[1].numpy())


def test_first_snapshots_weigh_alike_and_then_old_ones_fade(weights: list[tf.Variable]) -> None:
    average = WeightAverage(weights, epochs=3 / SNAPSHOTS_PER_EPOCH)  # three snapshots long: a decay of 2/3
    seen = []
    for value in (6.0, 0.0, 3.0, 9.0):
        set_to(weights, value)
        average.add()
        seen.append(averaged(average, weights))
    # 6; (6 + 0) / 2; (6 + 0 + 3) / 3; 2/3 of that and 1/3 of 9
    np.testing.assert_allclose(seen, [6, 3, 3, 5], rtol=1e-6)


def test_training_goes_on_from_the_weights_and_not_from_their_average(weights: list[tf.Variable]) -> None:
    average = WeightAverage(weights, epochs=10)
    for value in (1.0, 5.0):
        set_to(weights, value)
        average.add()
    with pytest.raises(RuntimeError), average.in_place():
        np.testing.assert_allclose(weights[0].numpy(), [[3, 3]])
        raise RuntimeError
    np.testing.assert_allclose(weights[0].numpy(), [[5, 5]])
    assert averaged(average, weights) == pytest.approx(3)


def test_without_snapshots_the_weights_are_their_own_average(weights: list[tf.Variable]) -> None:
    average = WeightAverage(weights, epochs=10)
    assert averaged(average, weights) == 3
    average.add()
    average.restart()
    set_to(weights, 7.0)
    assert averaged(average, weights) == 7
    average.add()  # nothing of the first snapshot is left
    assert averaged(average, weights) == 7


def test_of_no_length_it_is_the_last_snapshot(weights: list[tf.Variable]) -> None:
    average = WeightAverage(weights, epochs=0)
    for value in (1.0, 5.0):
        set_to(weights, value)
        average.add()
    assert averaged(average, weights) == 5


def test_a_plateau_goes_back_to_the_best_average_and_averages_anew(workdir: Workdir, tmp_path: Path) -> None:
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    state = TrainingState(tmp_path / "state", "fingerprint", model, tf.keras.optimizers.Adam(), averaged_epochs=100)
    for epoch, (value, recall) in enumerate([(1.0, 0.5), (3.0, 0.4)], start=1):
        set_to(model.trainable_variables, value)
        state.average.add()
        state.epoch_done({"epoch": epoch, "validation_recall": recall, "validation_ndcg": recall}, patience=1)
    assert state.plateaus == 1
    assert all((weight.numpy() == 1).all() for weight in model.trainable_variables)
    set_to(model.trainable_variables, 5.0)
    state.average.add()
    with state.average.in_place():
        assert all((weight.numpy() == 5).all() for weight in model.trainable_variables)


@pytest.mark.parametrize(("batch_size", "distinct"), [(1, 3 * SNAPSHOTS_PER_EPOCH), (100_000, 3)])
def test_a_trained_model_is_the_average_of_its_best_epoch(
    batch_size: int, distinct: int, workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an epoch of many steps, snapshots are of its parts; of one of a single step, all are alike."""
    taken: list[list[np.ndarray]] = []
    add = WeightAverage.add

    def recorded(self: WeightAverage) -> None:
        taken.append([weight.numpy() for weight in self._weights])
        add(self)

    monkeypatch.setattr(WeightAverage, "add", recorded)
    settings = {"epochs": 3, "early_stopping_patience": 9, "averaged_epochs": 100}
    config = small_config(training={**settings, "batch_size": batch_size})
    train(config, workdir, "averaged", "a")
    assert len(taken) == 3 * SNAPSHOTS_PER_EPOCH
    assert len({snapshot[0].tobytes() for snapshot in taken}) == distinct
    best = read_manifest(workdir.model("averaged").path).details["best"]["epoch"]
    shipped = load_model(config, workdir, "averaged").trainable_variables
    for weight, snapshots in zip(shipped, zip(*taken[: best * SNAPSHOTS_PER_EPOCH], strict=True), strict=True):
        np.testing.assert_allclose(weight.numpy(), np.mean(snapshots, axis=0), atol=1e-5)
