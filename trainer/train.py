"""Training: windows in, a model artifact out."""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.artifact import Manifest, find_current, read_manifest, writing
from contracts.config import NUM_CANDIDATES, Config
from contracts.errors import Diverged
from contracts.layout import Model, Workdir
from contracts.names import Split
from contracts.storage import write_whole
from trainer.catalogue import Catalogue
from trainer.evaluation.exploration_share import EXPLORATION_SHARE, measure_exploration_share
from trainer.evaluation.metrics import monitored_k, ndcg_of_ranks, recall_of_ranks
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.training_windows import TrainingWindows, WindowBatch
from trainer.losses.enough_negatives import require_negatives
from trainer.losses.seen_weight import seen_weight
from trainer.models.build import build_model
from trainer.models.model_files import save_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.progress import TrainingProgress
from trainer.replicas import part_of_replica, strategy_of
from trainer.training.lazy_adam import LazyAdam
from trainer.training.training_state import TrainingState
from trainer.training.warm_start import warm_start
from trainer.training.weight_average import SNAPSHOTS_PER_EPOCH

log = logging.getLogger(__name__)

_FEW_STEPS = 10

BATCH_SIGNATURE = WindowBatch(
    user_index=tf.TensorSpec([None], tf.int64),
    item_index=tf.TensorSpec([None, None], tf.int64),
    earlier_items=tf.TensorSpec([None, None], tf.int64),
    is_target=tf.TensorSpec([None, None], tf.bool),
    in_group_negatives=tf.TensorSpec([None], tf.int64),
    easy_negatives=tf.TensorSpec([None], tf.int64),
    feedback_level=tf.TensorSpec([None, None], tf.int64),
    request=tf.TensorSpec([None, None], tf.int64),
    exposed_negatives=tf.TensorSpec([None, None, None], tf.int64),
    mined_negatives=tf.TensorSpec([None, None, None], tf.int64),
)


def train(config: Config, workdir: Workdir, name: str, fingerprint: str) -> Manifest:
    """Trains a model and writes it to `workdir.model(name)`.

    Resumes from `workdir.checkpoints(name)` if a run with the same fingerprint was killed. Stops early when neither
    recall at `monitored_k` nor NDCG of the validation users improves, measured with the averaged weights; the average
    with the best recall is kept. With `training.warm_start`, the weights start from those of an earlier run, which
    count as epoch 0 (`training.keep_start`).

    Raises:
        Diverged: a loss was NaN or infinite; the message names the step and the saved batch.
        ArtifactError: an artifact that training reads is missing, or unrelated files lie where it writes.
        ValueError: the softmaxes would have nothing to compare with, there are fewer devices than `training.replicas`,
            the training split holds no windows, or the model of `training.warm_start` cannot be read.
    """
    tf.keras.utils.set_random_seed(config.seed)
    strategy = strategy_of(config.training.replicas)  # before TensorFlow runs anything, as that fixes its devices
    catalogue = Catalogue.for_config(config, workdir)
    require_negatives(config, catalogue.num_items, catalogue.groups_match_windows)
    windows = TrainingWindows(workdir, config.training.batch_size * config.windows.length, config.seed)
    if config.training.loss.negatives == "in_batch":
        catalogue = replace(catalogue, target_count=windows.target_count(catalogue.num_items))
    with strategy.scope():
        model = build_model(config, catalogue)
    started_from = warm_start(model, config, workdir, name) if config.training.warm_start else None
    final = workdir.model(name)
    with writing(final.path, Model.KIND, fingerprint) as artifact:
        trainer = _Trainer(config, workdir, name, catalogue, windows, model, strategy, fingerprint)
        trainer.run()
        artifact.counts |= {"epochs": trainer.state.epoch, "steps": int(trainer.state.step.numpy())}
        save_model(artifact, model, config, trainer.state.history)
        artifact.details |= {
            "best": trainer.state.best_epoch,
            "warm_start": started_from and asdict(started_from),
            EXPLORATION_SHARE: trainer.exploration_share(),
            "seen_weight": seen_weight(config.training.loss, catalogue),
        }
    trainer.state.remove()
    return read_manifest(final.path)


class _Trainer:
    """The loop over epochs."""

    def __init__(
        self,
        config: Config,
        workdir: Workdir,
        name: str,
        catalogue: Catalogue,
        windows: TrainingWindows,
        model: TwoTowerModel,
        strategy: tf.distribute.Strategy,
        fingerprint: str,
    ):
        self._config, self._name, self._model, self._catalogue = config.training, name, model, catalogue
        self._strategy, self._windows = strategy, windows
        self._validation = EvaluationUsers.load(workdir, Split.VALIDATION, self._config.max_validation_users)
        with strategy.scope():
            self._optimizer = LazyAdam(config.training.learning_rate, config.training.weight_decay or None)
            self.state = TrainingState(
                workdir.checkpoints(name), fingerprint, model, self._optimizer, self._config.averaged_epochs
            )
        self._k = monitored_k(self._config.monitor_k, catalogue.num_items)
        self._failed_batch = workdir.checkpoints(name) / "failed_batch.npz"
        curves = workdir.tensorboard / name
        _set_aside(curves)
        if not self.state.history or find_current(curves, fingerprint) is None:
            with writing(curves, "curves", fingerprint):  # clears another run's curves, which would overlay this one's
                pass
        self._summaries = tf.summary.create_file_writer(str(curves))
        self._step = tf.function(self._train_step, input_signature=[BATCH_SIGNATURE], autograph=False)

    def run(self) -> None:
        """Trains until the last epoch or the last plateau of the validation; keeps the best average of the weights."""
        epochs, positives = self._config.epochs, self._windows.num_positives
        progressing = TrainingProgress(self._name, self.state.epoch, epochs, positives)
        with closing(self._summaries), progressing as progress:
            if self._config.warm_start and self._config.keep_start and not self.state.history:
                # The start competes, too: training cannot end on weights that validate worse.
                start = {"epoch": 0, "seconds": 0.0, **self._validate()}
                self.state.epoch_done(start, self._config.early_stopping_patience)
            while self.state.epoch < epochs and not self._is_over():
                entry = self._run_epoch(self.state.epoch, progress)
                self.state.epoch_done(entry, self._config.early_stopping_patience)
                self._log(entry)  # only once it is stored: a run killed before that logs the epoch again
                best = self.state.best_epoch
                progress.epoch_done(f"recall@{self._k} {best['validation_recall']:.4f} (epoch {best['epoch']})")
        self.state.restore_best()

    def exploration_share(self) -> float:
        """Runs `measure_exploration_share` on the model that was kept, for lists of the default length."""
        k = monitored_k(NUM_CANDIDATES, self._catalogue.num_items)
        share = measure_exploration_share(self._model, self._catalogue, self._validation, k)
        if share:
            log.info("train %s: %.3f of a list goes to items without training events", self._name, share)
        return share

    def _is_over(self) -> bool:
        """Whether training is over: after the last plateau, or out of time."""
        spent = sum(entry["seconds"] for entry in self.state.history)
        is_spent = self._config.max_seconds is not None and spent >= self._config.max_seconds
        return is_spent or self.state.plateaus > self._config.learning_rate_drops

    def _run_epoch(self, epoch: int, progress: TrainingProgress) -> dict[str, Any]:
        started, positives, snapshots = time.monotonic(), 0, 0
        rate = self._config.learning_rate * self._config.learning_rate_drop**self.state.plateaus
        self._optimizer.learning_rate.assign(rate)
        sums: dict[str, float] = {}
        batch = None
        for batch in self._windows.epoch(epoch):
            terms = {key: float(value) for key, value in self._step(batch).items()}
            self._require_finite(terms, batch)
            count = int(batch.is_target.sum())
            positives += count
            # The last snapshot is taken at the end of the epoch, however few its steps.
            due = min(positives * SNAPSHOTS_PER_EPOCH // self._windows.num_positives, SNAPSHOTS_PER_EPOCH - 1)
            self._take_snapshots(due - snapshots)
            snapshots = due
            for key, value in terms.items():
                sums[key] = sums.get(key, 0.0) + value * count
            progress.update(sums["loss"] / positives, positives, time.monotonic() - started)
        if batch is None:
            raise ValueError("the training split has no windows: use a log of users with at least two events")
        self._take_snapshots(SNAPSHOTS_PER_EPOCH - snapshots)
        is_first = epoch == 0 and self._config.warm_start is None  # a warm start has learnt most before
        if is_first and (steps := int(self.state.step.numpy())) < _FEW_STEPS:
            log.warning(
                "train %s: an epoch has only %d step(s), too few to learn much before a plateau: lower "
                "training.batch_size=%d", self._name, steps, self._config.batch_size,
            )  # fmt: skip
        seconds = time.monotonic() - started
        entry: dict[str, Any] = {key: value / positives for key, value in sums.items()}
        entry |= {"epoch": epoch + 1, "seconds": seconds, "positives_per_second": positives / seconds}
        entry["learning_rate"] = rate
        return entry | self._validate()

    def _take_snapshots(self, number: int) -> None:
        """Takes `number` snapshots: an epoch of few steps has as many as any other, some of the same weights."""
        for _ in range(number):
            self.state.average.add()

    def _train_step(self, batch: WindowBatch) -> dict[str, tf.Tensor]:
        """Runs one step on all replicas: each computes its part of the batch, then all apply the same update."""
        parts, gradients = self._strategy.run(self._gradients, args=(batch,))
        terms = {name: self._strategy.reduce(tf.distribute.ReduceOp.SUM, part, None) for name, part in parts.items()}

        def update() -> tf.Tensor:
            self._strategy.run(self._apply, args=(gradients,))
            return self.state.step.assign_add(1)

        # A step whose loss is not finite changes nothing, so the state saved with it is usable.
        tf.cond(tf.math.is_finite(terms["loss"]), update, lambda: self.state.step)
        return terms

    def _gradients(self, batch: WindowBatch) -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        """A replica's terms, and the gradients of the trainable variables that the loss depends on."""
        with tf.GradientTape() as tape:
            terms = self._model.loss_terms(part_of_replica(batch), training=True)
        gradients = tape.gradient(terms["loss"], self._model.trainable_variables)
        # Recorded while a step is traced; `_apply` is traced afterwards.
        self._is_trained = [gradient is not None for gradient in gradients]
        return terms, [gradient for gradient in gradients if gradient is not None]

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        trained = itertools.compress(self._model.trainable_variables, self._is_trained)
        self._optimizer.apply_gradients(list(zip(gradients, trained, strict=True)))

    def _validate(self) -> dict[str, float]:
        targets = self._validation.targets
        with self.state.average.in_place():
            ranks = ExactRanking(self._model, self._catalogue, self._validation).target_ranks()
        return {
            "validation_recall": float(recall_of_ranks(ranks, targets, self._k).mean()),
            "validation_ndcg": float(ndcg_of_ranks(ranks, targets).mean()),
        }

    def _require_finite(self, terms: dict[str, float], batch: WindowBatch) -> None:
        if np.isfinite(terms["loss"]):
            return
        path: Path = self._failed_batch
        write_whole(path, lambda staging: _save(staging, batch))
        bad = {key: value for key, value in terms.items() if not np.isfinite(value)}
        raise Diverged(
            f"train {self._name}: the loss of step {int(self.state.step.numpy()) + 1} is not finite ({bad}); "
            f"the batch is saved in {path}. Lower training.learning_rate, or look for extreme numeric features"
        )

    def _log(self, entry: dict[str, Any]) -> None:
        with self._summaries.as_default():
            for key, value in entry.items():
                if key != "epoch":
                    tf.summary.scalar(key, value, step=entry["epoch"])
        self._summaries.flush()


def _save(path: Path, batch: WindowBatch) -> None:
    with path.open("wb") as stream:  # given a name, NumPy would append .npz
        np.savez_compressed(stream, **batch._asdict())


def _set_aside(curves: Path) -> None:
    """Renames a directory of nothing but TensorBoard's files without a manifest, as code before December 2026 left."""
    found = [path.name for path in curves.iterdir()] if curves.is_dir() else []
    if found and all(name.startswith("events.out.tfevents.") for name in found):
        aside = curves.with_name(f"{curves.name}-before-{time.time_ns()}")
        curves.rename(aside)
        log.info("train: the curves of an earlier training are now in %s", aside)
