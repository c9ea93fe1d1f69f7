"""The indexes of all groups of a model: each is built and tuned on users' queries, or taken from the last version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from contracts.config import ServingConfig
from contracts.layout import Workdir
from contracts.names import Split
from serving.search.group_index import GroupIndex, build_group_index, index_fingerprint
from trainer.catalogue import Catalogue
from trainer.evaluation.ranking import encode_users
from trainer.input.evaluation_users import EvaluationUsers
from trainer.models.two_tower_model import TwoTowerModel

_TUNING_USERS = 128


@dataclass(frozen=True)
class BuiltIndexes:
    """The indexes of the groups that are not empty, in order of group_id.

    Attributes:
        indexes: one per group.
        rebuilt: the groups whose index was not taken from the last version.
    """

    indexes: list[GroupIndex]
    rebuilt: list[int]


def group_members(catalogue: Catalogue) -> list[np.ndarray]:
    """For each group, int32 [size], its items by item_index, in order of item_id: the same in every run."""
    by_id = pc.sort_indices(pa.array(catalogue.item_ids, pa.large_string())).to_numpy().astype(np.int32) + 1
    group = catalogue.group_id[by_id]
    return [by_id[group == one] for one in range(catalogue.num_groups)]


def tuning_queries(workdir: Workdir, model: TwoTowerModel) -> np.ndarray:
    """float32 [num_queries, num_groups, dim], of validation users, evenly spaced."""
    return encode_users(model, EvaluationUsers.load(workdir, Split.VALIDATION, _TUNING_USERS))[0]


def build_indexes(
    serving: ServingConfig,
    queries: np.ndarray,
    embeddings: np.ndarray,
    members: Sequence[np.ndarray],
    earlier: Mapping[str, GroupIndex],
) -> BuiltIndexes:
    """The ScaNN index of every group that is not empty.

    Args:
        serving: thresholds and the recall target.
        queries: float32 [num_queries, num_groups, dim] to tune on.
        embeddings: float32 [num_items + 1, dim], by item_index.
        members: for each group, int32 [size], its items.
        earlier: fingerprint -> index; one with the same fingerprint is reused as it is.
    """
    indexes, rebuilt = [], []
    for group, items in enumerate(members):
        if not len(items):
            continue
        vectors = embeddings[items]
        known = earlier.get(index_fingerprint(vectors, serving))
        if known is None:
            rebuilt.append(group)
            known = build_group_index(group, vectors, np.ascontiguousarray(queries[:, group]), serving)
        indexes.append(replace(known, group_id=group))
    return BuiltIndexes(indexes, rebuilt)
