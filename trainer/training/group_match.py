"""Matches each group to the group of an earlier run whose gate, embedding and intent it takes over."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.layout import Workdir


@dataclass(frozen=True)
class GroupMatch:
    """For each new group, the earlier group that it continues.

    Attributes:
        earlier: int64 [num_groups], -1 if none is known.
        log_share: float32 [num_groups], log of the share of the earlier group's items that went to the new group:
            the parts of a split group share its probability.
    """

    earlier: np.ndarray
    log_share: np.ndarray


def continued_groups(
    group: np.ndarray,
    earlier_group: np.ndarray,
    items: np.ndarray,
    num_groups: int,
    num_earlier: int,
    same_ids: bool,
) -> GroupMatch:
    """Matches groups by common items: each new group continues the earlier one with most of its items.

    Args:
        group: int [num_items], of the new run.
        earlier_group: int [num_earlier_items].
        items: int [num_items], row of the same item in the earlier run, -1 = new.
        same_ids: whether a group whose items are all new continues the one with its id.
    """
    common = items >= 0
    overlap = np.zeros((num_groups, num_earlier), np.int64)
    np.add.at(overlap, (group[common], earlier_group[items[common]]), 1)
    best = overlap.argmax(axis=1)
    most = overlap[np.arange(num_groups), best]
    share = most / np.maximum(overlap.sum(axis=0)[best], 1)
    own = np.arange(num_groups)
    return GroupMatch(
        earlier=np.where(most > 0, best, np.where(same_ids & (own < num_earlier), own, -1)),
        log_share=np.log(np.where(most > 0, share, 1.0)).astype(np.float32),
    )


def keeps_ids(config: Config, workdir: Workdir, earlier: Workdir) -> bool:
    """Whether a group without a common item is still the earlier run's group with its id.

    It is if the groups are named after that run's and either come from categories (a day of news has no item of the
    day before) or are that run's own groups, kept.
    """
    groups = config.groups
    named_after = Path(groups.previous or "").resolve() == earlier.item_groups.path.resolve()
    kept = read_manifest(workdir.item_groups.path).details.get("drift", {}).get("kept", False)
    return named_after and (groups.method != "kmeans" or kept)
