"""Slots: a servable's items, numbered from 1 in the order of its indexes, group by group; 0 stands for no item.

A search result in a group becomes a slot by adding the group's first slot, without a table lookup per result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from contracts.names import PADDING_INDEX


def first_slots(group_sizes: np.ndarray) -> np.ndarray:
    """int32 [num_groups], the slot of each group's first item."""
    return (np.cumsum(group_sizes) - group_sizes + 1).astype(np.int32)


def items_by_slot(members: Sequence[np.ndarray]) -> np.ndarray:
    """int32 [num_slots + 1], the item_index at each slot; `members`: for each group, int32 [size], its items."""
    return np.concatenate([[PADDING_INDEX], *members]).astype(np.int32)


def slots_by_item(members: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """int32 [num_items + 1], the slot of each item_index, 0 for padding and for items that are in no group."""
    items = items_by_slot(members)
    slots = np.zeros(num_items + 1, np.int32)
    slots[items] = np.arange(len(items))
    return slots
