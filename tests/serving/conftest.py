"""A small workdir with everything that an export needs, its model random but not degenerate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.artifact import writing
from contracts.config import Config, DataConfig, Feature, FeatureTable, ModelConfig, ServingConfig, WindowsConfig
from contracts.config.request_features import RequestFeature
from contracts.layout import Model, Workdir
from serving.export import export
from serving.versions import admit, exported_versions, version_of
from tests.serving.transform_graphs import CATEGORIES, GENDERS, MAX_TAGS, TAGS, write_item_graph, write_user_graph
from tests.trainer.artifacts import Log, write_artifacts
from trainer.catalogue import Catalogue
from trainer.evaluation.exploration_share import EXPLORATION_SHARE
from trainer.models.build import build_model

MODEL = "per_group"
GROUP_SIZES = (1, 3, 80, 240, 620)
"""With the threshold below, the last two have a tree."""
NUM_USERS = 60
TOLD = {"page": ["home", "search", "item"], "device": ["phone", "web"]}
"""Request features and their values."""
TUNED_RECALL = 0.999
"""Tuned above what tests assert: builds differ from machine to machine, and a few lists are a small sample."""


@dataclass(frozen=True)
class Trained:
    config: Config
    workdir: Workdir
    catalogue: Catalogue


def make_config(model: dict[str, Any] | None = None, **serving: object) -> Config:
    features = (
        Feature(name="gender", kind="categorical"),
        Feature(name="tags", kind="tokens", max_tokens=MAX_TAGS),
        Feature(name="age", kind="numeric"),
    )
    items = FeatureTable(path="unused.csv", id="item_id", features=(Feature(name="category", kind="categorical"),))
    settings = {"brute_force_max_items": 100, "num_candidates": 30, "warmup_requests": 4}
    return Config(
        data=DataConfig(
            request_features=tuple(RequestFeature(name=name, values=values) for name, values in TOLD.items()),
            user_features=FeatureTable(path="unused.csv", id="user_id", features=features),
            item_features=items,
        ),
        windows=WindowsConfig(length=10),
        model=ModelConfig(**(model or {})),
        serving=ServingConfig(**{**settings, **serving}),
    )


def make_log() -> Log:
    rng = np.random.default_rng(5)
    group_id = rng.permutation(np.repeat(np.arange(len(GROUP_SIZES)), GROUP_SIZES))
    sequences = [rng.permutation(len(group_id))[: rng.integers(5, 25)] + 1 for _ in range(NUM_USERS)]
    users = np.arange(NUM_USERS)
    num_codes = math.prod(len(values) + 1 for values in TOLD.values())
    return Log(
        sequences,
        group_id,
        requests=[rng.integers(0, num_codes, len(sequence)) for sequence in sequences],
        request_features=TOLD,
        item_features={"category": (spec("category", "categorical", CATEGORIES), rng.integers(0, 4, len(group_id)))},
        user_features={
            "gender": (spec("gender", "categorical", GENDERS), users % 2 + 1),
            "tags": (spec("tags", "tokens", TAGS, MAX_TAGS), np.stack([users % 3 + 1, users % 2 * 3], axis=1)),
            "age": (spec("age", "numeric"), np.linspace(0.1, 0.9, NUM_USERS).astype(np.float32)),
        },
    )


def spec(name: str, kind: str, values: Sequence[str] = (), width: int = 1) -> dict[str, Any]:
    return {"name": name, "kind": kind, "vocabulary_size": len(values), "width": width}


def write_model(config: Config, workdir: Workdir, name: str, seed: int, exploration_share: float = 0.0) -> None:
    """A model of random weights, large enough that groups, users and items differ."""
    model = build_model(config, Catalogue.for_config(config, workdir))
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.25, variable.shape).astype(np.float32))
    with writing(workdir.model(name).path, Model.KIND, "test") as artifact:
        model.save_weights(str(Model(artifact.path).weights))
        artifact.details[EXPLORATION_SHARE] = exploration_share


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    workdir = write_artifacts(make_log(), tmp_path_factory.mktemp("serving") / "workdir")
    config = make_config()
    catalogue = Catalogue.for_config(config, workdir)
    scratch = tmp_path_factory.mktemp("vocabularies")
    users = [f"u{index}" for index in range(NUM_USERS)]
    write_item_graph(workdir.transform.item_graph, scratch, catalogue.item_ids.tolist())
    write_user_graph(workdir.transform.user_graph, scratch, users)
    write_model(config, workdir, MODEL, seed=1)
    return Trained(config, workdir, catalogue)


@pytest.fixture(scope="session")
def servables(trained: Trained) -> dict[str, Path]:
    """Index -> version directory."""
    exported = export(make_config(recall_target=TUNED_RECALL), trained.workdir, MODEL, "fingerprint")
    admit(trained.config, trained.workdir, exported)
    return exported_versions(trained.config, trained.workdir, version_of(exported))


@pytest.fixture(scope="session")
def servable(servables: dict[str, Path]) -> Path:
    return servables["scann"]
