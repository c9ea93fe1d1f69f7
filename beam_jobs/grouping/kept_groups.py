"""Kept groups: new items join the last run's groups, as long as those still describe what co-occurs.

Embeddings follow the co-occurrence slowly. A model that continues from an earlier one has learnt how to read them, so a
sudden change costs it more than fresh embeddings gain (docs/experiments/retraining.md).

How well they do is measured by the share of co-occurrence within groups. The data they were fitted to flatters them, so
the measure begins with the first co-occurrence after the fit; once a later share has fallen below that first one by
`groups.refit_drift`, the groups are fitted anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import orthogonal_procrustes

from beam_jobs.common.arrays import Bool, Float32, Int64
from beam_jobs.features.side_features import SideFeatures
from beam_jobs.grouping.cold_items import embed_cold
from beam_jobs.grouping.item_embeddings import normalise_rows, read_block
from beam_jobs.grouping.kmeans import nearest_centroid
from beam_jobs.grouping.stable_groups import PreviousGroups

_FRESH_SHARE = 0.25
"""Share of the fresh embeddings in those that are kept."""


@dataclass(frozen=True)
class KeptGroups:
    """Today's catalogue in yesterday's groups.

    Attributes:
        groups: [num_items], -1 for an item about which nothing is known.
        embeddings: [num_items, dim], in the space of the fit.
        settled: [num_items] whether co-occurrence has placed the item, at the fit or since.
        within: share of the new co-occurrence that is within groups; None without co-occurrence.
        expected: the same share for the first co-occurrence after the fit; None if this is the first.
    """

    groups: Int64
    embeddings: Float32
    settled: Bool
    within: float | None
    expected: float | None

    @property
    def drift(self) -> float:
        """How far the share has fallen, relative to the expected one."""
        if not self.expected or self.within is None:
            return 0.0
        return max(0.0, 1 - self.within / self.expected)

    def as_json(self) -> dict[str, Any]:
        """For the artifact's details, where the next run finds what to expect."""
        return {"within": self.within, "expected": self.expected if self.expected is not None else self.within}


def keep_groups(previous: PreviousGroups, fresh: Float32, blocks: Sequence[Path], side: SideFeatures) -> KeptGroups:
    """Places new items, refreshes the embeddings, and measures how well the groups fit.

    Settled items stay in their groups, and their embeddings move part of the way to the fresh ones. Other items that
    have a fresh embedding get it, and the group of the nearest centroid; those without stay in their group or, if they
    had none, are placed by their side features.

    Args:
        previous: the last run's groups.
        fresh: [num_items, dim] of `embed_cooccurrences`, on any axes; 0 for items without co-occurrence.
        blocks: files of `CountCooccurrences` or `MergeCooccurrences`: the co-occurrence since the last run.
        side: item features.
    """
    settled, seen = previous.settled, fresh.any(axis=1)
    both = settled & seen
    # The axes of an SVD differ from day to day; centroids and model are on those of the fit (Procrustes; Schoenemann
    # 1966).
    turn, _ = orthogonal_procrustes(fresh[both], previous.embeddings[both])
    turned = fresh @ turn.astype(np.float32)
    embeddings = np.where(settled[:, None], previous.embeddings, turned)
    embeddings[both] = normalise_rows((1 - _FRESH_SHARE) * embeddings[both] + _FRESH_SHARE * turned[both])
    joining = seen & ~settled
    settled = settled | joining
    embeddings, placed = embed_cold(embeddings, side.columns())
    nearest = nearest_centroid(embeddings, previous.centroids)
    kept = previous.settled | (~joining & (previous.of_item >= 0))
    groups = np.where(kept, previous.of_item, np.where(placed, nearest, -1))
    within = cooccurrences_within(blocks, groups)
    return KeptGroups(groups, embeddings, settled, within, previous.expected_within)


def cooccurrences_within(blocks: Sequence[Path], groups: Int64) -> float | None:
    """Share of the co-occurrences' weight between items of the same group; None without co-occurrence.

    `groups`: [num_items]; two items without a group (-1) do not share one.
    """
    inside = total = 0
    for rows, columns, weights in map(read_block, blocks):
        inside += int(weights[(groups[rows] == groups[columns]) & (groups[rows] >= 0)].sum())
        total += int(weights.sum())
    return inside / total if total else None
