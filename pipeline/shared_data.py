"""Where the training data that many models share lies: it is made once for each config of the data."""

from __future__ import annotations

from pathlib import Path

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir

_SECTIONS = ("data", "split", "groups", "windows")


def data_workdir(config: Config, root: Path) -> Workdir:
    """The workdir below `root` for the data of `config`: the same for configs that differ only in the model."""
    tree = config.model_dump(mode="json")
    return Workdir((root / artifact.fingerprint({section: tree[section] for section in _SECTIONS})).absolute())
