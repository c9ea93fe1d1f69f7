"""A servable of any size with a random model, for benchmarks of what surrounds the model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

import beam_jobs  # noqa: F401  (keeps Beam, which the transform graphs need, from logging what it lacks)
from contracts.artifact import writing
from contracts.config import Config, GroupsConfig, ModelConfig, ServingConfig, WindowsConfig
from contracts.layout import Model
from serving.export import export
from serving.versions import admit, version_of
from tests.serving.transform_graphs import write_item_graph, write_user_graph
from tests.trainer.artifacts import Log, write_artifacts
from trainer.catalogue import Catalogue
from trainer.models.two_tower_model import TwoTowerModel

HISTORY = 50
_USERS = 256
_MODEL = "random"


def make_servable(
    scratch: Path, index: Literal["scann", "exact"], num_items: int, num_groups: int, num_candidates: int
) -> Path:
    """Writes a servable below `scratch`.

    Args:
        scratch: an empty directory.
        index: kind of index of its groups.
        num_items: size of the catalogue; ids are i1, i2, ...
        num_groups: K; the groups have unequal sizes.
        num_candidates: the default M.

    Returns:
        The version directory.
    """
    rng = np.random.default_rng(0)
    group_id = rng.choice(num_groups, num_items, p=rng.dirichlet(np.full(num_groups, 3.0)))
    sequences = [rng.integers(1, num_items + 1, HISTORY + 2) for _ in range(_USERS)]
    workdir = write_artifacts(Log(sequences, group_id, window_length=HISTORY), scratch / "workdir")
    config = Config(
        groups=GroupsConfig(num_groups=num_groups),
        model=ModelConfig(use_item_features=False, use_user_features=False),
        windows=WindowsConfig(length=HISTORY),
        serving=ServingConfig(indexes=(index,), num_candidates=num_candidates, exploration_share=0.0),
    )
    catalogue = Catalogue.for_config(config, workdir)
    write_item_graph(workdir.transform.item_graph, scratch, catalogue.item_ids.tolist())
    write_user_graph(workdir.transform.user_graph, scratch, [f"u{index}" for index in range(_USERS)])
    model = TwoTowerModel(config, catalogue)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.1, variable.shape).astype(np.float32))
    with writing(workdir.model(_MODEL).path, Model.KIND, "benchmark") as artifact:
        model.save_weights(str(Model(artifact.path).weights))
    exported = export(config, workdir, _MODEL, "benchmark")
    admit(config, workdir, exported)
    return version_of(exported)
