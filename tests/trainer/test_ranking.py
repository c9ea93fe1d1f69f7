"""Places and lists against a full sort, where many scores are equal."""

from types import SimpleNamespace

import numpy as np
import tensorflow as tf

from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers, Ragged
from trainer.metrics import hits, recall_at_k, recall_of_places
from trainer.ranking import ExactRanking

NUM_ITEMS, NUM_USERS, DIM = 40, 9, 3


def of_rows(rows: list[list[int]]) -> Ragged:
    return Ragged(np.concatenate(rows).astype(np.int64), np.cumsum([0, *map(len, rows)]))


def test_places_are_those_of_a_full_sort() -> None:
    rng = np.random.default_rng(0)
    # Small whole numbers: scores are exact and often equal.
    items = rng.integers(-1, 2, (NUM_ITEMS + 1, DIM)).astype(np.float32)
    queries = rng.integers(-1, 2, (NUM_USERS, 2, DIM)).astype(np.float32)
    group_id = np.append(-1, np.arange(NUM_ITEMS) % 2).astype(np.int32)
    model = SimpleNamespace(
        ranked_by="group",
        intent_in_score=False,
        num_vectors=2,
        embedding_dim=DIM,
        features_of_users=lambda user: user,
        query_embeddings=lambda history, user: (tf.gather(queries, user), tf.zeros([len(user), 2])),
        candidate_embeddings=lambda index: tf.gather(items, index),
    )
    seen = [rng.choice(NUM_ITEMS, 5, replace=False) + 1 for _ in range(NUM_USERS)]
    targets = [rng.choice(NUM_ITEMS, 4, replace=False) + 1 for _ in range(NUM_USERS)]
    targets[0] = np.array([seen[0][0], 0, 7, 7])  # seen, unknown, and one named twice
    users = EvaluationUsers(np.arange(NUM_USERS), of_rows([[1]] * NUM_USERS), of_rows(seen), of_rows(targets))
    catalogue = Catalogue(np.arange(NUM_ITEMS).astype(object), group_id, 2, group_id, group_id)
    ranking = ExactRanking(model, catalogue, users)
    tie_break = np.random.default_rng(0).permutation(NUM_ITEMS)
    expected = []
    for user in range(NUM_USERS):
        scores = (items[1:] * queries[user, group_id[1:]]).sum(axis=1)
        order = np.lexsort([tie_break, -scores]) + 1
        order = order[~np.isin(order, seen[user])].tolist()
        expected += [order.index(item) if item in order else NUM_ITEMS for item in targets[user]]
    places = ranking.target_places()
    assert places.tolist() == expected
    lists = ranking.lists("score", 0.0, NUM_ITEMS)
    for k in (1, 3, 10, 40):
        np.testing.assert_array_equal(
            recall_of_places(places, users.targets, k),
            recall_at_k(hits(lists, users.targets), users.targets.lengths, k),
        )
