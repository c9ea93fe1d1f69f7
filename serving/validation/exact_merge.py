"""The servable's answer by brute force in NumPy, from the outputs of its two embedding signatures.

Written from the definition of each merge, not from the graph: every item is scored, and a list holds the best of
those that may be in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from contracts.names import Merge
from trainer.evaluation.merge import fill_quotas, floored_log_intent, quotas
from trainer.evaluation.top_k import top_k

_SCORES_AT_ONCE = 2**24
"""User-item scores that are ranked at a time: a few rows if the catalogue is large."""


@dataclass(frozen=True)
class Corpus:
    """Every item, as `candidate_embedding` gives it.

    Attributes:
        embeddings: float32 [num_items, dim].
        group_ids: int32 [num_items].
        is_cold: bool [num_items], whether the item has no training events.
    """

    embeddings: np.ndarray
    group_ids: np.ndarray
    is_cold: np.ndarray


@dataclass(frozen=True)
class RowControls:
    """The merge settings of each row, as `Controls` holds them in the graph.

    Attributes:
        num_candidates: int [batch_size], M.
        alpha: float [batch_size].
        merge: str [batch_size].
        boost: float [batch_size, num_groups], 0 = the group may not answer.
        max_groups: int [batch_size], 0 = all.
        num_exploration: int [batch_size]; at most M of them count.
        intent_in_score: a property of the model, see `Config`.
    """

    num_candidates: np.ndarray
    alpha: np.ndarray
    merge: np.ndarray
    boost: np.ndarray
    max_groups: np.ndarray
    num_exploration: np.ndarray
    intent_in_score: bool

    @classmethod
    def alike(
        cls,
        rows: int,
        num_groups: int,
        merge: Merge,
        num_candidates: int,
        alpha: float,
        intent_in_score: bool = False,
        num_exploration: int = 0,
    ) -> RowControls:
        """The same controls for each of `rows` rows, without boosts or a limit on groups."""
        return cls(
            np.full(rows, num_candidates),
            np.full(rows, alpha),
            np.full(rows, merge, object),
            np.ones([rows, num_groups]),
            np.zeros(rows, int),
            np.full(rows, num_exploration),
            intent_in_score,
        )

    def of_rows(self, rows: slice) -> RowControls:
        """The controls of some of the rows."""
        per_row = {name: value[rows] for name, value in vars(self).items() if name != "intent_in_score"}
        return RowControls(**per_row, intent_in_score=self.intent_in_score)


@dataclass(frozen=True)
class Selection:
    """The result of the exact merge.

    Attributes:
        scores: float32 [batch_size, num_items], score(u, i); -inf if the group may not answer.
        explored: bool [batch_size, num_items], chosen for exploration.
        merged: bool [batch_size, num_items], chosen by the merge.
    """

    scores: np.ndarray
    explored: np.ndarray
    merged: np.ndarray


def exact_selection(
    corpus: Corpus, queries: np.ndarray, intent: np.ndarray, excluded: np.ndarray, controls: RowControls
) -> Selection:
    """Ranks every item for every row.

    Args:
        corpus: the items.
        queries: float32 [batch_size, num_groups, dim].
        intent: float32 [batch_size, num_groups], p(group | user).
        excluded: bool [batch_size, num_items].
        controls: of each row.
    """
    size = max(1, _SCORES_AT_ONCE // max(1, len(corpus.group_ids)))
    parts = []
    for start in range(0, max(1, len(queries)), size):
        rows = slice(start, start + size)
        parts.append(_select(corpus, queries[rows], intent[rows], excluded[rows], controls.of_rows(rows)))
    return Selection(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.explored for part in parts]),
        np.concatenate([part.merged for part in parts]),
    )


def _select(
    corpus: Corpus, queries: np.ndarray, intent: np.ndarray, excluded: np.ndarray, controls: RowControls
) -> Selection:
    with np.errstate(divide="ignore"):
        log_intent, log_boost = floored_log_intent(np.log(intent)), np.log(controls.boost)
    log_weight = controls.alpha[:, None] * log_intent + log_boost
    scores = _scores(corpus, queries, log_boost + log_intent * controls.intent_in_score)
    allowed = ~excluded & np.isfinite(scores)
    num_exploration = np.minimum(controls.num_exploration, controls.num_candidates)
    explored = _among_best(scores, allowed & corpus.is_cold, num_exploration)
    allowed &= ~explored
    places = controls.num_candidates - explored.sum(axis=1)

    of_groups = [allowed[:, corpus.group_ids == group].sum(axis=1) for group in range(intent.shape[1])]
    available = np.stack(of_groups, axis=1)
    preference = np.where(available > 0, log_intent + log_boost, -np.inf)
    turn = np.argsort(np.argsort(-preference, axis=1, kind="stable"), axis=1)
    probed = turn < np.where(controls.max_groups > 0, controls.max_groups, intent.shape[1])[:, None]
    available = np.where(probed, available, 0)
    allowed &= probed[:, corpus.group_ids]

    merged = np.zeros_like(allowed)
    if (by_score := controls.merge == "score").any():
        merged[by_score] = _among_best(scores[by_score], allowed[by_score], places[by_score])
    if not by_score.all():
        in_group = _rank_in_group(corpus, scores, allowed, int(places.max(initial=0)))
        dealt = in_group * intent.shape[1] + turn[:, corpus.group_ids]
        # Normal floats by their bits, which are ordered like integers; as a number, a place beyond 2^24 is rounded.
        key = -(dealt + (1 << 23)).astype(np.int32).view(np.float32)
        in_turn = _among_best(key, allowed & (in_group < places[:, None]), places)
        merged |= (controls.merge == "round_robin")[:, None] & in_turn
        budgets = fill_quotas(quotas(log_weight, places, available), available, preference)
        within = in_group < np.take_along_axis(budgets, np.broadcast_to(corpus.group_ids, scores.shape), axis=1)
        merged |= (controls.merge == "quota")[:, None] & within
    return Selection(scores, explored, merged & allowed)


def _scores(corpus: Corpus, queries: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """float32 [batch_size, num_items]."""
    scores = np.empty([len(queries), len(corpus.group_ids)], np.float32)
    for group in np.unique(corpus.group_ids):
        members = np.flatnonzero(corpus.group_ids == group)
        scores[:, members] = queries[:, group] @ corpus.embeddings[members].T
    return scores + offset[:, corpus.group_ids].astype(np.float32)


def _rank_in_group(corpus: Corpus, scores: np.ndarray, allowed: np.ndarray, limit: int) -> np.ndarray:
    ranks = np.empty(scores.shape, np.int32)
    for group in np.unique(corpus.group_ids):
        members = np.flatnonzero(corpus.group_ids == group)
        ranks[:, members] = _rank(scores[:, members], allowed[:, members], limit)
    return ranks


def _among_best(scores: np.ndarray, allowed: np.ndarray, number: np.ndarray) -> np.ndarray:
    """bool [batch_size, width], whether a score is among the `number` [batch_size] best allowed ones of its row."""
    return allowed & (_rank(scores, allowed, int(number.max(initial=0))) < number[:, None])


def _rank(scores: np.ndarray, allowed: np.ndarray, limit: int) -> np.ndarray:
    """int32 [batch_size, width], ranks among a row's allowed scores, 0 for the best; `limit` from there on."""
    best = top_k(np.where(allowed, scores, np.float32(-np.inf)), min(limit, scores.shape[1]))
    ranks = np.full(scores.shape, limit, np.int32)
    np.put_along_axis(ranks, best, np.arange(best.shape[1], dtype=np.int32), axis=1)
    return ranks
