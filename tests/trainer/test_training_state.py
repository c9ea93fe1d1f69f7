"""What an unfinished training leaves on the disk, and what the next one makes of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.artifact import MANIFEST_NAME, ArtifactError
from contracts.layout import Workdir
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import train
from trainer.training.training_state import TrainingState


class Killed(Exception):
    pass


def test_another_runs_state_is_not_resumed(workdir: Workdir) -> None:
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    path = workdir.checkpoints("another")
    state = TrainingState(path, "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)
    state.epoch_done({"epoch": 1, "validation_recall": 0.5, "validation_ndcg": 0.2}, patience=1)
    assert TrainingState(path, "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0).epoch == 1
    assert TrainingState(path, "b", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0).epoch == 0
    assert [left.name for left in path.iterdir()] == [MANIFEST_NAME]


def test_what_a_killed_removal_leaves_is_not_resumed_and_goes_with_the_next_training(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A removal deletes in any order, and so may leave a checkpoint whose best weights are gone."""
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    path = workdir.checkpoints("half removed")
    state = TrainingState(path, "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)
    state.epoch_done({"epoch": 1, "validation_recall": 0.5, "validation_ndcg": 0.2}, patience=1)

    def die(folder: Path, **_: bool) -> None:
        next(folder.glob("*.weights.h5")).unlink()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", die)
        state.remove()
    assert not path.exists()
    assert TrainingState(path, "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0).epoch == 0
    assert list(path.parent.glob("half removed*")) == [path]


@pytest.mark.parametrize("folder", ["checkpoints", "tensorboard"])
def test_files_of_somebody_elses_are_refused_and_stay(workdir: Workdir, tmp_path: Path, folder: str) -> None:
    """A workdir may be a project that has such folders itself."""
    project = Workdir(tmp_path / "project")
    shutil.copytree(workdir.path, project.path, ignore=shutil.ignore_patterns("models", "checkpoints", "tensorboard"))
    theirs = project.path / folder / "dnc" / "run-1" / "weights"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("of weeks")
    with pytest.raises(ArtifactError, match=rf"{folder}/dnc holds run-1, which is not part .*: move or delete it"):
        train(small_config(training={"epochs": 1}), project, "dnc", "a")
    assert theirs.read_text() == "of weeks"


def test_curves_of_older_code_are_set_aside(workdir: Workdir, tmp_path: Path) -> None:
    """They have no manifest, and a killed run must go on in spite of them."""
    project = Workdir(tmp_path / "project")
    shutil.copytree(workdir.path, project.path, ignore=shutil.ignore_patterns("models", "checkpoints", "tensorboard"))
    name = "events.out.tfevents.1700000000.host.1.0.v2"
    curves = project.tensorboard / "dnc" / name
    curves.parent.mkdir(parents=True)
    curves.write_bytes(b"curves")
    train(small_config(training={"epochs": 1}), project, "dnc", "a")
    [aside] = project.tensorboard.glob("dnc-before-*")
    assert (aside / name).read_bytes() == b"curves"
    assert not curves.exists()


def test_a_kill_between_the_best_weights_and_their_checkpoint_resumes_the_best_of_its_history(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch is better, and its record was not written: the resumed run knows the first one alone."""
    model, path = TwoTowerModel(small_config(), Catalogue.load(workdir)), workdir.checkpoints("between")
    [first, *_] = model.trainable_variables

    def epoch_done(state: TrainingState, epoch: int, recall: float) -> None:
        first.assign(tf.fill(first.shape, float(epoch)))
        state.epoch_done({"epoch": epoch, "validation_recall": recall, "validation_ndcg": 0.2}, patience=9)

    def resumed() -> TrainingState:
        return TrainingState(path, "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)

    def die(_: tf.train.CheckpointManager) -> None:
        raise Killed

    epoch_done(resumed(), 1, recall=0.5)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(tf.train.CheckpointManager, "save", die)
        epoch_done(resumed(), 2, recall=0.6)
    state = resumed()
    assert state.epoch == 1
    state.restore_best()
    np.testing.assert_array_equal(first, tf.ones(first.shape))
    epoch_done(state, 2, recall=0.6)
    epoch_done(state, 3, recall=0.4)
    state.restore_best()
    np.testing.assert_array_equal(first, 2 * tf.ones(first.shape))
    assert len(list(path.glob("*.weights.h5"))) == 1


def test_what_still_gets_nearer_to_the_top_is_no_plateau(workdir: Workdir) -> None:
    """NDCG rises in the second epoch, nothing in the third. The recall chooses what is kept, and NDCG among equals."""
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    state = TrainingState(workdir.checkpoints("flat"), "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)
    for epoch, (recall, ndcg, plateaus) in enumerate([(0.5, 0.2, 0), (0.5, 0.3, 0), (0.4, 0.3, 1)], start=1):
        state.epoch_done({"epoch": epoch, "validation_recall": recall, "validation_ndcg": ndcg}, patience=1)
        assert state.plateaus == plateaus
    assert state.best_epoch["epoch"] == 2
