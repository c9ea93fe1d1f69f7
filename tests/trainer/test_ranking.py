"""Places and lists against a full sort, where many scores are equal."""

import math
import tracemalloc
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from scipy.sparse import csr_matrix

from contracts.layout import Workdir
from tests.trainer.artifacts import of_rows
from trainer.catalogue import Catalogue
from trainer.evaluation import ranking
from trainer.evaluation.merge import fill_quotas, quotas
from trainer.evaluation.metrics import hits, ndcg_at_k, ndcg_of_ranks, recall_at_k, recall_of_ranks
from trainer.evaluation.popularity import popularity_lists
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged

NUM_ITEMS, NUM_USERS, NUM_GROUPS, DIM = 40, 9, 4, 3


@dataclass
class Case:
    """Scores that are small whole numbers: exact, and often equal."""

    scores: np.ndarray
    group_id: np.ndarray
    log_intent: np.ndarray
    is_cold: np.ndarray
    users: EvaluationUsers
    ranking: ExactRanking

    def order(self, user: int) -> list[int]:
        """Unseen items by a full sort, best first."""
        tie_break = np.random.default_rng(0).permutation(NUM_ITEMS)
        order = np.lexsort([tie_break, -self.scores[user]]) + 1
        return order[~np.isin(order, self.users.seen.take(np.array([user])).values)].tolist()


@pytest.fixture
def case() -> Case:
    return case_of("by group")


def case_of(kind: str, exploration_share: float = 0.0) -> Case:
    rng = np.random.default_rng(0)
    items = rng.integers(-1, 2, (NUM_ITEMS + 1, DIM)).astype(np.float32)
    queries = rng.integers(-1, 2, (NUM_USERS, NUM_GROUPS, DIM)).astype(np.float32)
    log_intent = np.log(rng.dirichlet([0.5] * NUM_GROUPS, NUM_USERS)).astype(np.float32)
    # The last group is empty, and the first has three items: less than its quota.
    group_id = np.append(-1, np.repeat(np.arange(NUM_GROUPS - 1), [3, 17, 20])).astype(np.int32)
    scores = (queries[:, group_id[1:]] * items[1:]).sum(axis=2)
    if kind == "with intent":
        log_intent[0, 0] = -np.inf  # a group that is as good as impossible has log 1e-20
        scores += np.maximum(log_intent, np.log(1e-20))[:, group_id[1:]]
    elif kind == "by the best vector":
        # Of four interests, 1 to 4 are active: the others' vectors like all items most, and count for nothing.
        active = np.arange(NUM_GROUPS) <= np.arange(NUM_USERS)[:, None] % NUM_GROUPS
        queries[~active] *= 100
        log_intent = np.where(active, 0, -np.inf).astype(np.float32)
        scores = np.where(active[:, :, None], queries @ items[1:].T, -np.inf).max(axis=1)
    model = SimpleNamespace(
        ranked_by="best_vector" if kind == "by the best vector" else "group",
        intent_in_score=kind == "with intent",
        num_vectors=NUM_GROUPS,
        passes_of_an_answer=1,
        embedding_dim=DIM,
        features_of_users=lambda user, request: user,
        query_embeddings=lambda history, user: (tf.gather(queries, user), tf.gather(log_intent, user)),
        catalogue_embeddings=lambda: items,
    )
    seen = [rng.choice(NUM_ITEMS, 5, replace=False) + 1 for _ in range(NUM_USERS)]
    targets = [rng.choice(NUM_ITEMS, 4, replace=False) + 1 for _ in range(NUM_USERS)]
    targets[0] = np.array([seen[0][0], 0, 7, 7])  # seen, unknown, and one named twice
    read = of_rows([[1]] * NUM_USERS)
    users = EvaluationUsers(np.arange(NUM_USERS), read, of_rows(seen), of_rows(targets), np.zeros(NUM_USERS))
    train_count = np.arange(NUM_ITEMS + 1) % 3  # every third item is cold
    catalogue = Catalogue(np.arange(NUM_ITEMS).astype(object), group_id, NUM_GROUPS, train_count, group_id)
    ranking = ExactRanking(model, catalogue, users, exploration_share)
    return Case(scores, group_id, log_intent, train_count == 0, users, ranking)


NOWHERE = np.iinfo(np.int64).max


@pytest.mark.parametrize("kind", ["by group", "with intent", "by the best vector"])
def test_places_are_those_of_a_full_sort(kind: str) -> None:
    case = case_of(kind)
    users, expected = case.users, []
    for user in range(NUM_USERS):
        order = case.order(user)
        wanted = users.targets.take(np.array([user])).values.tolist()
        expected += [order.index(item) if item in order else NOWHERE for item in wanted]
    ranks = case.ranking.target_ranks()
    assert ranks.tolist() == expected
    lists = case.ranking.lists("score", 0.0, NUM_ITEMS)
    assert [row[row > 0].tolist() for row in lists] == [case.order(user) for user in range(NUM_USERS)]
    for k in (1, 3, 10, 40):
        np.testing.assert_array_equal(
            recall_of_ranks(ranks, users.targets, k),
            recall_at_k(hits(lists, users.targets), users.targets.lengths, k),
        )
    expected_ndcg = ndcg_at_k(hits(lists, users.targets), users.targets.lengths, NUM_ITEMS)
    np.testing.assert_allclose(ndcg_of_ranks(ranks, users.targets), expected_ndcg)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["by group", "with intent"])
def test_lists_of_several_merges_are_those_of_a_full_sort(kind: str, share: float) -> None:
    """The best cold items first, as many as their share; the merge fills the other places, all in order of score.

    A quota list is the full order without what is beyond its group's places; each length has quotas of its own.
    """
    case = case_of(kind, share)
    lengths, alphas = [1, 4, 11, NUM_ITEMS], [0.0, 1.0, 3.0]
    by_score, *by_quota = case.ranking.lists_of_merges([("score", 1.0), *(("quota", a) for a in alphas)], lengths)
    for user in range(NUM_USERS):
        order = case.order(user)
        for length in lengths:
            explored = [item for item in order if case.is_cold[item]][: math.floor(share * length + 0.5)]
            others, places = [item for item in order if item not in explored], length - len(explored)
            assert listed(by_score, length, user) == sorted(explored + others[:places], key=order.index)
            group = case.group_id[others]
            available = np.bincount(group, minlength=NUM_GROUPS)[None]
            place = np.array([(group[:i] == group[i]).sum() for i in range(len(others))])
            log_intent = case.log_intent[user : user + 1]
            for alpha, lists in zip(alphas, by_quota, strict=True):
                log_weight = alpha * np.maximum(log_intent, np.log(1e-20))
                of_group = fill_quotas(quotas(log_weight, places, available), available, log_intent)[0]
                merged = np.array(others)[place < of_group[group]].tolist()
                assert listed(lists, length, user) == sorted(explored + merged, key=order.index)


def listed(lists: dict[int, np.ndarray], length: int, user: int) -> list[int]:
    """A user's list, without the absent places, which come last."""
    found = lists[length][user].tolist()
    assert len(found) == length
    present = [item for item in found if item]
    assert found == present + [0] * (length - len(present))
    return present


def test_who_has_seen_everything_gets_empty_lists(case: Case) -> None:
    everything = of_rows([list(range(1, NUM_ITEMS + 1))] * NUM_USERS)
    case.ranking._users = replace(case.users, seen=everything)
    for lists in case.ranking.lists_of_merges([("score", 1.0), ("quota", 1.0)], [1, 5]):
        assert [found.shape for found in lists.values()] == [(NUM_USERS, 1), (NUM_USERS, 5)]
        assert not any(found.any() for found in lists.values())


@pytest.mark.parametrize("length", [1, 6, NUM_ITEMS + 5])
def test_popularity_is_a_full_sort_of_what_is_unseen(
    length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items have 0 to 2 takers; the users have seen nothing, half of the items, all but one, and all."""
    rng = np.random.default_rng(1)
    count = rng.integers(0, 3, NUM_ITEMS)
    takers = csr_matrix(np.arange(2)[:, None] < count)
    monkeypatch.setattr("trainer.evaluation.popularity.taken_items", lambda *_: takers)
    seen = [rng.permutation(NUM_ITEMS)[:number] + 1 for number in (0, NUM_ITEMS // 2, NUM_ITEMS - 1, NUM_ITEMS)]
    users = EvaluationUsers(np.arange(4), of_rows(seen), of_rows(seen), of_rows(seen), np.zeros(4))
    order = np.lexsort([np.random.default_rng(0).permutation(NUM_ITEMS), -count]) + 1
    for found, own in zip(popularity_lists(Workdir(tmp_path), NUM_ITEMS, users, length), seen, strict=True):
        unseen = order[~np.isin(order, own)][:length].tolist()
        assert found.tolist() == unseen + [0] * (min(length, NUM_ITEMS) - len(unseen))


def test_users_vectors_are_held_for_some_users_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 users with a vector of 64 floats for each of 400 groups are 205 MB, of which 15 MB may be held."""
    monkeypatch.setattr(ranking, "_VECTOR_BYTES", 15 << 20)
    num_users, num_items, num_groups, dim = 2000, 8000, 400, 64
    rng = np.random.default_rng(0)
    shared = tf.constant(rng.integers(-9, 10, (num_users, 1, dim)), tf.float32)
    items = rng.integers(-9, 10, (num_items + 1, dim)).astype(np.float32)
    group_id = np.append(-1, np.arange(num_items) % num_groups).astype(np.int32)
    model = SimpleNamespace(
        ranked_by="group",
        intent_in_score=False,
        num_vectors=num_groups,
        passes_of_an_answer=1,
        embedding_dim=dim,
        features_of_users=lambda user, request: user,
        query_embeddings=lambda history, user: (
            tf.repeat(tf.gather(shared, user), num_groups, axis=1),
            tf.zeros([len(user), num_groups]),
        ),
        catalogue_embeddings=lambda: items,
    )
    targets = rng.integers(1, num_items + 1, num_users)
    nothing, one_each = of_rows([[]] * num_users), Ragged(targets, np.arange(num_users + 1))
    users = EvaluationUsers(np.arange(num_users), one_each, nothing, one_each, np.zeros(num_users))
    catalogue = Catalogue(np.arange(num_items).astype(object), group_id, num_groups, group_id, group_id)
    tracemalloc.start()
    ranks = ExactRanking(model, catalogue, users).target_ranks()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    scores, rank = shared.numpy()[:, 0] @ items[1:].T, np.random.default_rng(0).permutation(num_items)
    own = scores[np.arange(num_users), targets - 1, None]
    better = (scores > own) | ((scores == own) & (rank < rank[targets - 1, None]))
    assert ranks.tolist() == better.sum(axis=1).tolist()
    assert peak < 100e6
