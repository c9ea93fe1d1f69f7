"""Exact ranking of the whole catalogue for many users."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from typing_extensions import assert_never

from contracts.names import ScoredMerge
from trainer.catalogue import Catalogue
from trainer.evaluation.merge import fill_quotas, floored_log_intent, num_explored, quotas
from trainer.evaluation.top_k import LAST_KEY, sort_keys, top_k
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged
from trainer.models.two_tower_model import TwoTowerModel
from trainer.progress import line_a_minute

_SCORES_PER_CHUNK = 1_000_000
"""User-item scores held at once (float32, a few copies): few enough for the caches to help."""

_LEAST_USERS_PER_CHUNK = 32
"""For a large catalogue: each read of the embeddings from memory serves this many users."""

_MOST_THREADS = 4
"""Each thread holds a chunk's scores."""

_VECTOR_BYTES = 1 << 28
"""Size of the users' vectors held at once: with hundreds of groups, those of all users outweigh all else in memory."""

_USERS_AT_ONCE = 512
_Found = TypeVar("_Found")


class _Chunk(NamedTuple):
    """Some of the users: their `rows`, and what `encode_users` returns for them."""

    rows: np.ndarray
    queries: np.ndarray
    log_intent: np.ndarray


class ExactRanking:
    """Ranks every unseen item for every user, with one matrix product per group on items sorted by group.

    A model with several interests is ranked by the best of them, with one matrix product per interest.
    Ties are broken by a fixed random order of the items, so that a model that scores all items alike
    performs at chance.
    """

    def __init__(
        self, model: TwoTowerModel, catalogue: Catalogue, users: EvaluationUsers, exploration_share: float = 0.0
    ):
        """`exploration_share`: share of a list for cold items, see `num_explored`; `target_ranks` ignores it."""
        self._model, self._catalogue, self._users = model, catalogue, users
        self._exploration_share = exploration_share
        group = catalogue.group_id[1:]
        tie_break = np.random.default_rng(0).permutation(catalogue.num_items)
        self._items = (np.lexsort([tie_break, group]) + 1).astype(np.int32)
        sizes = np.bincount(group, minlength=catalogue.num_groups)
        ends = np.cumsum(sizes).tolist()
        self._parts = [slice(end - size, end) for end, size in zip(ends, sizes.tolist(), strict=True)]
        self._embeddings = model.catalogue_embeddings()[self._items]
        self._column_of_item = np.zeros(catalogue.num_items + 1, np.int64)
        self._column_of_item[self._items] = np.arange(catalogue.num_items)
        # Across groups, ties are settled by the random order too.
        self._tie_break = tie_break[self._items - 1]
        self._cold_columns = np.flatnonzero(~catalogue.is_trained[self._items])
        self._cold_tie_break = np.argsort(np.argsort(self._tie_break[self._cold_columns]))

    def lists(self, merge: ScoredMerge, alpha: float, length: int) -> np.ndarray:
        """int32 [num_users, min(length, num_items)]: item_index, best first, 0 = absent."""
        return self.lists_of_merges([(merge, alpha)], [length])[0][length]

    def lists_of_merges(
        self, merges: Sequence[tuple[ScoredMerge, float]], lengths: Sequence[int]
    ) -> list[dict[int, np.ndarray]]:
        """For each (merge, alpha): M -> `lists` of M candidates, for each M in `lengths`. Scores are computed once.

        `alpha` shapes quotas. Without exploration, a shorter list by score is a prefix of a longer one; one by quota
        is not.
        """

        def of_chunk(chunk: _Chunk) -> list[dict[int, np.ndarray]]:
            scores = self._scores(chunk)
            return [self._lists(scores, chunk.log_intent, merge, alpha, lengths) for merge, alpha in merges]

        parts = self._each_chunk(of_chunk)
        return [
            {length: np.concatenate([part[merge][length] for part in parts]) for length in lengths}
            for merge in range(len(merges))
        ]

    def target_ranks(self) -> np.ndarray:
        """int64 [number of targets]: ranks of the users' targets, from 0, in `lists("score", ...)` of all items.

        A rank is the number of better items, so no list has to be sorted to find it. A target that is in no
        list, because it was seen, has the largest int64, which no k reaches.
        """

        def of_chunk(chunk: _Chunk) -> np.ndarray:
            scores, targets = self._scores(chunk), self._users.targets.take(chunk.rows)
            columns = self._column_of_item[targets.values]
            own = scores[targets.row_ids(), columns]
            ranks = [
                self._rank(scores[row], column, score)
                for row, column, score in zip(targets.row_ids(), columns, own, strict=True)
            ]
            listed = np.isfinite(own) & (targets.values > 0)
            return np.where(listed, np.array(ranks, np.int64), np.iinfo(np.int64).max)

        return np.concatenate(self._each_chunk(of_chunk))

    def _rank(self, scores: np.ndarray, column: int, score: np.float32) -> int:
        above, reached = int(np.count_nonzero(scores > score)), int(np.count_nonzero(scores >= score))
        if reached - above == 1:
            return above
        tied = np.flatnonzero(scores == score)
        return above + int(np.count_nonzero(self._tie_break[tied] < self._tie_break[column]))

    def _each_chunk(self, work: Callable[[_Chunk], _Found]) -> list[_Found]:
        """Runs `work` on chunks of users, a few at a time: NumPy's parts of it run in parallel."""
        size = max(_LEAST_USERS_PER_CHUNK, _SCORES_PER_CHUNK // self._catalogue.num_items)
        chunks = [np.arange(start, min(start + size, len(self._users))) for start in range(0, len(self._users), size)]
        what = f"rank {self._catalogue.num_items:,} items for {len(self._users):,} users"
        return [found for _, found in zip(line_a_minute(chunks, what), self._found(chunks, work), strict=True)]

    def _found(self, chunks: Sequence[np.ndarray], work: Callable[[_Chunk], _Found]) -> Iterator[_Found]:
        """Yields `work` of each chunk, in order; encodes as many chunks at once as memory allows for their vectors."""
        bytes_per_user = 4 * self._model.num_vectors * self._model.embedding_dim
        at_once = max(1, _VECTOR_BYTES // (bytes_per_user * len(chunks[0])))
        with ThreadPoolExecutor(min(_MOST_THREADS, len(os.sched_getaffinity(0)))) as threads:
            for first in range(0, len(chunks), at_once):
                yield from threads.map(work, self._encoded(chunks[first : first + at_once]))

    def _encoded(self, chunks: Sequence[np.ndarray]) -> list[_Chunk]:
        queries, log_intent = encode_users(self._model, self._users.take(np.concatenate(chunks)))
        ends = np.cumsum([len(rows) for rows in chunks])[:-1]
        return list(map(_Chunk, chunks, np.split(queries, ends), np.split(log_intent, ends)))

    def _scores(self, chunk: _Chunk) -> np.ndarray:
        """float32 [num_rows, num_items] in order of `_items`; seen items are -inf."""
        if self._model.ranked_by == "best_vector":
            scores = self._best_vector_scores(chunk)
        else:
            scores = np.empty((len(chunk.rows), self._catalogue.num_items), np.float32)
            log_intent = floored_log_intent(chunk.log_intent)
            for group, part in enumerate(self._parts):
                np.matmul(chunk.queries[:, group], self._embeddings[part].T, out=scores[:, part])
                if self._model.intent_in_score:
                    scores[:, part] += log_intent[:, group, None]
        seen = self._users.seen.take(chunk.rows)
        scores[seen.row_ids(), self._column_of_item[seen.values]] = -np.inf
        return scores

    def _best_vector_scores(self, chunk: _Chunk) -> np.ndarray:
        """float32 [num_rows, num_items]: max over the active vectors."""
        scores = np.full((len(chunk.rows), self._catalogue.num_items), -np.inf, np.float32)
        for vector in range(chunk.queries.shape[1]):
            active = np.flatnonzero(np.isfinite(chunk.log_intent[:, vector]))
            liked = chunk.queries[active, vector] @ self._embeddings.T
            scores[active] = np.maximum(scores[active], liked)
        return scores

    def _lists(
        self, scores: np.ndarray, log_intent: np.ndarray, merge: ScoredMerge, alpha: float, lengths: Sequence[int]
    ) -> dict[int, np.ndarray]:
        """int32 [num_rows, min(length, num_items)] of each length."""

        def merged(scores: np.ndarray, places: Mapping[int, int | np.ndarray]) -> dict[int, np.ndarray]:
            match merge:
                case "score":
                    return self._score_lists(scores, places)
                case "quota":
                    return self._quota_lists(scores, log_intent, alpha, places)
                case _:
                    assert_never(merge)

        explored = {length: self._num_explored(length) for length in lengths}
        plain = {length: length for length, number in explored.items() if not number}
        lists = merged(scores, plain) if plain else {}
        for length, number in explored.items():
            if number:
                lists[length] = self._with_explored(scores, length, number, merged)
        return lists

    def _num_explored(self, length: int) -> int:
        number = num_explored(self._exploration_share, min(length, self._catalogue.num_items))
        return min(number, len(self._cold_columns))

    def _with_explored(
        self,
        scores: np.ndarray,
        length: int,
        number: int,
        merged: Callable[[np.ndarray, Mapping[int, int | np.ndarray]], dict[int, np.ndarray]],
    ) -> np.ndarray:
        """The best cold items, at most `number`, and what the merge gives from the others, ordered by score."""
        best = self._cold_columns[top_k(scores[:, self._cold_columns], number, self._cold_tie_break)]
        is_there = np.isfinite(np.take_along_axis(scores, best, axis=1))
        others = scores.copy()
        np.put_along_axis(others, best, -np.inf, axis=1)
        found = merged(others, {length: length - is_there.sum(axis=1)})[length]
        items = np.concatenate([np.where(is_there, self._items[best], 0), found], axis=1)
        columns = self._column_of_item[items]
        values = np.where(items > 0, np.take_along_axis(scores, columns, axis=1), -np.inf)
        order = np.lexsort([self._tie_break[columns], -values], axis=1)[:, : found.shape[1]]
        return np.take_along_axis(items, order, axis=1)

    def _score_lists(self, scores: np.ndarray, places: Mapping[int, int | np.ndarray]) -> dict[int, np.ndarray]:
        """`places`: for each length, how many places of a list are filled, for all rows or for each row."""
        columns = top_k(scores, min(max(places), self._catalogue.num_items), self._tie_break)
        best = np.where(np.isfinite(np.take_along_axis(scores, columns, axis=1)), self._items[columns], 0)
        place = np.arange(best.shape[1])
        return {
            length: np.where(place[:length] < np.reshape(number, [-1, 1]), best[:, :length], 0)
            for length, number in places.items()
        }

    def _quota_lists(
        self, scores: np.ndarray, log_intent: np.ndarray, alpha: float, places: Mapping[int, int | np.ndarray]
    ) -> dict[int, np.ndarray]:
        """Finds each group's best items once, as many as its largest quota; each length takes its part of them.

        `places`: as in `_score_lists`.
        """
        available = np.stack([np.isfinite(scores[:, part]).sum(axis=1) for part in self._parts], axis=1)
        log_weight = alpha * floored_log_intent(log_intent.astype(np.float64))
        taken = {
            length: fill_quotas(quotas(log_weight, number, available), available, log_intent).astype(np.int32)
            for length, number in places.items()
        }
        columns, group, place = self._best_of_groups(scores, np.max(list(taken.values()), axis=0))
        lists = {}
        for length, of_length in taken.items():
            kept = place < np.take_along_axis(of_length, group, axis=1)
            lists[length] = np.zeros((len(scores), min(length, self._catalogue.num_items)), np.int32)
            lists[length][np.nonzero(kept)[0], np.cumsum(kept, axis=1)[kept] - 1] = self._items[columns[kept]]
        return lists

    def _best_of_groups(self, scores: np.ndarray, most: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Each row's best items of each group, as many as `most` says, all in order of score.

        Args:
            scores: float32 [num_rows, num_items].
            most: int [num_rows, num_groups].

        Returns:
            Their columns, groups and places within the group, int [num_rows, largest sum of a row of `most`]. The
            filling at the end of a row has a place that no group has.
        """
        widths = most.max(axis=0)
        group = np.repeat(np.arange(len(widths)), widths)
        place = np.concatenate([np.arange(width) for width in widths])
        best = [
            top_k(scores[:, part], width) + part.start
            for part, width in zip(self._parts, widths.tolist(), strict=True)
            if width
        ]
        # Most are only there because another row wants that many of the group: what a row does not take is not sorted.
        wanted = place < most[:, group]
        count = wanted.sum(axis=1)
        filled = np.arange(count.max(initial=0)) < count[:, None]

        def of_rows(values: np.ndarray, filling: int) -> np.ndarray:
            rows = np.full(filled.shape, filling)
            rows[filled] = values
            return rows

        row, position = np.nonzero(wanted)
        # Users who have seen everything have no group to take from.
        column = np.concatenate([np.empty((len(scores), 0), np.int64), *best], axis=1)[wanted]
        order = of_rows(sort_keys(scores[row, column], self._tie_break[column]), LAST_KEY).argsort(axis=1)
        columns, groups, places = (
            np.take_along_axis(of_rows(values, filling), order, axis=1)
            for values, filling in ((column, 0), (group[position], 0), (place[position], scores.shape[1]))
        )
        return columns, groups, places


def encode_users(model: TwoTowerModel, users: EvaluationUsers) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings float32 [num_users, num_vectors, dim] and log intent [num_users, num_vectors].

    One vector per group; or one per interest, with a log intent of 0 for an active one, -inf for another.
    """
    queries = np.empty((len(users), model.num_vectors, model.embedding_dim), np.float32)
    log_intent = np.empty((len(users), model.num_vectors), np.float32)
    order = np.argsort(users.history.lengths, kind="stable")
    step = max(1, _USERS_AT_ONCE // model.passes_of_an_answer)
    for start in range(0, len(order), step):
        rows = order[start : start + step]
        history: Ragged = users.history.take(rows)
        features = model.features_of_users(tf.constant(users.user_index[rows]), tf.constant(users.request[rows]))
        encoded = model.query_embeddings(tf.constant(history.padded()), features)
        queries[rows], log_intent[rows] = encoded[0].numpy(), encoded[1].numpy()
    return queries, log_intent
