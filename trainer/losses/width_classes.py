"""Classes of groups with similar numbers of candidates, so that no small group is padded to the largest."""

from __future__ import annotations

import numpy as np

_POSITIVES = 3_000
"""Approximate number of queries that a step compares with their group's candidates, those of both vectors."""

_PADDING = 4
"""Approximate number of rows that a group's last block is padded by."""

_COST_OF_A_CLASS = 250_000
"""What one more class costs besides its products: its ops, some sixty, take as long as this many products."""


def width_classes(width: np.ndarray, positives: np.ndarray) -> list[np.ndarray]:
    """Splits groups into classes, each of them laid out as wide as its widest group.

    Categories are as uneven as words: one of 400 may have a third of all items. Dynamic programming over groups in
    order of width finds the split of least cost: rows times width of each class, plus what a class costs by itself.

    Args:
        width: float64 [num_groups], candidates that each group is expected to have in a step.
        positives: float64 [num_groups], each group's share of the positives.

    Returns:
        int64 arrays of groups.
    """
    order = np.argsort(-width, kind="stable")
    width, rows = width[order], np.cumsum(np.append(0, positives[order] * _POSITIVES + _PADDING))
    least, begins = np.zeros(len(order) + 1), np.zeros(len(order) + 1, np.int64)
    for end in range(1, len(order) + 1):
        cost = least[:end] + (rows[end] - rows[:end]) * width[:end] + _COST_OF_A_CLASS
        begins[end] = np.argmin(cost)
        least[end] = cost[begins[end]]
    classes, end = [], len(order)
    while end:
        classes.append(np.sort(order[begins[end] : end]))
        end = begins[end]
    return classes
