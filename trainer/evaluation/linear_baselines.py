"""The linear baselines: item-kNN and EASE score an item by its co-occurrence with what the user took.

They train no tower, and on small catalogues they are hard to beat (Dacrema et al., RecSys 2019).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
from scipy.linalg.lapack import dpotrf, dpotri, spotrf, spotri

from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from trainer.catalogue import Catalogue
from trainer.evaluation.metrics import hits, monitored_k, recall_at_k
from trainer.evaluation.top_k import top_k
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.taken_items import taken_items
from trainer.progress import line_a_minute

LinearBaseline = Literal["item_knn", "ease"]

log = logging.getLogger(__name__)

_NEIGHBORS = 1000
"""Neighbours of an item that count in item-kNN."""

_SIMILARITIES = ((0.5, 0.0), (0.5, 100.0), (1.0, 100.0))
"""Exponents and shrinkages of item-kNN, tried on validation users.

The plain cosine believes in items that few users took, and on sparse logs may find less than popularity does.
"""

_MOST_SIMILARITIES = 1 << 28
"""Similarities of all items together, 8 bytes each: with more than 268,000 items, fewer neighbours count."""

_PENALTIES = (10.0, 100.0, 1000.0)
"""Penalties of EASE, tried on validation users."""

_HALF_LIVES = (None, 8.0, 4.0, 2.0)
"""Half-lives, in events, of a history item's weight, tried on validation users; None: all items taken weigh alike."""

_EASE_MOST_ITEMS = 12_500
"""EASE inverts a matrix of items by items; of a larger catalogue, it knows only the most popular items."""

_VALUES_AT_ONCE = 1 << 24
"""Scores, or products of users' items, that are held at once."""

_NOTHING_SPEAKS_FOR_IT = -1000.0
"""Score of the most popular item if nothing in a history speaks for it: below what is known, above the next item's.

Each item has its own score, since `top_k` is slow if most scores in a row are equal.
"""


@dataclass(frozen=True)
class LinearModel:
    """Scores of the first items of the catalogue, which are the most popular.

    Attributes:
        weights: float32 [num_known, num_known], row: the item taken, column: the item that it speaks for.
        half_life: see `_HALF_LIVES`.
        settings: with which the weights were made.
    """

    weights: sp.csr_matrix | np.ndarray
    half_life: float | None
    settings: Mapping[str, float]

    def lists(self, users: EvaluationUsers, num_items: int, length: int) -> np.ndarray:
        """int32 [num_users, min(length, num_items)], item_index, 0 = absent; equal scores by popularity."""
        length = min(length, num_items)
        size = max(1, _VALUES_AT_ONCE // num_items)
        chunks = [np.arange(start, min(start + size, len(users))) for start in range(0, len(users), size)]
        parts = []
        for rows in line_a_minute(chunks, f"rank {num_items:,} items for {len(users):,} users by co-occurrence"):
            scores = self._scores(users.take(rows), num_items)
            columns = top_k(scores, length)
            is_there = np.isfinite(np.take_along_axis(scores, columns, axis=1))
            parts.append(np.where(is_there, columns + 1, 0).astype(np.int32))
        return np.concatenate(parts)

    def _scores(self, users: EvaluationUsers, num_items: int) -> np.ndarray:
        """float32 [num_users, num_items]; seen items are -inf."""
        scores = np.tile(np.float32(_NOTHING_SPEAKS_FOR_IT) - np.arange(num_items, dtype=np.float32), (len(users), 1))
        num_known = self.weights.shape[0]
        liked = self._taken(users, num_items)[:, :num_known] @ self.weights
        if sp.issparse(liked):
            found = liked.tocoo()
            scores[found.row, found.col] = found.data
        else:
            scores[:, :num_known] = liked
        scores[users.seen.row_ids(), users.seen.values - 1] = -np.inf
        return scores

    def _taken(self, users: EvaluationUsers, num_items: int) -> sp.csr_matrix:
        """float32 [num_users, num_items]: how much each item of a user's history counts."""
        if self.half_life is None:
            row, item, weight = users.seen.row_ids(), users.seen.values, np.ones(len(users.seen.values))
        else:
            row, item, lengths = users.history.row_ids(), users.history.values, users.history.lengths
            age = np.repeat(users.history.splits[1:], lengths) - 1 - np.arange(len(item))
            weight = 0.5 ** (age / self.half_life)
            is_positive = item > 0
            row, item, weight = row[is_positive], item[is_positive], weight[is_positive]
        return sp.csr_matrix((weight.astype(np.float32), (row, item - 1)), shape=(len(users), num_items))


def linear_lists(
    config: Config, workdir: Workdir, name: LinearBaseline, catalogue: Catalogue, users: EvaluationUsers, length: int
) -> np.ndarray:
    """Each user's best-scored unseen items by a baseline whose settings are chosen on the validation users.

    Returns:
        int32 [num_users, min(length, num_items)], item_index, 0 = absent.
    """
    validation = EvaluationUsers.load(workdir, Split.VALIDATION, config.training.max_validation_users)
    k = monitored_k(config.training.monitor_k, catalogue.num_items)

    def recall(model: LinearModel) -> float:
        hit = hits(model.lists(validation, catalogue.num_items, k), validation.targets)
        return float(recall_at_k(hit, validation.targets.lengths, k).mean())

    taken = taken_items(workdir, catalogue.num_items)
    of_name = knn_models(taken) if name == "item_knn" else ease_models(taken)
    best, model = max(((recall(model), model) for model in of_name), key=lambda found: found[0])
    chosen = "".join(f"{what} {value:g}, " for what, value in model.settings.items())
    decay = f"half-life {model.half_life:g}" if model.half_life else "no decay"
    log.info("%s: chose %s%s by recall@%d of validation users (%.4f)", name, chosen, decay, k, best)
    return model.lists(users, catalogue.num_items, length)


def knn_models(taken: sp.csr_matrix) -> Iterator[LinearModel]:
    """Item-kNN: of each item taken, the nearest neighbours by the users in common (Sarwar et al., WWW 2001).

    If n_i users took i and n_ij took both, the weight of i for j is n_ij / (n_i^e n_j^(1 - e) + shrinkage): with e = .5
    the cosine, with e = 1 the share of i's users who took j, too (Deshpande & Karypis, TOIS 2004). An exponent between
    is the asymmetric cosine of Aiolli (RecSys 2013); the shrinkage is that of Bell & Koren (ICDM 2007).

    Yields:
        A model for each similarity and half-life, weights [num_items, num_items]; `taken` is that of `taken_items`.
    """
    for exponent, shrinkage in _SIMILARITIES:
        weights = _neighbor_weights(taken, exponent, shrinkage)
        for half_life in _HALF_LIVES:
            yield LinearModel(weights, half_life, {"exponent": exponent, "shrinkage": shrinkage})


def _neighbor_weights(taken: sp.csr_matrix, exponent: float, shrinkage: float) -> sp.csr_matrix:
    """float32 [num_items, num_items], see `knn_models`."""
    # Counted first, then divided: in float32, a million shares of a millionth each do not sum to 1.
    counted = taken.astype(np.int32)
    by_column, num_items = counted.tocsc(), taken.shape[1]
    neighbors = min(_NEIGHBORS, max(1, _MOST_SIMILARITIES // num_items))
    # The most popular items, which come first, have the most neighbours: in the worst case, all other items.
    size = max(1, _VALUES_AT_ONCE // num_items)
    users = np.maximum(taken.getnnz(axis=0), 1).astype(np.float64)
    parts = []
    for start in line_a_minute(range(0, num_items, size), f"neighbours of {num_items:,} items"):
        common = (by_column[:, start : start + size].T @ counted).tocoo()
        is_other = common.col != common.row + start
        row, column = common.row[is_other], common.col[is_other]
        scale = users[row + start] ** exponent * users[column] ** (1 - exponent) + shrinkage
        parts.append(_nearest(row, column, (common.data[is_other] / scale).astype(np.float32), common.shape, neighbors))
    return sp.vstack(parts).tocsr()


def _nearest(
    row: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int], neighbors: int
) -> sp.csr_matrix:
    """The `neighbors` largest values of each row of a matrix of that shape, given by its entries."""
    order = np.lexsort([column, -value, row])
    row, column, value = row[order], column[order], value[order]
    first = np.searchsorted(row, np.arange(shape[0]))
    kept = np.arange(len(row)) - first[row] < neighbors
    return sp.csr_matrix((value[kept], (row[kept], column[kept])), shape=shape)


def ease_models(taken: sp.csr_matrix) -> Iterator[LinearModel]:
    """EASE (Steck, WWW 2019): the weights without a diagonal that best rebuild what users took, by ridge regression.

    With P the inverse of X'X + penalty I, the weight of i for j is -P_ij / P_jj.

    Yields:
        A model for each penalty and half-life, of the most popular items; `taken`, X, is that of `taken_items`.

    Raises:
        ValueError: a penalty is lost in the counts, even in float64.
    """
    known = taken[:, :_EASE_MOST_ITEMS].astype(np.int32)  # float32 does not count beyond 2^24
    gram = (known.T @ known).toarray()
    log.info("ease: inverting a matrix of %d x %d numbers, %d times", *gram.shape, len(_PENALTIES))
    for penalty in _PENALTIES:
        inverse = _inverse(gram, penalty)
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0)
        for half_life in _HALF_LIVES:
            yield LinearModel(weights, half_life, {"penalty": penalty})


def _inverse(gram: np.ndarray, penalty: float) -> np.ndarray:
    """Inverts `gram`, int32 [n, n], with the penalty added to its diagonal: symmetric, positive definite and large.

    Uses float64, which takes twice the memory, if float32 loses the penalty in the counts of very many users.

    Raises:
        ValueError: float64 loses it, too.
    """
    for dtype, factorize, invert in ((np.float32, spotrf, spotri), (np.float64, dpotrf, dpotri)):
        summed: np.ndarray = gram.astype(dtype)
        summed[np.diag_indices(len(gram))] += penalty
        # The transpose is the same matrix, in the order that LAPACK works in without a copy.
        factor, place = factorize(summed.T, lower=True, overwrite_a=True)
        if not place:  # at which it turns out not to be positive definite
            inverse, _ = invert(factor, lower=True, overwrite_c=True)
            lower = np.tril(inverse, -1).astype(np.float32)
            return lower + lower.T + np.diag(np.diag(inverse)).astype(np.float32)
    raise ValueError(
        f"ease: the penalty {penalty:g} is lost in counts this large: leave ease out of evaluation.baselines"
    )
