"""Merging the groups' candidates into one list. NumPy; the servable's graph is tested against this.

The score of item i for user u, with e the user's vector for the item's group and p the intent:

    score(u, i) = <e_{u,g(i)}, v_i>

for a model trained to compare items of all groups; otherwise (`Config.intent_in_score`)

    score(u, i) = <e_{u,g(i)}, v_i> + log max(p(g(i) | u), 1e-20)

merge "score": the M items with the highest scores.
merge "quota": group g gets M_g places, in proportion to p(g | u)^alpha (alpha 0: equal shares,
large alpha: the best group only), filled with its items of the highest scores; a group without items has
no share, and one with too few passes its places on to the others in order of intent. The list is ordered by score.
exploration: `num_explored` places go to the best cold items, and the merge fills the others.
"""

from __future__ import annotations

import math

import numpy as np

MIN_PROBABILITY = 1e-20


def floored_log_intent(log_intent: np.ndarray) -> np.ndarray:
    """log max(p, 1e-20), of any shape."""
    return np.maximum(log_intent, np.log(MIN_PROBABILITY))


def quotas(log_weight: np.ndarray, num_candidates: int | np.ndarray, available: np.ndarray) -> np.ndarray:
    """M_g = M w_g / sum w over the groups that have items, rounded so that each row sums to M.

    Rounding is cumulative: M_g = round(C_g) - round(C_{g-1}) with C the cumulative sum of the exact
    shares in order of group_id and round(x) = floor(x + 0.5).

    Args:
        log_weight: float [num_users, num_groups], alpha log p(g | u); -inf: the group may not answer.
        num_candidates: M, or int [num_users], one for each user.
        available: int [num_users, num_groups], items that the group has for the user.

    Returns:
        int64 [num_users, num_groups]; 0 for a user for whom no group has items.
    """
    log_weight = np.where(available > 0, log_weight.astype(np.float64), -np.inf)
    largest = log_weight.max(axis=1, keepdims=True)
    running = np.cumsum(np.exp(log_weight - np.where(np.isfinite(largest), largest, 0)), axis=1)
    shares = np.divide(running, running[:, -1:], out=np.zeros_like(running), where=running[:, -1:] > 0)
    places = np.reshape(num_candidates, [-1, 1])
    return np.diff(np.floor(places * shares + 0.5).astype(np.int64), axis=1, prepend=0)


def num_explored(share: float, num_candidates: int) -> int:
    """Number of places in a list of M that go to the best cold items: round(share M), halves rounded up."""
    return math.floor(share * num_candidates + 0.5)


def fill_quotas(quota: np.ndarray, available: np.ndarray, log_intent: np.ndarray) -> np.ndarray:
    """Places per group after groups with fewer items than their quota have passed places on.

    The places left over go to the group with the highest intent until it has no items left, then to
    the next (ties: the lower group_id). A row sums to min(M, all available items).

    Args:
        quota, available: int64 [num_users, num_groups].
        log_intent: float [num_users, num_groups].

    Returns:
        int64 [num_users, num_groups].
    """
    taken = np.minimum(quota, available)
    left_over = (quota - taken).sum(axis=1, keepdims=True)
    order = np.argsort(-log_intent, axis=1, kind="stable")
    spare = np.take_along_axis(available - taken, order, axis=1)
    before = np.cumsum(spare, axis=1) - spare
    extra = np.clip(left_over - before, 0, spare)
    np.put_along_axis(taken, order, np.take_along_axis(taken, order, axis=1) + extra, axis=1)
    return taken
