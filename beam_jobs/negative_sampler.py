"""Draws negatives by weight within a group, never one of the user's own items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from contracts.names import PADDING_INDEX

Int64 = npt.NDArray[np.int64]

_BITMAP_MAX_CELLS = 64_000_000
_REDRAWS = 20
"""After so many rejected redraws a user owns nearly all of the group's weight; what is left is drawn exactly."""


class GroupSampler:
    """Walker's alias method, one table a group: a draw costs one random number and two look-ups."""

    def __init__(self, weights: npt.NDArray[np.float64], group_id: Int64, num_groups: int):
        """Args:

        weights: [num_items] positive weights; row r is item_index r + 1.
        group_id: [num_items].
        num_groups: K.
        """
        self.weights = weights
        self.group_id = group_id
        self._order = np.argsort(group_id, kind="stable")
        self._size = np.bincount(group_id, minlength=num_groups)
        self._start = np.cumsum(self._size) - self._size
        self._keep = np.ones(len(weights))
        self._alias = np.arange(len(weights))
        for group in range(num_groups):
            rows = slice(self._start[group], self._start[group] + self._size[group])
            keep, alias = _alias_table(weights[self._order[rows]])
            self._keep[rows], self._alias[rows] = keep, alias + self._start[group]

    def draw(self, groups: Int64, rng: np.random.Generator) -> Int64:
        """[n] groups (none of them empty) -> [n] item_index, by weight within the group, with replacement."""
        place = rng.random(len(groups)) * self._size[groups]
        slot = place.astype(np.int64)
        coin = place - slot
        slot += self._start[groups]
        return self._order[np.where(coin < self._keep[slot], slot, self._alias[slot])] + 1

    def members(self, group: int) -> Int64:
        """item_index of the group's items."""
        return self._order[self._start[group] : self._start[group] + self._size[group]] + 1


def _alias_table(weights: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], Int64]:
    """Vose's construction (1991): probability of keeping a slot, and the slot that it points to."""
    size = len(weights)
    keep, alias = np.ones(size), np.arange(size)
    if not size:
        return keep, alias
    share = weights / weights.sum() * size
    small, large = np.flatnonzero(share < 1).tolist(), np.flatnonzero(share >= 1).tolist()
    share = share.tolist()
    while small and large:
        low, high = small.pop(), large[-1]
        keep[low], alias[low] = share[low], high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            small.append(large.pop())
    return keep, alias


@dataclass(frozen=True)
class OwnItems:
    """Which (user, item) pairs are positives, for users numbered from 0 within a bucket."""

    users: Int64
    items: Int64
    num_users: int
    num_items: int

    def __post_init__(self) -> None:
        keys = self.users * (self.num_items + 1) + self.items
        cells = self.num_users * (self.num_items + 1)
        bitmap = None
        if cells <= _BITMAP_MAX_CELLS:
            bitmap = np.zeros(cells, bool)
            bitmap[keys] = True
        object.__setattr__(self, "_bitmap", bitmap)
        object.__setattr__(self, "_keys", np.unique(keys) if bitmap is None else None)

    def contains(self, users: Int64, items: Int64) -> npt.NDArray[np.bool_]:
        """[n], [n] -> [n]."""
        wanted = users * (self.num_items + 1) + items
        if self._bitmap is not None:  # type: ignore[attr-defined]
            return self._bitmap[wanted]  # type: ignore[attr-defined]
        keys = self._keys  # type: ignore[attr-defined]
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return keys[place] == wanted

    def of(self, user: int) -> Int64:
        """item_index of one user's own items."""
        return self.items[self.users == user]


def draw_negatives(
    sampler: GroupSampler, users: Int64, groups: Int64, own: OwnItems, rng: np.random.Generator
) -> tuple[Int64, int]:
    """One negative a row: of `groups[r]`, not an own item of `users[r]`.

    A draw is by the sampler's weights, given that it is none of the user's own. A user who owns the
    whole group gets `PADDING_INDEX`, which every reader masks.

    Returns:
        [n] item_index, and how many are padding.
    """
    drawn = sampler.draw(groups, rng)
    rejected = np.flatnonzero(own.contains(users, drawn))
    for _ in range(_REDRAWS):
        if not len(rejected):
            return drawn, 0
        drawn[rejected] = sampler.draw(groups[rejected], rng)
        rejected = rejected[own.contains(users[rejected], drawn[rejected])]
    exhausted = 0
    for user, group in np.unique(np.stack([users[rejected], groups[rejected]], axis=1), axis=0).tolist():
        rows = rejected[(users[rejected] == user) & (groups[rejected] == group)]
        left = np.setdiff1d(sampler.members(group), own.of(user))
        if len(left):
            weights = sampler.weights[left - 1]
            drawn[rows] = rng.choice(left, len(rows), p=weights / weights.sum())
        else:
            drawn[rows] = PADDING_INDEX
            exhausted += len(rows)
    return drawn, exhausted
