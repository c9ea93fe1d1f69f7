"""Negatives of four kinds, each from its own distribution, never the user's own training items.

| kind | drawn from | probability |
|---|---|---|
| in-group | the positive's group | max(train_count, 1/2) ** popularity_exponent |
| easy | the whole catalogue | the same |
| exposed | what the user was shown in training and never took | uniform |
| mined | the positive's nearest wrong items under a model | uniform |
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from beam_jobs.common.arrays import Bool, Float64, Int64
from beam_jobs.sampling.alias import AliasTables
from beam_jobs.sampling.uniform import UniformLists
from contracts.names import PADDING_INDEX

_ROUNDS = 16  # of rejection, before drawing from the exact distribution of what is left
_TILE = 1 << 12  # targets whose draws are made and checked while in the processor's cache
_BITMAP_BITS = 1 << 28  # 32 MiB
_BIT = np.uint8(1) << np.arange(8, dtype=np.uint8)


class Proposal(Protocol):
    """A distribution over 0-based items for each key."""

    @property
    def sizes(self) -> Int64:
        """[num_keys] items that have a probability."""

    def draw(self, keys: Int64, number: int, rng: np.random.Generator) -> Int64:
        """[len(keys), number] items; no key's distribution may be empty."""

    def of(self, key: int) -> tuple[Int64, Float64]:
        """[size] items of a key, and their weights."""


class WindowNegatives:
    """Draws negatives for targets.

    Each method takes the targets' `users`, numbered as in `owned`, and, if the draws depend on them, their `items`
    (`item_index`), both [num_targets]. It returns [num_targets * number] `item_index`, target-major. If a user owns all
    items that could be drawn, there is no negative, and `PADDING_INDEX` stands in its place.
    """

    def __init__(
        self, probabilities: Float64, groups: Int64, num_groups: int, neighbors: UniformLists | None = None
    ) -> None:
        """Builds alias tables.

        Args:
            probabilities: [num_items] of `item_index` 1..num_items, over the catalogue.
            groups: [num_items] group_id.
            num_groups: K.
            neighbors: the items that each item's mined negatives come from.
        """
        self._groups = groups
        self._in_group = AliasTables(probabilities, groups, num_groups)
        self._easy = AliasTables(probabilities, np.zeros_like(groups), 1)
        self._neighbors = neighbors or UniformLists(np.zeros(0, np.int64), np.zeros_like(groups))

    def in_group(self, users: Int64, items: Int64, number: int, owned: OwnedItems, rng: np.random.Generator) -> Int64:
        """From each target's own group."""
        return draw_negatives(self._in_group, self._groups[items - 1], users, number, owned, rng)

    def easy(self, users: Int64, number: int, owned: OwnedItems, rng: np.random.Generator) -> Int64:
        """From the whole catalogue."""
        return draw_negatives(self._easy, np.zeros_like(users), users, number, owned, rng)

    def exposed(
        self, users: Int64, number: int, exposures: UniformLists, owned: OwnedItems, rng: np.random.Generator
    ) -> Int64:
        """From each user's list of `exposures`."""
        return draw_negatives(exposures, users, users, number, owned, rng)

    def mined(self, users: Int64, items: Int64, number: int, owned: OwnedItems, rng: np.random.Generator) -> Int64:
        """From each target's neighbours."""
        return draw_negatives(self._neighbors, items - 1, users, number, owned, rng)


def exposures_of(users: Int64, items: Int64, owned: OwnedItems, num_users: int) -> UniformLists:
    """Each user's distinct items, 0-based, among [num_pairs] (user, `item_index`) pairs, without owned items."""
    free = np.flatnonzero(~owned.contains(users, items))
    width = int(items.max(initial=0)) + 1
    pairs = np.sort(users[free] * width + items[free])  # `np.unique` takes ten times as long for pairs as for numbers
    of_user, item = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], width)
    return UniformLists(item - 1, np.bincount(of_user, minlength=num_users))


def draw_negatives(
    proposal: Proposal, keys: Int64, users: Int64, number: int, owned: OwnedItems, rng: np.random.Generator
) -> Int64:
    """[num_targets * number] `item_index` drawn from a proposal, given that the user does not own them.

    Rejection leaves the proposal's distribution, restricted to items that are not owned, and normalised. For users who
    own nearly all, draws come from that distribution itself after `_ROUNDS`, so the result is exact.

    Args:
        proposal: what to draw from.
        keys: [num_targets] the proposal's key of each target.
        users: [num_targets] numbered as in `owned`.
        number: negatives per target.
        owned: the users' own items.
        rng: source of randomness.
    """
    possible = proposal.sizes[keys] > 0
    if not possible.all():
        result = np.full((len(keys), number), PADDING_INDEX)
        drawn = draw_negatives(proposal, keys[possible], users[possible], number, owned, rng)
        result[possible] = drawn.reshape(-1, number)
        return result.ravel()
    drawn, parts = np.empty(len(keys) * number, np.int64), [np.zeros(0, np.int64)]
    for start in range(0, len(keys), _TILE):
        tile = slice(start, start + _TILE)
        items = proposal.draw(keys[tile], number, rng) + 1
        drawn[start * number : start * number + items.size] = items.ravel()
        parts.append(np.flatnonzero(owned.contains(users[tile, None], items)) + start * number)
    rejected = np.concatenate(parts)
    for _ in range(_ROUNDS):
        if not len(rejected):
            return drawn
        target = rejected // number
        drawn[rejected] = proposal.draw(keys[target], 1, rng)[:, 0] + 1
        rejected = rejected[owned.contains(users[target], drawn[rejected])]
    target = rejected // number
    pairs, place, counts = np.unique(
        np.stack([users[target], keys[target]]), axis=1, return_inverse=True, return_counts=True
    )
    of_pair = np.split(rejected[np.argsort(place, kind="stable")], np.cumsum(counts))[:-1]
    for (user, key), chosen in zip(pairs.T.tolist(), of_pair, strict=True):
        items, weights = proposal.of(key)
        free = ~owned.contains(np.full(len(items), user), items + 1)
        drawn[chosen] = _from_remainder(items[free], weights[free], len(chosen), rng)
    return drawn


def _from_remainder(items: Int64, weights: Float64, number: int, rng: np.random.Generator) -> Int64:
    if not len(items):
        return np.full(number, PADDING_INDEX)
    cumulative = np.cumsum(weights)
    place = np.searchsorted(cumulative, rng.random(number) * cumulative[-1], side="right")
    return items[np.minimum(place, len(items) - 1)] + 1


class OwnedItems:
    """Which (user, item) pairs are training positives."""

    def __init__(self, users: Int64, items: Int64, num_users: int, num_items: int) -> None:
        """Indexes the pairs.

        Args:
            users: [num_positives] user numbers in 0..num_users - 1.
            items: [num_positives] `item_index`.
            num_users: how many users there are.
            num_items: size of the catalogue.
        """
        self._width = num_items + 1
        keys = users * self._width + items
        self._bitmap: npt.NDArray[np.uint8] | None = None
        if num_users * self._width <= _BITMAP_BITS:
            # One bit per pair: eight times less memory to clear, and more of it in the processor's cache.
            self._bitmap = np.zeros(num_users * self._width // 8 + 1, np.uint8)
            np.bitwise_or.at(self._bitmap, keys >> 3, _BIT[keys & 7])
        else:
            # Only sorted, since duplicates are found as well: `np.unique` takes tens of times as long.
            self._keys = np.append(np.sort(keys), np.iinfo(np.int64).max)  # so that every search ends at a key

    def contains(self, users: Int64, items: Int64) -> Bool:
        """Whether each user owns each item; the shapes only need to broadcast."""
        # Not a function that `__init__` chooses and keeps: an object that refers to itself waits for Python's cycle
        # collector, which counts objects, not their bytes, and 32 MiB per bucket would wait with it.
        keys = users * self._width + items
        found: Bool
        if self._bitmap is not None:
            found = (self._bitmap[keys >> 3] & _BIT[keys & 7]) != 0
        else:
            found = self._keys[np.searchsorted(self._keys, keys)] == keys
        return found
