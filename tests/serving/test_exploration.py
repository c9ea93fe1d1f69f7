"""The cold items of a request against a sort of them all."""

import numpy as np
import pytest
import tensorflow as tf

from serving.graph.exclusion import Exclusions
from serving.graph.exploration import Exploration
from serving.search.slots import items_by_slot, slots_by_item

NUM_ITEMS, NUM_GROUPS, DIM = 90, 3, 4


@pytest.mark.parametrize("excluded_from", ["cold", "warm", "both"])
def test_the_best_cold_items_that_are_left_are_found_however_many_are_excluded(excluded_from: str) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(NUM_ITEMS + 1, DIM)).astype(np.float32)
    group = rng.integers(0, NUM_GROUPS, NUM_ITEMS)
    members = [np.flatnonzero(group == one).astype(np.int32) + 1 for one in range(NUM_GROUPS)]
    is_cold = np.append(False, rng.random(NUM_ITEMS) < 0.4)
    queries = rng.normal(size=(4, NUM_GROUPS, DIM)).astype(np.float32)
    offset = rng.normal(size=(4, NUM_GROUPS)).astype(np.float32)
    offset[2, 1] = -np.inf  # a group that may not answer
    wanted = np.array([3, 0, 5, 8], np.int32)
    scores = np.einsum("rid,id->ri", queries[:, group], embeddings[1:]) + offset[:, group]
    # Exclusions are the very best of their kind, so that a search that does not allow for them finds nothing else.
    kind = {"cold": is_cold[1:], "warm": ~is_cold[1:], "both": np.ones(NUM_ITEMS, bool)}[excluded_from]
    excluded = np.argsort(-np.where(kind, scores, -np.inf), axis=1)[:, :12]
    slots = slots_by_item(members, NUM_ITEMS)
    found = Exploration(embeddings, members, is_cold).choose(
        tf.constant(queries),
        tf.constant(offset),
        tf.constant(wanted),
        Exclusions.of(tf.constant(slots[excluded + 1]), NUM_ITEMS),
    )
    allowed = np.broadcast_to(is_cold[1:], scores.shape).copy()
    np.put_along_axis(allowed, excluded, False, axis=1)
    assert (found.scores.numpy()[found.slots.numpy() == 0] == -np.inf).all()
    barred = found.exclusions.contains(tf.constant(np.tile(np.arange(1, NUM_ITEMS + 1), (4, 1)))).numpy()
    for row in range(4):
        order = np.argsort(-np.where(allowed[row], scores[row], -np.inf))[: wanted[row]]
        expected = [int(slots[item + 1]) for item in order if allowed[row, item] and np.isfinite(scores[row, item])]
        assert [slot for slot in found.slots.numpy()[row].tolist() if slot] == expected
        assert len(expected) == wanted[row]
        # What is chosen must not come a second time, from its group.
        assert set(np.flatnonzero(barred[row]) + 1) == {*slots[excluded[row] + 1].tolist(), *expected}


def test_items_of_which_nothing_is_known_share_the_places_among_users() -> None:
    """Thirty with one vector, three places, 64 users: by the order of slots, everybody would get the same three."""
    rng = np.random.default_rng(0)
    embeddings = np.tile(rng.normal(size=32), [31, 1]).astype(np.float32)
    exploration = Exploration(embeddings, [np.arange(1, 31, dtype=np.int32)], np.arange(31) > 0)
    queries = rng.normal(size=(64, 1, 32)).astype(np.float32)
    exact = queries[:, 0] @ embeddings[0]

    def found(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        asked = tf.constant(queries[rows])
        number = len(queries[rows])
        none = Exclusions.of(tf.zeros([number, 1], tf.int32), 30)
        explored = exploration.choose(asked, tf.zeros([number, 1]), tf.fill([number], 3), none)
        return explored.slots.numpy(), explored.scores.numpy()

    slots, scores = found(slice(None))
    shown = np.bincount(slots.ravel(), minlength=31)[1:]
    assert (shown > 0).all() and shown.max() <= 3 * 64 / 5
    np.testing.assert_allclose(scores, np.tile(exact[:, None], 3), atol=5e-5)
    for row in range(64):
        np.testing.assert_array_equal(found(slice(row, row + 1))[0][0], slots[row])


def test_a_group_whose_items_stay_answers_as_before() -> None:
    """The next version's catalogue has lost a cold item of the group before it."""
    rng = np.random.default_rng(0)
    embeddings = np.tile(rng.normal(size=32), [31, 1]).astype(np.float32)
    first, second = np.arange(1, 11, dtype=np.int32), np.arange(11, 31, dtype=np.int32)
    queries = tf.constant(rng.normal(size=(16, 2, 32)).astype(np.float32))
    offset = tf.constant(np.tile(np.array([-np.inf, 0], np.float32), [16, 1]))
    found = []
    for members in ([first, second], [first[1:], second]):
        none = Exclusions.of(tf.zeros([16, 1], tf.int32), 30)
        explored = Exploration(embeddings, members, np.arange(31) > 0)
        answer = explored.choose(queries, offset, tf.fill([16], 5), none)
        found.append((answer.scores.numpy(), items_by_slot(members)[answer.slots.numpy()]))
    for before, after in zip(*found, strict=True):
        np.testing.assert_array_equal(before, after)
