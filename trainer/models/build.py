"""The model that a config describes."""

from __future__ import annotations

from contracts.config import Config
from trainer.catalogue import Catalogue
from trainer.models.group_first_model import GroupFirstModel
from trainer.models.multi_interest_model import MultiInterestModel
from trainer.models.two_tower_model import TwoTowerModel


def build_model(config: Config, catalogue: Catalogue) -> TwoTowerModel:
    """A new model with fresh weights."""
    if config.model.user_tower in {"mind", "comirec"}:
        return MultiInterestModel(config, catalogue)
    if config.model.reads_groups_first:
        return GroupFirstModel(config, catalogue)
    return TwoTowerModel(config, catalogue)
