"""Trains on one device, on two logical CPU devices, and on these with a break.

A process of its own, since devices are split at the start:

python -m tests.trainer.replicas_process FOLDER BATCH_SIZE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from contracts.config import Config
from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.models.model_files import load_model
from trainer.replicas import strategy_of
from trainer.train import train
from trainer.training.training_state import TrainingState


def main(folder: Path, batch_size: int) -> None:
    assert strategy_of(2).num_replicas_in_sync == 2
    workdir = write_artifacts(cyclic_log(num_users=60, mined_negatives=2), folder)
    result = {}
    for name in ("on_1", "on_2", "on_2_resumed", "on_2_dropping", "on_2_dropping_resumed"):
        replicas, dropout = (1 if "1" in name else 2), (0.3 if "dropping" in name else 0.0)
        config = small_config(
            windows={"mined_negatives": 2, "mined_from": "unread.npz"},
            model={"dropout": dropout, "conditioning_dropout": dropout},
            training={
                "replicas": replicas,
                "batch_size": batch_size,
                "loss": {"choice_weight": 1.0, "z_weight": 0.1, "in_group_weight": 1.0},
            },
        )
        if name.endswith("resumed"):
            die_after_the_first_epoch(config, workdir, name)
        train(config, workdir, name, "x")
        weights = [weight.numpy() for weight in load_model(config, workdir, name).trainable_variables]
        np.savez(folder / f"{name}.npz", *weights)
        result[name] = json.loads(workdir.model(name).history.read_text())
    print(json.dumps(result))


def die_after_the_first_epoch(config: Config, workdir: Workdir, name: str) -> None:
    save = TrainingState.epoch_done

    def killed(self: TrainingState, *arguments: Any) -> None:
        save(self, *arguments)
        raise KeyboardInterrupt

    TrainingState.epoch_done = killed
    try:
        train(config, workdir, name, "x")
    except KeyboardInterrupt:
        assert workdir.checkpoints(name).exists()
    TrainingState.epoch_done = save


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
