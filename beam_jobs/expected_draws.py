"""How often each item is expected among draws of negatives, of which no user is given what is his own.

What many users took is drawn less often than by the sampling probability alone, and the rest more often: the ten most
popular items of MovieLens-100K a third as often. A logQ of that probability counts them at a third of what they are.
"""

from __future__ import annotations

import numpy as np

from beam_jobs.arrays import Bool, Float64, Int64
from beam_jobs.event_order import sort_with_places


class ExpectedDraws:
    """Sums up, user by user, what one draw a target is expected to be, each draw from its target's group.

    A draw for user u from group g is item i of g, which u does not own, with probability q_i / (Q_g - Q_gu): Q_g is
    the sum of q over the group, and Q_gu that over what u owns of it. Users who own all of a group have no draw.
    """

    def __init__(self, probabilities: Float64, groups: Int64):
        """Begins with no users.

        Args:
            probabilities: [num_items] q, of any scale.
            groups: [num_items] group of each item; zeros for draws from the whole catalogue.
        """
        self._q, self._groups = probabilities, groups
        self._num_groups = int(groups.max(initial=0)) + 1
        self._mass = np.bincount(groups, probabilities, self._num_groups)
        self._sizes = np.bincount(groups, minlength=self._num_groups)
        # Sums of T / (Q_g - Q_gu), where u has T targets in g: over all users, and over those who own an item.
        self._of_all, self._of_owners = np.zeros(self._num_groups), np.zeros(len(groups))

    def add(self, users: Int64, items: Int64, is_target: Bool) -> None:
        """All that some users own, each `item_index` of a user once, and which of it are targets; [num_owned] each."""
        if not len(users):
            return
        keys, place = sort_with_places(users * self._num_groups + self._groups[items - 1])
        item = items[place] - 1
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        sizes, group = np.diff(starts, append=len(keys)), keys[starts] % self._num_groups
        can_draw = sizes < self._sizes[group]
        left = self._mass[group] - np.add.reduceat(self._q[item], starts)
        targets = np.add.reduceat(is_target[place].astype(np.float64), starts)
        rate = np.where(can_draw, targets / np.where(can_draw, left, 1), 0.0)
        self._of_all += np.bincount(group, rate, self._num_groups)
        np.add.at(self._of_owners, item, np.repeat(rate, sizes))

    def of_items(self) -> Float64:
        """[num_items] the draws that are expected of each."""
        rates = self._of_all[self._groups] - self._of_owners
        expected: Float64 = np.maximum(rates, 0) * self._q  # of what all own, rounding leaves a little of either sign
        return expected


def draw_shares(expected: Float64, groups: Int64, probabilities: Float64) -> Float64:
    """[num_items] each item's part of its group's draws; by `probabilities` in a group that nothing is drawn from."""
    num_groups = int(groups.max(initial=0)) + 1
    totals = np.bincount(groups, expected, num_groups)[groups]
    mass = np.bincount(groups, probabilities, num_groups)[groups]
    return np.where(totals > 0, expected / np.where(totals > 0, totals, 1), probabilities / mass)
