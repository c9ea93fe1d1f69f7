"""Training data that many models share, made once for each config of the data."""

from __future__ import annotations

from pathlib import Path

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from pipeline.runner import run_stages
from pipeline.stages import STAGES

_SECTIONS = ("data", "split", "groups", "windows")


def data_workdir(config: Config, root: Path) -> Workdir:
    """The workdir below `root` for the data of `config`: the same for configs that differ only in the model."""
    tree = config.model_dump(mode="json")
    return Workdir((root / artifact.fingerprint({section: tree[section] for section in _SECTIONS})).absolute())


def prepare_data(config: Config, workdir: Workdir, seed: int, last: str = "windows") -> None:
    """Runs the stages up to the windows, or to `last`, if they are not up to date.

    `seed` replaces the config's, so that models of several seeds differ only in their training.
    """
    run_stages(STAGES, config.model_copy(update={"seed": seed}), workdir, last=last)
