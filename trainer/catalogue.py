"""The catalogue: every item and user table that training and serving need, indexed by item_index."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.artifact import ArtifactError, find_manifest, read_manifest
from contracts.config import Config
from contracts.layout import Model, Workdir
from contracts.names import ITEMS_PER_USER, ItemColumn

FeatureSpec = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Catalogue:
    """Items, their groups, counts and side features. Row 0 of every array is padding.

    Attributes:
        item_ids: object array [num_items]; row r is item_index r + 1.
        group_id: int32 [num_items + 1], 0..num_groups-1; -1 in row 0.
        num_groups: K.
        train_count: int64 [num_items + 1].
        trained: bool [num_items + 1], whether the model was trained on an item; None if `train_count` says so.
        target_count: int64 [num_items + 1], how often an item is a target of the training windows; None unless
            training asks for it.
        sampling_probability: float64 [num_items + 1], by which negatives are drawn; sums to 1.
        draw_shares: float64 [2, num_items + 1], an item's expected share of the windows' in-group draws of its group
            and of their easy draws: nobody is given their own items, so for items that many took it is less than by
            `sampling_probability`. None without windows, and for windows that older code wrote.
        item_features: name -> [num_items + 1, ...], as transformed; row 0 is zeros.
        user_features: name -> [num_users + 1, ...], likewise.
        feature_spec: {"user": [...], "item": [...]}, each {"name", "kind", "vocabulary_size", "width"}.
        cooccurrence: float32 [num_items + 1, embedding_dim of the groups], from which groups are made: an item's
            position among the items that it occurs with in training, or the one that its side features lead to.
        groups_match_windows: whether the windows' in-group negatives were drawn from these groups.
        num_users: number of users in the vocabulary.
        items_per_user: `ITEMS_PER_USER` of the windows; 0 if there are no windows.
    """

    item_ids: np.ndarray
    group_id: np.ndarray
    num_groups: int
    train_count: np.ndarray
    sampling_probability: np.ndarray
    item_features: dict[str, np.ndarray] = field(default_factory=dict)
    user_features: dict[str, np.ndarray] = field(default_factory=dict)
    feature_spec: FeatureSpec = field(default_factory=lambda: {"user": [], "item": []})
    cooccurrence: np.ndarray = field(default_factory=lambda: np.zeros((1, 0), np.float32))
    groups_match_windows: bool = True
    target_count: np.ndarray | None = None
    draw_shares: np.ndarray | None = None
    trained: np.ndarray | None = None
    num_users: int = 0
    items_per_user: float = 0.0

    @property
    def num_items(self) -> int:
        return len(self.item_ids)

    @property
    def is_trained(self) -> np.ndarray:
        """bool [num_items + 1]; the other items are cold."""
        return self.train_count > 0 if self.trained is None else self.trained

    def known_to(self, model: Model) -> Catalogue:
        """The catalogue with the model's `trained`: one that was carried over was trained on another run's log."""
        return replace(self, trained=np.load(model.trained_items)) if model.trained_items.exists() else self

    @classmethod
    def load(cls, workdir: Workdir) -> Catalogue:
        """Reads the artifacts item_statistics, item_groups and transform and, from the windows, what users have taken.

        Raises:
            ArtifactError: one is missing, or they belong to different catalogues.
        """
        for artifact in (workdir.item_statistics, workdir.item_groups, workdir.transform):
            read_manifest(artifact.path)
        items = pq.read_table(workdir.item_statistics.items)
        groups = pq.read_table(workdir.item_groups.groups)
        _require_same_items(items, groups, workdir)
        spec = json.loads(workdir.transform.feature_spec.read_text(encoding="utf-8"))
        group_id = _padded(groups[ItemColumn.GROUP_ID], np.int32)
        group_id[0] = -1
        windows, shares = find_manifest(workdir.windows.path), workdir.windows.draw_shares
        has_shares = windows is not None and shares.name in windows.files
        return cls(
            item_ids=items[ItemColumn.ITEM_ID].to_numpy(zero_copy_only=False),
            group_id=group_id,
            num_groups=int(group_id.max()) + 1,  # none is empty
            train_count=_padded(items[ItemColumn.TRAIN_COUNT], np.int64),
            sampling_probability=_padded(items[ItemColumn.SAMPLING_PROBABILITY], np.float64),
            item_features=_read_features(workdir.transform.items, spec["item"]),
            user_features=_read_features(workdir.transform.users, spec["user"]),
            feature_spec=spec,
            cooccurrence=np.pad(np.load(workdir.item_groups.embeddings), [[1, 0], [0, 0]]),
            draw_shares=np.pad(np.load(shares), [[0, 0], [1, 0]]) if has_shares else None,
            num_users=pq.read_metadata(workdir.item_statistics.users).num_rows,
            items_per_user=windows.details.get(ITEMS_PER_USER, 0.0) if windows else 0.0,
        )

    @classmethod
    def for_config(cls, config: Config, workdir: Workdir) -> Catalogue:
        """The catalogue as `config` groups it: `groups.num_groups=1`, as for a single vector, makes it one group."""
        return cls.load(workdir).grouped_for(config)

    def grouped_for(self, config: Config) -> Catalogue:
        """`for_config` for a catalogue that is already loaded."""
        if config.groups.num_groups > 1 or self.num_groups == 1:
            return self
        group_id = np.zeros_like(self.group_id)
        group_id[0] = -1
        return replace(self, group_id=group_id, num_groups=1, groups_match_windows=False)


def _require_same_items(items: pa.Table, groups: pa.Table, workdir: Workdir) -> None:
    if not items[ItemColumn.ITEM_ID].equals(groups[ItemColumn.ITEM_ID]):
        raise ArtifactError(
            f"{workdir.item_groups.groups} and {workdir.item_statistics.items} hold different items: "
            "run the groups stage again"
        )


def _padded(column: pa.ChunkedArray, dtype: type) -> np.ndarray:
    values = column.to_numpy(zero_copy_only=False).astype(dtype)
    return np.concatenate([np.zeros(1, dtype), values])


def _read_features(path: Path, specs: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    if not specs:
        return {}
    table = pq.read_table(path, columns=[spec["name"] for spec in specs])
    return {spec["name"]: _feature_array(table[spec["name"]], spec) for spec in specs}


def _feature_array(column: pa.ChunkedArray, spec: dict[str, Any]) -> np.ndarray:
    """[num_rows + 1] or, for tokens and vectors, [num_rows + 1, width]; numbers are float32, indices int64."""
    dtype = np.float32 if spec["kind"] in {"numeric", "vector"} else np.int64
    is_list = pa.types.is_fixed_size_list(column.type)
    values = (pc.list_flatten(column) if is_list else column).to_numpy(zero_copy_only=False).astype(dtype)
    if is_list:
        values = values.reshape(len(column), -1)
    return np.concatenate([np.zeros((1, *values.shape[1:]), dtype), values])
