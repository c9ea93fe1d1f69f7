"""The servable's answer by brute force in NumPy, from the outputs of its two embedding signatures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.merge import Merge
from trainer.scoring import fill_quotas, floored_log_intent, quotas


@dataclass(frozen=True)
class Corpus:
    """Every item, as `candidate_embedding` gives it.

    Attributes:
        embeddings: float32 [num_items, dim].
        group_ids: int32 [num_items].
    """

    embeddings: np.ndarray
    group_ids: np.ndarray


def exact_scores(corpus: Corpus, queries: np.ndarray, intent: np.ndarray, alpha: float) -> np.ndarray:
    """score(u, i) of every item, float32 [batch_size, num_items].

    Args:
        corpus: the items.
        queries: float32 [batch_size, num_groups, dim].
        intent: float32 [batch_size, num_groups], p(group | user).
        alpha: exponent of the intent.
    """
    scores = np.empty([len(queries), len(corpus.group_ids)], np.float32)
    for group in np.unique(corpus.group_ids):
        members = np.flatnonzero(corpus.group_ids == group)
        scores[:, members] = queries[:, group] @ corpus.embeddings[members].T
    with np.errstate(divide="ignore"):
        log_intent = floored_log_intent(np.log(intent))
    return scores + (alpha * log_intent[:, corpus.group_ids]).astype(np.float32)


def exact_selection(
    corpus: Corpus,
    scores: np.ndarray,
    excluded: np.ndarray,
    intent: np.ndarray,
    merge: Merge,
    num_candidates: int,
    alpha: float,
) -> np.ndarray:
    """bool [batch_size, num_items], the items that the exact merge returns; `excluded` is bool, likewise."""
    allowed = np.where(excluded, -np.inf, scores)
    if merge == "score":
        return (_rank(allowed) < num_candidates) & ~excluded
    with np.errstate(divide="ignore"):
        log_intent = np.log(intent)
    num_groups = intent.shape[1]
    available = np.stack([(~excluded[:, corpus.group_ids == g]).sum(axis=1) for g in range(num_groups)], axis=1)
    budgets = fill_quotas(quotas(log_intent, num_candidates, alpha), available, log_intent)
    selected = np.zeros_like(excluded)
    for group in range(num_groups):
        members = np.flatnonzero(corpus.group_ids == group)
        selected[:, members] = _rank(allowed[:, members]) < budgets[:, group : group + 1]
    return selected & ~excluded


def _rank(scores: np.ndarray) -> np.ndarray:
    """int64 [batch_size, width]: 0 for the best of a row, and so on."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(scores.shape[1]), order.shape), axis=1)
    return ranks
