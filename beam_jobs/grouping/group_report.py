"""What each group is about, in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from beam_jobs.common.arrays import Int64
from beam_jobs.features.side_features import SideFeatures, TokenFeature

_LABEL_VALUES = 3
_TOP_ITEMS = 10


def describe_groups(groups: Int64, num_groups: int, item_ids: list[str], side: SideFeatures) -> list[dict[str, Any]]:
    """One object per group: group_id, size, label, top_items.

    Args:
        groups: [num_items] group of each item, most popular items first.
        num_groups: K.
        item_ids: [num_items].
        side: where categories and titles come from.
    """
    telling = [_telling_values(feature, groups, num_groups) for feature in side.tokens]
    names = [title or item_id for title, item_id in zip(side.titles, item_ids, strict=True)]
    report = []
    for group in range(num_groups):
        members = np.flatnonzero(groups == group)
        top = [names[item] for item in members[:_TOP_ITEMS].tolist()]
        scored = sorted((pair for feature in telling for pair in feature[group]), reverse=True)
        label = ", ".join(value for _, value in scored[:_LABEL_VALUES]) or "; ".join(top[:_LABEL_VALUES])
        report.append({"group_id": group, "size": len(members), "label": label, "top_items": top})
    return report


def _telling_values(feature: TokenFeature, groups: Int64, num_groups: int) -> list[list[tuple[float, str]]]:
    """(score, value) pairs of each group's most telling values.

    The score is p(value | group) * log(p(value | group) / p(value)), high for values that are frequent in the group and
    rarer elsewhere. A value that an item has several times, such as a word of a text, counts once.
    """
    num_values = len(feature.values)
    sizes = np.maximum(np.bincount(groups, minlength=num_groups), 1)
    items, codes = np.divmod(np.unique(feature.items.astype(np.int64) * num_values + feature.codes), num_values)
    keys, counts = np.unique(groups[items] * num_values + codes, return_counts=True)
    group_of, code = keys // num_values, keys % num_values
    inside = counts / sizes[group_of]
    overall = np.bincount(codes, minlength=num_values)[code] / len(groups)
    scores = inside * np.log(inside / overall)
    result: list[list[tuple[float, str]]] = []
    for group in range(num_groups):
        places = np.flatnonzero((group_of == group) & (scores > 0) & (counts > 1))
        best = places[np.argsort(-scores[places], kind="stable")][:_LABEL_VALUES]
        result.append([(float(scores[place]), feature.values[code[place]]) for place in best])
    return result
