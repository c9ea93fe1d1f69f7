"""Alias tables: a draw from any discrete distribution in constant time, many at once."""

from __future__ import annotations

import numpy as np

from beam_jobs.common.arrays import Float64, Int64


class AliasTables:
    """One table per group, concatenated (Walker 1977, Vose 1991).

    Attributes:
        items: [num_items] item of each slot, a group's slots side by side.
        starts: [num_groups + 1] first slot of each group.
        keep: [num_items] probability that a slot yields its own item rather than that of `alias`.
        alias: [num_items] the other slot.
    """

    def __init__(self, weights: Float64, groups: Int64, num_groups: int) -> None:
        """Builds the tables.

        Args:
            weights: [num_items] positive, of any scale; normalised within each group.
            groups: [num_items] group of each item.
            num_groups: groups without items are allowed, and cannot be drawn from.
        """
        self._weights = weights
        self.items = np.argsort(groups, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=num_groups))])
        self.keep = np.ones(len(weights))
        self.alias = np.arange(len(weights))
        for group in range(num_groups):
            start, stop = self.starts[group], self.starts[group + 1]
            if stop - start > 1:
                keep, alias = _build(weights[self.items[start:stop]])
                self.keep[start:stop], self.alias[start:stop] = keep, alias + start
        # The alias's item and the slot's own, side by side: one look-up for either, in the same cache line.
        self._either = np.stack([self.items[self.alias], self.items], axis=1).ravel()

    def draw(self, groups: Int64, number: int, rng: np.random.Generator) -> Int64:
        """[num_groups_asked, number] items, a row from each group asked for.

        One uniform number yields both slot and coin. u * size never rounds up to size: 1 - u is at least 2^-53, and
        size * 2^-53 at least half the distance from size to the number below it.
        """
        coin = rng.random((len(groups), number))
        coin *= self.sizes[groups][:, None]
        slot = coin.astype(np.int64)
        coin -= slot
        slot += self.starts[groups][:, None]
        keeps = coin < self.keep.take(slot)
        slot *= 2
        slot += keeps
        return self._either.take(slot)

    @property
    def sizes(self) -> Int64:
        """[num_groups] number of items in each group."""
        return np.diff(self.starts)

    def of(self, group: int) -> tuple[Int64, Float64]:
        """[size] items of a group, and their weights."""
        items = self.items[self.starts[group] : self.starts[group + 1]]
        return items, self._weights[items]


def _build(weights: Float64) -> tuple[Float64, Int64]:
    """Keep probabilities and aliases of one table, by prefix sums instead of a loop over items.

    Scaled to mean 1, light items lack `1 - w`, heavy ones have `w - 1` to spare. Heavy items fill the
    light ones in order, and one that has given more than it had is itself filled by the next heavy one.
    So the crossings of the two running sums determine which item fills which (Huebschle-Schneider &
    Sanders, "Parallel Weighted Random Sampling", 2019).
    """
    scaled = weights * (len(weights) / weights.sum())
    light, heavy = np.flatnonzero(scaled < 1), np.flatnonzero(scaled >= 1)
    keep, alias = np.ones(len(weights)), np.arange(len(weights))
    if not len(light) or not len(heavy):
        return keep, alias
    lacking = np.concatenate([[0.0], np.cumsum(1 - scaled[light])])
    spare = np.cumsum(scaled[heavy] - 1)
    giver = np.minimum(np.searchsorted(spare, lacking[:-1], side="left"), len(heavy) - 1)
    keep[light], alias[light] = scaled[light], heavy[giver]
    # The first light item after which a heavy one has given more than it had.
    overdrawn = np.searchsorted(lacking, spare[:-1], side="right")
    given = lacking[np.minimum(overdrawn, len(light))]
    keep[heavy[:-1]] = np.clip(1 + spare[:-1] - given, 0, 1)
    alias[heavy[:-1]] = heavy[1:]
    return keep, alias
