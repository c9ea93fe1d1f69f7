"""Negatives: in-group ones by popularity, easy ones over the catalogue, never the user's own positives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from beam_jobs.alias import AliasTables
from contracts.names import PADDING_INDEX

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_ROUNDS = 16  # of rejection, before the exact distribution of what is left is drawn from
_BITMAP_BITS = 1 << 28  # 32 MiB
_BIT = np.uint8(1) << np.arange(8, dtype=np.uint8)


class NegativeSampler:
    """Draws negatives from sampling probabilities, within groups or over the whole catalogue."""

    def __init__(self, probabilities: Float64, groups: Int64, num_groups: int) -> None:
        """Builds alias tables.

        Args:
            probabilities: [num_items] of `item_index` 1..num_items, over the catalogue.
            groups: [num_items] group_id.
            num_groups: K.
        """
        self._probabilities = probabilities
        self._groups = groups
        self._in_group = AliasTables(probabilities, groups, num_groups)
        self._easy = AliasTables(probabilities, np.zeros_like(groups), 1)

    def in_group(self, users: Int64, items: Int64, number: int, owned: OwnedItems, rng: np.random.Generator) -> Int64:
        """[num_targets * number] `item_index`, target-major, from each target's own group.

        Where a user owns every item of the group no negative exists: `PADDING_INDEX` stands there.
        """
        return self._draw(
            self._in_group,
            self._groups,
            np.repeat(self._groups[items - 1], number),
            np.repeat(users, number),
            owned,
            rng,
        )

    def easy(self, users: Int64, number: int, owned: OwnedItems, rng: np.random.Generator) -> Int64:
        """[num_targets * number] `item_index` from the whole catalogue; see `in_group`."""
        everything = np.zeros(len(users) * number, np.int64)
        return self._draw(self._easy, np.zeros_like(self._groups), everything, np.repeat(users, number), owned, rng)

    def _draw(
        self,
        tables: AliasTables,
        group_of: Int64,
        groups: Int64,
        users: Int64,
        owned: OwnedItems,
        rng: np.random.Generator,
    ) -> Int64:
        drawn = tables.draw(groups, rng) + 1
        rejected = np.flatnonzero(owned.contains(users, drawn))
        for _ in range(_ROUNDS):
            if not len(rejected):
                return drawn
            drawn[rejected] = tables.draw(groups[rejected], rng) + 1
            rejected = rejected[owned.contains(users[rejected], drawn[rejected])]
        # What is left is a user who owns nearly all of a group: draw from the remainder's distribution.
        pairs, place = np.unique(np.stack([users[rejected], groups[rejected]]), axis=1, return_inverse=True)
        for number, (user, group) in enumerate(pairs.T.tolist()):
            chosen = rejected[place == number]
            members = np.flatnonzero(group_of == group)
            free = members[~owned.contains(np.full(len(members), user), members + 1)]
            drawn[chosen] = self._from_remainder(free, len(chosen), rng)
        return drawn

    def _from_remainder(self, free: Int64, number: int, rng: np.random.Generator) -> Int64:
        if not len(free):
            return np.full(number, PADDING_INDEX)
        cumulative = np.cumsum(self._probabilities[free])
        place = np.searchsorted(cumulative, rng.random(number) * cumulative[-1], side="right")
        return free[np.minimum(place, len(free) - 1)] + 1


class OwnedItems:
    """Which (user, item) pairs are training positives."""

    def __init__(self, users: Int64, items: Int64, num_users: int, num_items: int) -> None:
        """Indexes the pairs.

        Args:
            users: [num_positives] user numbers in 0..num_users - 1.
            items: [num_positives] `item_index`.
        """
        self._width = num_items + 1
        keys = users * self._width + items
        self.contains: Callable[[Int64, Int64], Bool]
        if num_users * self._width <= _BITMAP_BITS:
            # One bit a pair: eight times less memory to clear, and more of it in the processor's cache.
            self._bitmap = np.zeros(num_users * self._width // 8 + 1, np.uint8)
            np.bitwise_or.at(self._bitmap, keys >> 3, _BIT[keys & 7])
            self.contains = self._in_bitmap
        else:
            self._keys = np.unique(keys)
            self.contains = self._in_keys

    def _in_bitmap(self, users: Int64, items: Int64) -> Bool:
        keys = users * self._width + items
        return (self._bitmap[keys >> 3] & _BIT[keys & 7]) != 0

    def _in_keys(self, users: Int64, items: Int64) -> Bool:
        keys = users * self._width + items
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[place] == keys
