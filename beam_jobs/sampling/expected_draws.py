"""How often each item is expected among draws of negatives, in which no user gets their own items.

Items that many users took are drawn less often than the sampling probability alone would suggest, and the rest more
often: the ten most popular items of MovieLens-100K a third as often. A logQ correction by that probability would count
them at a third of what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from beam_jobs.buckets.event_order import sort_with_places
from beam_jobs.common.arrays import Bool, Float64, Int64
from beam_jobs.common.files import read_array, write_array

_LEAST_LEFT = 1e-9
"""As a share of a group's probability. Users who leave less than this, because of a steep popularity exponent, are
skipped: such a small difference is mostly rounding, and its inverse would drown the expected draws of other users."""


class ExpectedDraws:
    """Sums up, user by user, the items expected from one draw per target, each from its target's group.

    A draw for user u from group g is item i of g, which u does not own, with probability q_i / (Q_g - Q_gu): Q_g is
    the sum of q over the group, and Q_gu the sum over those of its items that u owns. Users who own all of a group have
    no draw.
    """

    def __init__(self, probabilities: Float64, groups: Int64):
        """Starts with no users.

        Args:
            probabilities: [num_items] q, of any scale.
            groups: [num_items] group of each item; zeros for draws from the whole catalogue.
        """
        self._q, self._groups = probabilities, groups
        self._num_groups = int(groups.max(initial=0)) + 1
        self._mass = np.bincount(groups, probabilities, self._num_groups)
        self._sizes = np.bincount(groups, minlength=self._num_groups)
        # Sums of T / (Q_g - Q_gu), where u has T targets in g: over all users by group, then over an item's owners.
        self.sums = np.zeros(self._num_groups + len(groups))

    def add(self, users: Int64, items: Int64, is_target: Bool) -> None:
        """Adds all items that some users own, each item once per user, and which of them are targets; [num_owned] each.

        Items are given by `item_index`.
        """
        if not len(users):
            return
        keys, place = sort_with_places(users * self._num_groups + self._groups[items - 1])
        item = items[place] - 1
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes, group = np.diff(starts, append=len(keys)), keys[starts] % self._num_groups
        left = self._mass[group] - np.add.reduceat(self._q[item], starts)
        can_draw = (sizes < self._sizes[group]) & (left > _LEAST_LEFT * self._mass[group])
        targets = np.add.reduceat(is_target[place].astype(np.float64), starts)
        rate = np.where(can_draw, targets / np.where(can_draw, left, 1), 0.0)
        self.sums[: self._num_groups] += np.bincount(group, rate, self._num_groups)
        np.add.at(self.sums, self._num_groups + item, np.repeat(rate, sizes))

    def shares(self) -> Float64:
        """[num_items] expected share of each item in its group's draws; by q if nothing is drawn from the group."""
        of_all, of_owners = np.split(self.sums, [self._num_groups])
        # For items that all users own, rounding leaves a small difference of either sign.
        expected = np.maximum(of_all[self._groups] - of_owners, 0) * self._q
        totals = np.bincount(self._groups, expected, self._num_groups)[self._groups]
        by_q = self._q / self._mass[self._groups]
        shares: Float64 = np.where(totals > 0, expected / np.where(totals > 0, totals, 1), by_q)
        return shares


class DrawsOfWindows(NamedTuple):
    """The expected draws of a bucket's windows, or of all buckets'."""

    in_group: ExpectedDraws
    easy: ExpectedDraws

    @classmethod
    def none(cls, probabilities: Float64, groups: Int64) -> DrawsOfWindows:
        """Starts with no users; the arguments are those of `ExpectedDraws`."""
        return cls(ExpectedDraws(probabilities, groups), ExpectedDraws(probabilities, np.zeros_like(groups)))

    def write(self, path: Path) -> None:
        """Writes the non-zero sums to an .npy file: a bucket has only a few of a large catalogue's items."""
        sums = np.concatenate([draws.sums for draws in self])
        places = np.flatnonzero(sums)
        write_array(path, np.stack([places, sums[places]]))

    def add_written(self, path: Path) -> None:
        """Adds what `write` wrote for other users."""
        places, values = read_array(path)
        sums = np.zeros(sum(len(draws.sums) for draws in self))
        sums[places.astype(np.int64)] = values
        for draws, part in zip(self, np.split(sums, [len(self.in_group.sums)]), strict=True):
            draws.sums += part

    def clear(self) -> None:
        """Goes back to no users."""
        for draws in self:
            draws.sums[:] = 0
