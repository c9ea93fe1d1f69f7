"""The model that a config describes."""

from __future__ import annotations

from contracts.config import Config
from trainer.catalogue import Catalogue
from trainer.group_first_model import GroupFirstModel
from trainer.model import TwoTowerModel
from trainer.multi_interest_model import MultiInterestModel


def build_model(config: Config, catalogue: Catalogue) -> TwoTowerModel:
    """A new model with fresh weights."""
    if config.model.user_tower in {"mind", "comirec"}:
        return MultiInterestModel(config, catalogue)
    if config.model.reads_groups_first:
        return GroupFirstModel(config, catalogue)
    return TwoTowerModel(config, catalogue)
