"""Whole answers at the edges of what a catalogue and a request can be, item by item against plain Python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import Config, ServingConfig, WindowsConfig
from contracts.names import MERGES
from serving.export import save
from serving.graph.exploration import Exploration
from serving.graph.retriever import Retriever
from serving.graph.transform_graphs import VocabularyLookup
from serving.search.exact_index_set import ExactIndexSet
from serving.search.group_index import GroupIndex, build_group_index
from serving.search.scann_index_set import ScannIndexSet
from serving.servable_session import Recommendations, ServableSession
from trainer.catalogue import Catalogue

DIM = 8
SERVING = ServingConfig(num_candidates=7, max_candidates=3000)
CATALOGUES = {
    "one group": [30],
    "one item": [1],
    "one item in the last of many groups": [0] * 9 + [1],
    "small groups, some empty": [3, 0, 1, 0, 40, 1, 2, 0, 9, 0],
    "a hundred": [*np.random.default_rng(1).integers(0, 12, 99), 500],
}
FOUR_HUNDRED = [*np.random.default_rng(2).integers(0, 4, 399), 0]
LEAST_LOG_INTENT = np.float32(math.log(1e-20))


class Towers:
    """A user is whatever the largest item_index of the history is."""

    variables = ()

    def __init__(self, queries: np.ndarray, log_intent: np.ndarray, items: np.ndarray):
        self._queries, self._log_intent, self._items = (tf.constant(of) for of in (queries, log_intent, items))

    def query_embeddings(self, history: tf.Tensor, features: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        user = tf.reduce_max(tf.pad(history, [[0, 0], [1, 0]]), axis=1)
        return tf.gather(self._queries, user), tf.gather(self._log_intent, user)

    def candidate_embeddings(self, item_index: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._items, item_index)


class NoFeatures(tf.Module):
    configs = ()

    def __call__(self, user_id: tf.Tensor, raw: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {}


@dataclass
class Served:
    """A catalogue's arrays, by item_index, log p(group | user) as the merge reads it, and the two servables."""

    group: np.ndarray
    is_cold: np.ndarray
    queries: np.ndarray
    log_intent: np.ndarray
    items: np.ndarray
    sessions: dict[str, ServableSession]

    @property
    def num_items(self) -> int:
        return len(self.group) - 1


def served_by(
    path: Path,
    catalogue: Catalogue,
    towers: Towers,
    items: np.ndarray,
    members: list[np.ndarray],
    built: list[GroupIndex],
) -> dict[str, ServableSession]:
    """The two servables below `path`, which holds the file `ids`."""
    sessions = {}
    for name, index_set in (
        ("exact", ExactIndexSet(items, members)),
        ("scann", ScannIndexSet(built, catalogue.num_groups)),
    ):
        retriever = Retriever(
            Config(serving=SERVING, windows=WindowsConfig(length=50)),
            catalogue,
            towers,
            VocabularyLookup(path / "ids", catalogue.num_items),
            NoFeatures(),
            members,
            index_set,
            Exploration(items, members, catalogue.train_count == 0),
        )
        save(retriever, path / name)
        sessions[name] = ServableSession(path / name, num_threads=1)
    return sessions


@pytest.fixture(scope="module", params=[*CATALOGUES, pytest.param("four hundred", marks=pytest.mark.slow)])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    sizes = CATALOGUES.get(request.param, FOUR_HUNDRED)
    rng, path, num_items = np.random.default_rng(len(sizes)), tmp_path_factory.mktemp("servable"), int(sum(sizes))
    group = np.append(-1, rng.permutation(np.repeat(np.arange(len(sizes)), sizes))).astype(np.int32)
    queries = rng.normal(size=[num_items + 1, len(sizes), DIM]).astype(np.float32)
    logits = rng.normal(0, rng.choice([0.3, 3.0, 60.0], [num_items + 1, 1]), [num_items + 1, len(sizes)])
    logits -= logits.max(axis=1, keepdims=True)
    log_intent = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)
    items = rng.normal(size=[num_items + 1, DIM]).astype(np.float32)
    is_cold = rng.random(num_items + 1) < 0.15
    ids = np.array([f"i{index}" for index in range(1, num_items + 1)], object)
    (path / "ids").write_text("\n".join(ids) + "\n", encoding="utf-8")
    members = [np.flatnonzero(group == one).astype(np.int32) for one in range(len(sizes))]
    built = [build_group_index(one, items[of], queries[:8, one], SERVING) for one, of in enumerate(members) if len(of)]
    catalogue = Catalogue(ids, group, len(sizes), np.where(is_cold, 0, 1), np.zeros(0))
    sessions = served_by(path, catalogue, Towers(queries, log_intent, items), items, members, built)
    yield Served(group, is_cold, queries, np.maximum(log_intent, LEAST_LOG_INTENT), items, sessions)
    for session in sessions.values():
        session.close()


@dataclass
class Asked:
    """One row's request, as the documentation has it."""

    history: list[int]
    num_candidates: int
    merge: str
    alpha: float
    group_boost: list[float]
    groups: list[int]
    max_groups: int
    exclude: list[int]
    num_exploration: int


def expected(served: Served, asked: Asked) -> tuple[list[int], dict[int, float]]:
    """The list, and the score of every item."""
    user, num_groups = max(asked.history, default=0), served.queries.shape[1]
    log_boost = [math.log(min(b, 3.4028235e38)) if b > 0 else -math.inf for b in asked.group_boost]
    listed = [g for g in asked.groups if g >= 0]
    log_boost = [b if not listed or g in listed else -math.inf for g, b in enumerate(log_boost)]
    score, left = {}, set()
    for item in range(1, served.num_items + 1):
        group = int(served.group[item])
        score[item] = float(served.queries[user, group] @ served.items[item]) + log_boost[group]
        if score[item] > -math.inf and item not in asked.history and item not in asked.exclude:
            left.add(item)
    best = sorted(left, key=lambda item: -score[item])
    places = min(asked.num_candidates, SERVING.max_candidates, served.num_items)
    explored = [item for item in best if served.is_cold[item]][: min(asked.num_exploration, places)]
    stacks: list[list[int]] = [[] for _ in range(num_groups)]
    for item in best:
        if item not in explored:
            stacks[served.group[item]].append(item)
    places -= len(explored)
    liking = [float(served.log_intent[user, g]) + log_boost[g] for g in range(num_groups)]
    order = sorted((g for g in range(num_groups) if stacks[g]), key=lambda g: (-liking[g], g))
    order = order[: asked.max_groups] if asked.max_groups > 0 else order
    if asked.merge == "score":
        merged = sorted((item for g in order for item in stacks[g]), key=lambda item: -score[item])[:places]
    elif asked.merge == "round_robin":
        rounds = range(max((len(stacks[g]) for g in order), default=0))
        dealt = [stacks[g][turn] for turn in rounds for g in order if turn < len(stacks[g])]
        return dealt[:places] + explored, score
    else:
        merged = by_quota(served.log_intent[user], log_boost, asked.alpha, stacks, order, places)
    return sorted(merged + explored, key=lambda item: -score[item]), score


def by_quota(
    log_intent: np.ndarray, log_boost: list[float], alpha: float, stacks: list[list[int]], order: list[int], places: int
) -> list[int]:
    weight = {g: np.float32(np.float32(alpha) * log_intent[g]) + np.float32(log_boost[g]) for g in sorted(order)}
    largest = max(weight.values(), default=0.0)
    share = {g: math.exp(float(w) - float(largest)) for g, w in weight.items()}
    total, running, before, taken = sum(share.values()), 0.0, 0, {}
    for g in sorted(order):
        running += share[g]
        edge = math.floor(places * running / total + 0.5)
        taken[g], before = min(edge - before, len(stacks[g])), edge
    spare = places - sum(taken.values())
    for g in order:
        more = min(spare, len(stacks[g]) - taken[g])
        taken[g], spare = taken[g] + more, spare - more
    return [item for g in order for item in stacks[g][: taken[g]]]


def random_request(rng: np.random.Generator, served: Served) -> Asked:
    n, k = served.num_items, served.queries.shape[1]
    some = lambda largest: (rng.permutation(n)[: rng.integers(0, largest + 1)] + 1).tolist()  # noqa: E731
    whole_group = np.flatnonzero(served.group == rng.integers(0, k)).tolist()
    only_few = rng.permutation(k)[: rng.integers(1, 4)].tolist()
    boost = np.where(rng.random(k) < rng.choice([0.0, 0.3]), rng.choice([0.0, 0.01, 5.0, math.inf], k), 1.0)
    return Asked(
        history=some(30),
        num_candidates=int(rng.choice([1, 2, 7, 50, n, n + 1, 2**31 - 1])),
        merge=str(rng.choice(MERGES)),
        alpha=float(rng.choice([0.0, 1.0, -1.0, 0.5, 1000.0])),
        group_boost=boost.tolist(),
        groups=only_few if rng.random() < 0.2 else [],
        max_groups=int(rng.choice([0, 0, 0, 1, 2, k, k + 1])),
        exclude=whole_group if rng.random() < 0.3 else some(20) if rng.random() < 0.5 else [],
        num_exploration=int(rng.choice([0, 0, 0, 1, 5, n + 1])),
    )


def ask(session: ServableSession, rows: list[Asked]) -> Recommendations:
    names = lambda items: [f"i{item}" for item in items]  # noqa: E731
    controls: dict[str, Any] = {
        name: [getattr(row, name) for row in rows]
        for name in ("num_candidates", "merge", "alpha", "group_boost", "groups", "max_groups", "num_exploration")
    }
    excluded = [names(row.exclude) for row in rows]
    return session.recommend([names(row.history) for row in rows], exclude_item_ids=excluded, **controls)


@pytest.mark.parametrize("index", ["scann", "exact"])
@pytest.mark.parametrize("batch_size", [1, 2, 65])
def test_each_answer_is_the_one_that_the_documentation_describes(served: Served, index: str, batch_size: int) -> None:
    for seed in range({1: 16, 2: 8, 65: 1}[batch_size]):
        rng = np.random.default_rng([seed, batch_size])
        rows = [random_request(rng, served) for _ in range(batch_size)]
        lists = ask(served.sessions[index], rows)
        assert lists.item_ids.shape[1] == min(max(row.num_candidates for row in rows), served.num_items)
        for place, row in enumerate(rows):
            items, score = expected(served, row)
            found = [int(name[1:]) for name in lists.item_ids[place].tolist() if name]
            assert len(found) == len(items), (row, items, found)
            assert (lists.scores[place, len(found) :] == -np.inf).all(), row
            scores = [score[item] for item in found]
            for others in ([score[item] for item in items], lists.scores[place, : len(found)].tolist()):
                np.testing.assert_allclose(scores, others, rtol=1e-5, atol=1e-4, err_msg=str(row))
            # What is as good as tied may change places: beside an infinite boost, where scores round to the same, and
            # by the codes of cold items.
            if not row.num_exploration and (max(row.group_boost) < math.inf or row.merge == "round_robin"):
                assert found == items, (row, items, found)
            assert len(set(found)) == len(found) and not set(found) & {*row.history, *row.exclude}
            groups = lists.group_ids[place].tolist()
            assert groups == [*served.group[found].tolist(), *[-1] * (len(groups) - len(found))]


def test_a_query_too_long_for_its_products_answers_as_zeros_do(tmp_path: Path) -> None:
    """A vector of a request may make any. ScaNN ends the process where infinities of both signs meet in a sum."""
    rng, size = np.random.default_rng(0), 400
    items = rng.normal(size=[size + 1, DIM]).astype(np.float32)
    queries = rng.normal(size=[size + 1, 1, DIM]).astype(np.float32)
    tree = ServingConfig(brute_force_max_items=50, int8=False)
    members = [np.arange(1, size + 1, dtype=np.int32)]
    built = [build_group_index(0, items[1:], queries[:, 0], tree)]
    queries[1:6, 0] *= np.array([[1e17], [1e36], [1e37], [1e38], [math.inf]], np.float32)
    ids = np.array([f"i{index}" for index in members[0]], object)
    (tmp_path / "ids").write_text("\n".join(ids) + "\n", encoding="utf-8")
    catalogue = Catalogue(ids, np.append(-1, np.zeros(size)).astype(np.int32), 1, np.ones(size + 1), np.zeros(0))
    towers = Towers(queries, np.zeros([size + 1, 1], np.float32), items)
    for session in served_by(tmp_path, catalogue, towers, items, members, built).values():
        with session:
            for rows in ([1], [2], [3], [4], [5], [1, 2, 3, 4, 5, 6]):
                lists = session.recommend([[f"i{user}"] for user in rows], num_candidates=20)
                for row, user in enumerate(rows):
                    found = [int(name[1:]) for name in lists.item_ids[row].tolist()]  # no place is absent
                    products = items[found].astype(float) @ queries[user, 0] if user in {1, 6} else np.zeros(20)
                    np.testing.assert_allclose(lists.scores[row], products, rtol=1e-5)
