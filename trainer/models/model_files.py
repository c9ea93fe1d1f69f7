"""Writing and reading the files of a trained model."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from contracts.artifact import ArtifactWriter, require_this_version, write_json
from contracts.config import Config
from contracts.layout import Model, Workdir
from trainer.catalogue import Catalogue
from trainer.models.build import build_model
from trainer.models.two_tower_model import TwoTowerModel


def save_model(artifact: ArtifactWriter, model: TwoTowerModel, config: Config, history: list[dict[str, Any]]) -> None:
    """Writes the files of a `Model` artifact, and counts its parameters."""
    files = Model(artifact.path)
    save_weights(model, files.weights)
    write_json(files.history, history)
    write_json(files.config, config.model_dump(mode="json"))
    artifact.files += [files.weights.name, files.history.name, files.config.name]
    artifact.counts["parameters"] = sum(int(np.prod(weight.shape)) for weight in model.trainable_variables)


def load_model(config: Config, workdir: Workdir, name: str, catalogue: Catalogue | None = None) -> TwoTowerModel:
    """Loads a trained model with its weights.

    Args:
        config: the one that the model was trained with.
        catalogue: the workdir's, if already loaded: with a million items, it takes hundreds of MB.

    Raises:
        ArtifactError: there is no such model, or another version of the project trained it.
        ValueError: the weights cannot be read, or do not fit the config or the catalogue.
    """
    artifact = workdir.model(name)
    require_this_version(artifact.path)
    known = (catalogue or Catalogue.load(workdir)).known_to(artifact)
    model = build_model(config, known.grouped_for(config))
    try:
        model.load_weights(str(artifact.weights))
    except OSError as error:
        raise ValueError(
            f"{artifact.weights} cannot be read ({error}): restore it, or train again; in a store, retrain once with "
            "retrain.warm_start=false, or roll back to an older version (dnc rollback)"
        ) from None
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"the weights in {artifact.weights} do not fit the config's sections model and groups, or the "
            f"current catalogue ({error}): use the config in {artifact.config}, or train again"
        ) from None
    return model


def save_weights(model: TwoTowerModel, path: Path) -> None:
    """Writes the weights as HDF5: made elsewhere, then copied, since its library crashes the process on a full disk.

    Raises:
        OSError: `path` cannot be written, or there is not enough temporary disk space.
    """
    require_room(model)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / path.name
        model.save_weights(str(made))
        shutil.copyfile(made, path)


def require_room(model: TwoTowerModel) -> None:
    """Raises OSError if there is not enough temporary disk space for the weights."""
    folder = tempfile.gettempdir()
    # HDF5 adds one to two KiB per weight.
    needed = sum(weight.shape.num_elements() * weight.dtype.size + 4096 for weight in model.weights)
    if shutil.disk_usage(folder).free < needed:
        said = f"{os.strerror(errno.ENOSPC)} for {needed / 2**20:,.1f} MiB of weights (TMPDIR sets the directory)"
        raise OSError(errno.ENOSPC, said, folder)
