"""A small workdir with everything that an export needs, its model random but not degenerate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from contracts.artifact import writing
from contracts.config import Config, DataConfig, Feature, FeatureTable, ServingConfig, WindowsConfig
from contracts.layout import Model, Workdir
from serving.export import export
from tests.serving.transform_graphs import write_item_graph, write_user_graph
from tests.trainer.artifacts import Log, write_artifacts
from trainer.catalogue import Catalogue
from trainer.model import TwoTowerModel

MODEL = "per_group"
GROUP_SIZES = (1, 3, 80, 240, 620)
"""With the thresholds below: brute force, brute force, brute force, tree, tree with hashing."""
NUM_USERS = 60


@dataclass(frozen=True)
class Trained:
    config: Config
    workdir: Workdir
    catalogue: Catalogue


def make_config(**serving: object) -> Config:
    features = (Feature(name="gender", kind="categorical"), Feature(name="age", kind="numeric"))
    settings = {"brute_force_max_items": 100, "hashing_min_items": 500, "num_candidates": 30, "warmup_requests": 4}
    return Config(
        data=DataConfig(user_features=FeatureTable(path="unused.csv", id="user_id", features=features)),
        windows=WindowsConfig(length=10),
        serving=ServingConfig(**{**settings, **serving}),
    ).model_copy(update={})


def make_log() -> Log:
    rng = np.random.default_rng(5)
    group_id = rng.permutation(np.repeat(np.arange(len(GROUP_SIZES)), GROUP_SIZES))
    sequences = [rng.permutation(len(group_id))[: rng.integers(5, 25)] + 1 for _ in range(NUM_USERS)]
    gender = {"name": "gender", "kind": "categorical", "vocabulary_size": 3, "max_tokens": 1}
    age = {"name": "age", "kind": "numeric", "vocabulary_size": 0, "max_tokens": 1}
    return Log(
        sequences,
        group_id,
        user_features={
            "gender": (gender, np.arange(NUM_USERS) % 2 + 1),
            "age": (age, np.linspace(0.1, 0.9, NUM_USERS).astype(np.float32)),
        },
    )


def write_model(config: Config, workdir: Workdir, name: str, seed: int) -> None:
    """A model of random weights, large enough that groups, users and items differ."""
    model = TwoTowerModel(config, Catalogue.for_config(config, workdir))
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.25, variable.shape).astype(np.float32))
    with writing(workdir.model(name).path, Model.KIND, "test") as artifact:
        model.save_weights(str(Model(artifact.path).weights))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    workdir = write_artifacts(make_log(), tmp_path_factory.mktemp("serving") / "workdir")
    config = make_config()
    catalogue = Catalogue.for_config(config, workdir)
    scratch = tmp_path_factory.mktemp("vocabularies")
    users = [f"u{index}" for index in range(NUM_USERS)]
    write_item_graph(workdir.transform.item_graph, scratch, catalogue.item_ids.tolist())
    write_user_graph(workdir.transform.user_graph, scratch, users, ["f"] * NUM_USERS, [30.0] * NUM_USERS)
    write_model(config, workdir, MODEL, seed=1)
    return Trained(config, workdir, catalogue)


@pytest.fixture(scope="session")
def servable(trained: Trained) -> Path:
    return export(trained.config, trained.workdir, MODEL, "fingerprint")
