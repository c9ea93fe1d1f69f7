"""The state from which a killed training resumes, and the best weights so far."""

from __future__ import annotations

import json
from operator import itemgetter
from pathlib import Path
from typing import Any

import tensorflow as tf

from contracts.artifact import find_current, remove_directory, writing
from trainer.models.model_files import require_room, save_weights
from trainer.models.two_tower_model import TwoTowerModel
from trainer.training.weight_average import WeightAverage

_BEST = "best-of-epoch-"


class TrainingState:
    """Checkpoints an unfinished training after each epoch in one directory.

    A checkpoint holds the weights, their average, the optimizer, the random state and the history of epochs. The best
    average lies beside it, in a file named after its epoch, so that whenever a run is killed, the file for the resumed
    history exists. A manifest holds the fingerprint: with another one, training starts afresh.

    Attributes:
        average: running average of the weights.
        step: int64 variable, steps done.
        history: one entry per epoch.
    """

    def __init__(
        self,
        path: Path,
        fingerprint: str,
        model: TwoTowerModel,
        optimizer: tf.keras.optimizers.Optimizer,
        averaged_epochs: float,
    ):
        """Resumes from what lies at `path`, or starts there.

        Raises:
            ArtifactError: there are files at `path` that no training has written.
            OSError: there is not enough temporary disk space for the weights.
        """
        self._path, self._model = path, model
        require_room(model)  # better now than after the first epoch
        if find_current(path, fingerprint) is None:
            with writing(path, "training_state", fingerprint):
                pass
        optimizer.build(model.trainable_variables)
        self.average = WeightAverage(model.trainable_variables, averaged_epochs)
        self.step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._history_json = tf.Variable("[]", trainable=False)
        checkpoint = tf.train.Checkpoint(
            weights=model.variables,
            average=self.average,
            optimizer=optimizer,
            generator=model.generator,
            step=self.step,
            history=self._history_json,
        )
        self._manager = tf.train.CheckpointManager(checkpoint, str(path), max_to_keep=1)
        if self._manager.latest_checkpoint:
            checkpoint.restore(self._manager.latest_checkpoint).assert_consumed()
        self.history: list[dict[str, Any]] = json.loads(self._history_json.numpy())

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return self.history[-1]["epoch"] if self.history else 0

    @property
    def best_epoch(self) -> dict[str, Any]:
        """The history's entry with the best validation recall, ties broken by NDCG, once there is one."""
        return max(self.history, key=itemgetter("validation_recall", "validation_ndcg"))

    @property
    def plateaus(self) -> int:
        """How often training went back to its best weights."""
        return sum(entry.get("plateau", False) for entry in self.history)

    def evaluations_without_better(self) -> int:
        """Number of validations since the best recall, the best NDCG or the last plateau, whichever came last.

        Recall at one k can stand still for epochs while targets still move up. The validation of the weights that a
        warm start begins with (epoch 0) does not count: with a fresh optimizer, the first epoch may lose what the next
        ones more than win back.
        """
        epochs = [entry for entry in self.history if entry["epoch"] > 0]
        if not epochs:
            return 0
        best = [max(epochs, key=itemgetter(metric))["epoch"] for metric in ("validation_recall", "validation_ndcg")]
        plateaus = [entry["epoch"] for entry in self.history if entry.get("plateau")]
        return sum(entry["epoch"] > max(best + plateaus) for entry in epochs)

    def epoch_done(self, entry: dict[str, Any], patience: int) -> None:
        """Records an epoch's history entry, and the average of the weights if its validation is the best so far.

        After `patience` validations without improvement, the entry is marked as a plateau and training goes on from
        the best average. All of this is in the checkpoint, so a run resumed after a kill is where it would have been.
        """
        self.history.append(entry)
        if self.best_epoch is entry:
            with self.average.in_place():
                save_weights(self._model, self._best_weights)
        if self.evaluations_without_better() >= patience:
            entry["plateau"] = True
            self.restore_best()
            self.average.restart()
        self._history_json.assign(json.dumps(self.history))
        # Each replica has its own random state, and a checkpoint holds the first one's: all go on from that one now,
        # as they would after a kill. TensorFlow mixes in the replica's number, so their draws still differ.
        self._model.generator.reset(self._model.generator.state.numpy())
        self._manager.save()
        for weights in set(self._path.glob(f"{_BEST}*")) - {self._best_weights}:
            weights.unlink()

    def restore_best(self) -> None:
        """Loads the best epoch's average into the model."""
        if self.history:
            self._model.load_weights(str(self._best_weights))

    def remove(self) -> None:
        """Deletes the directory once training is finished."""
        remove_directory(self._path)

    @property
    def _best_weights(self) -> Path:
        return self._path / f"{_BEST}{self.best_epoch['epoch']}.weights.h5"
