"""Trains on one device and on two logical CPU devices; a process of its own, since devices are split at the start.

python -m tests.trainer.replicas_process FOLDER BATCH_SIZE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.replicas import strategy_of
from trainer.train import load_model, train


def main(folder: Path, batch_size: int) -> None:
    assert strategy_of(2).num_replicas_in_sync == 2
    workdir = write_artifacts(cyclic_log(num_users=60, mined_negatives=2), folder)
    result = {}
    for replicas in (1, 2):
        config = small_config(
            windows={"mined_negatives": 2, "mined_from": "unread.npz"},
            model={"dropout": 0.0, "conditioning_dropout": 0.0},
            training={
                "replicas": replicas,
                "batch_size": batch_size,
                "loss": {"choice_weight": 1.0, "z_weight": 0.1, "in_group_weight": 1.0},
            },
        )
        name = f"on_{replicas}"
        train(config, workdir, name, "x")
        weights = [weight.numpy() for weight in load_model(config, workdir, name).trainable_variables]
        np.savez(folder / f"{name}.npz", *weights)
        result[name] = json.loads(workdir.model(name).history.read_text())
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
