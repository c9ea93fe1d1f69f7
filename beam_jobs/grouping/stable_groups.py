"""Stable group ids: today's groups take the names of the last run's groups that they overlap most with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment

from beam_jobs.common.arrays import Bool, Float32, Float64, Int64
from beam_jobs.common.files import read_array, read_parquet
from beam_jobs.common.payload import one_array
from contracts.artifact import ArtifactError, Manifest, current, read_manifest
from contracts.config import Config, GroupsConfig
from contracts.layout import ItemGroups
from contracts.names import ItemColumn
from contracts.storage import as_path


@dataclass(frozen=True)
class CategoryShares:
    """Which groups the items of each category were in.

    Attributes:
        values: [num_categories] distinct categories.
        shares: [num_categories, previous K] the part of a category's items in each group.
    """

    values: pa.Array
    shares: sp.csr_matrix

    @classmethod
    def of(cls, categories: pa.Array, groups: Int64, num_groups: int) -> CategoryShares:
        """Counts old items by their `categories`, null without one, and their `groups`, both [num_items]."""
        known = categories.is_valid().to_numpy(zero_copy_only=False)
        encoded = categories.filter(pa.array(known)).dictionary_encode()
        codes = encoded.indices.to_numpy()
        parts = 1 / np.bincount(codes, minlength=1)[codes]
        shape = (len(encoded.dictionary), num_groups)
        return cls(encoded.dictionary, sp.csr_matrix((parts, (codes, groups[known])), shape=shape))

    def overlap(self, categories: pa.Array, groups: Int64, weights: Float64, num_groups: int) -> Float64:
        """[num_groups, num_groups] the weight of items by today's group and, by its category's shares, old group.

        Args:
            categories: [num_items], null without one.
            groups: [num_items] 0..K-1, or -1.
            weights: [num_items].
            num_groups: K.
        """
        codes = pc.fill_null(pc.index_in(categories, self.values), -1).to_numpy(zero_copy_only=False)
        known = (codes >= 0) & (groups >= 0)
        shape = (num_groups, len(self.values))
        now = sp.csr_matrix((weights[known], (groups[known], codes[known])), shape=shape)
        found = (now @ self.shares).toarray()[:, :num_groups]
        return np.pad(found, ((0, 0), (0, num_groups - found.shape[1])))


@dataclass(frozen=True)
class PreviousGroups:
    """The last run's groups, seen from today's catalogue.

    Attributes:
        of_item: [num_items] group that each of today's items was in, -1 for a new item.
        sizes: [previous K] number of items in each group, including those that are gone now.
        settled: [num_items] whether co-occurrence had placed the item.
        embeddings: [num_items, previous dim] of today's items, 0 where the last run did not have them.
        centroids: [previous K, previous dim].
        expected_within: usual share of co-occurrence within groups, see `kept_groups`; None if unknown.
        categories: what the groups hold, if they are groups of categories.
        fit: the settings that the groups were fitted with, see `fit_settings`; empty if unknown.
    """

    of_item: Int64
    sizes: Int64
    settled: Bool
    embeddings: Float32
    centroids: Float32
    expected_within: float | None = None
    categories: CategoryShares | None = None
    fit: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, settings: Mapping[str, Any]) -> list[str]:
        """Which of `fit_settings` have changed: groups that are kept would go on as if they had not."""
        return sorted(key for key, value in settings.items() if self.fit.get(key, value) != value)

    def fits(self, groups: GroupsConfig) -> bool:
        """Whether the groups can be kept under this config: another K or another space needs another fit.

        Groups of categories follow the categories, and are determined anew each time.
        """
        same = self.centroids.shape == (groups.num_groups, groups.embedding_dim)
        return same and groups.method == "kmeans" and bool(self.settled.any())

    def kept(self, num_groups: int) -> Int64:
        """[num_items] `of_item`, with -1 also for groups whose id no longer exists."""
        return np.where(self.of_item < num_groups, self.of_item, -1)


def fit_settings(config: Config) -> dict[str, Any]:
    """Key -> JSON value of the settings that determine how groups are fitted to given events."""
    feedback = config.data.feedback
    settings = config.groups.model_dump(mode="json", exclude={"previous", "since", "refit_drift"})
    level = feedback.levels[feedback.target_level_index]
    return {f"groups.{key}": value for key, value in settings.items()} | {"data.feedback.target_level": level}


def previous_manifest(path: str) -> Manifest:
    """The manifest of the artifact that `groups.previous` names.

    Raises:
        ValueError: it is not an item_groups artifact.
    """
    try:
        return read_manifest(as_path(path), ItemGroups.KIND)
    except ArtifactError as error:
        raise ValueError(f"groups.previous: {error}; or, to number groups anew, set groups.previous=null") from None


def read_previous(path: str | None, item_ids: pa.Array) -> PreviousGroups | None:
    """Reads the artifact that `groups.previous` names, if any.

    Raises:
        ValueError: it is not an item_groups artifact.
    """
    if path is None:
        return None
    manifest, groups = previous_manifest(path), ItemGroups(current(as_path(path)))
    table = read_parquet(groups.groups)
    previous = table[ItemColumn.GROUP_ID].to_numpy().astype(np.int64)
    rows = pc.fill_null(pc.index_in(item_ids, one_array(table[ItemColumn.ITEM_ID])), -1).to_numpy(zero_copy_only=False)
    centroids, embeddings = read_array(groups.centroids), read_array(groups.embeddings)
    known = rows >= 0
    has_settled = ItemColumn.SETTLED in table.column_names  # older code does not say which items are
    settled = table[ItemColumn.SETTLED].to_numpy() if has_settled else np.ones(len(previous), bool)
    return PreviousGroups(
        of_item=np.where(known, previous[rows], -1),
        sizes=np.bincount(previous, minlength=len(centroids)),
        settled=known & settled[rows],
        embeddings=np.where(known[:, None], embeddings[rows], 0),
        centroids=centroids,
        expected_within=manifest.details.get("cooccurrences", {}).get("expected"),
        categories=CategoryShares.of(one_array(table[ItemColumn.CATEGORY]), previous, len(centroids))
        if ItemColumn.CATEGORY in table.column_names
        else None,
        fit=manifest.details.get("fit", {}),
    )


def match_groups(
    groups: Int64, of_item: Int64, weights: Float64, num_groups: int, of_new: Float64 | None = None
) -> Int64:
    """Renames groups so that as much weight as possible stays in the group of the same name.

    The one-to-one naming of greatest total overlap is a linear assignment (Kuhn 1955; Crouse 2016).

    Args:
        groups: [num_items] 0..K-1, or -1.
        of_item: [num_items] old group, -1 without one.
        weights: [num_items] how much an item counts: with training events, what most users see stays put.
        num_groups: K.
        of_new: [num_groups, num_groups] what new items add to the overlap of today's groups with the old ones.

    Returns:
        [num_items] the same partition under other names.
    """
    shared = (groups >= 0) & (of_item >= 0)
    overlap = np.zeros((num_groups, num_groups)) if of_new is None else of_new.copy()
    np.add.at(overlap, (groups[shared], of_item[shared]), weights[shared])
    _, names = linear_sum_assignment(overlap, maximize=True)
    return np.where(groups >= 0, names[groups], -1)


def drift(groups: Int64, previous: PreviousGroups, weights: Float64, num_groups: int) -> dict[str, float | int]:
    """What changed since the last run.

    Returns:
        shared_items, new_items, gone_items; changed_share and changed_weight, the parts of the shared items and
        of their `weights` that are in another group; size_shift, the total variation distance between the
        groups' shares of the items then and now.
    """
    shared = previous.of_item >= 0
    changed = shared & (groups != previous.of_item)
    width = max(num_groups, len(previous.sizes))
    now = np.bincount(groups, minlength=width) / len(groups)
    then = np.pad(previous.sizes, (0, width - len(previous.sizes))) / previous.sizes.sum()
    return {
        "shared_items": int(shared.sum()),
        "new_items": int((~shared).sum()),
        "gone_items": int(previous.sizes.sum() - shared.sum()),
        "changed_share": round(float(changed.sum() / max(shared.sum(), 1)), 6),
        "changed_weight": round(float(weights[changed].sum() / max(weights[shared].sum(), 1e-9)), 6),
        "size_shift": round(float(np.abs(now - then).sum() / 2), 6),
    }


def kept_shares(groups: Int64, previous: PreviousGroups, num_groups: int) -> list[float | None]:
    """[num_groups] share of each old group's remaining items that it still holds; None if none remain."""
    shared = (previous.of_item >= 0) & (previous.of_item < num_groups)
    before = np.bincount(previous.of_item[shared], minlength=num_groups)
    stayed = np.bincount(groups[shared & (groups == previous.of_item)], minlength=num_groups)
    return [round(s / b, 6) if b else None for s, b in zip(stayed.tolist(), before.tolist(), strict=True)]
