"""Shared fixtures: one small log with known structure."""

from pathlib import Path

import pytest

from contracts.config import Config
from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts


def small_config(**sections: dict) -> Config:
    """A config whose training takes seconds."""
    tree: dict = {
        "groups": {"num_groups": 4},
        "windows": {"length": 10, "in_group_negatives": 4, "easy_negatives": 2},
        "model": {"embedding_dim": 16, "num_layers": 1, "num_experts": 2, "expert_hidden_dim": 16, "dropout": 0.1},
        "training": {"batch_size": 32, "epochs": 2, "learning_rate": 0.01, "monitor_k": 5},
        "evaluation": {"ks": [1, 5, 10], "bootstrap_samples": 50},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return Config.model_validate(tree)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    path: Path = tmp_path_factory.mktemp("trainer")
    return write_artifacts(cyclic_log(), path)
