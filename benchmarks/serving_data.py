"""Synthetic items and users for the serving benchmark."""

from __future__ import annotations

import numpy as np

DIM = 64
_SPREAD = 0.5
_CLUSTERS = 40


class Data:
    """Clustered items in K groups of uneven sizes, and users with one vector per group, near an item of the group.

    Attributes:
        items: float32 [num_items, DIM], sorted by group.
        group_ids: int32 [num_items].
        members: items of each group, int32 [size].
        queries: float32 [num_users, num_groups, DIM].
        intent: float32 [num_users, num_groups], p(group | user).
    """

    def __init__(self, num_items: int, num_groups: int, num_users: int = 256):
        rng = np.random.default_rng(0)
        centres = rng.normal(0, 1, [num_groups, _CLUSTERS, DIM])
        share = rng.dirichlet(np.full(num_groups, 3.0))
        extra = rng.choice(num_groups, num_items - num_groups, p=share)
        self.group_ids = np.sort(np.concatenate([np.arange(num_groups), extra])).astype(np.int32)
        cluster = rng.integers(0, _CLUSTERS, num_items)
        self.items = self._near(rng, centres[self.group_ids, cluster])
        self.members = [np.flatnonzero(self.group_ids == g).astype(np.int32) for g in range(num_groups)]
        picks = np.stack([rng.choice(items, num_users) for items in self.members], axis=1)
        self.queries = self._near(rng, self.items[picks])
        logits = rng.normal(0, 1, [num_users, num_groups])
        self.intent = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)

    @property
    def global_queries(self) -> np.ndarray:
        """float32 [num_users, 1, DIM]: one vector per user, that of the likeliest group."""
        return self.queries[np.arange(len(self.queries)), self.intent.argmax(axis=1)][:, None]

    @staticmethod
    def _near(rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
        return (points + rng.normal(0, _SPREAD, points.shape)).astype(np.float32)
