"""The search in two rounds against a list of everything."""

import numpy as np
import pytest
import tensorflow as tf

from serving.search.exact_index_set import ExactIndexSet
from serving.search.group_search import GroupResults
from serving.search.score_rounds import search_in_rounds

DIM = 8
SIZES = (200, 0, 150, 3, 90, 120, 60, 40, 30, 20)


def best_of_all(offset: np.ndarray, scores: np.ndarray, group: np.ndarray, allowed: np.ndarray, m: int) -> list[int]:
    """Items, by a sort of everything."""
    value = np.where(allowed, scores + offset[group], -np.inf)
    order = np.argsort(-value, kind="stable")[:m]
    return [int(item) for item in order if np.isfinite(value[item])]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0], ids=["groups alike", "groups differ", "one group has it all"])
def test_the_list_is_that_of_everything(seed: int, spread: float) -> None:
    """Best items excluded, groups closed, rows of one M or of several, one row that is not by score.

    M is less than there are groups, or more than there are items, or 0; for one row no group may answer.
    """
    rng, most = np.random.default_rng(seed), (4, 4, 120, 120, 900)[seed // 5]
    rows, group = 4, np.repeat(np.arange(len(SIZES)), SIZES)
    items = rng.normal(size=[len(group), DIM]).astype(np.float32)
    queries = rng.normal(size=[rows, len(SIZES), DIM]).astype(np.float32)
    offset = rng.normal(0, spread, [rows, len(SIZES)]).astype(np.float32)
    scores = np.einsum("rid,id->ri", queries[:, group], items)
    m = np.full(rows, rng.integers(1, most)) if seed % 3 == 0 else rng.integers(1, most, rows)
    m[2] *= seed % 5 != 1
    allowed = (rng.random([rows, len(group)]) < 0.9) | (most == 4)
    for row in range(rows):  # as a history of favourites would
        allowed[row, np.argsort(-(scores + offset[:, group])[row])[:5]] = False
    excluded = np.stack([(~allowed[:, group == g]).sum(axis=1) for g in range(len(SIZES))], axis=1)
    is_open = rng.random([rows, len(SIZES)]) < 0.8
    is_open[1] &= seed % 5 > 0
    allowed &= is_open[:, group]
    by_score = np.array([True, True, True, False])
    wanted = np.where(is_open & (m[:, None] > 0), np.minimum(m[:, None] + excluded, SIZES), 0)
    members = [np.flatnonzero(group == g).astype(np.int32) for g in range(len(SIZES))]
    index_set, searches = ExactIndexSet(items, members), []

    def search(of: tf.Tensor, added: tf.Tensor, numbers: tf.Tensor) -> GroupResults:
        searches.append(numbers.numpy())
        # As `ScannIndexSet`, which may give a single row an item of a group that it does not ask.
        return index_set.search(of, added, tf.maximum(numbers, 1) if seed % 2 else numbers)

    def is_allowed(found: GroupResults) -> tf.Tensor:
        slots = tf.where(tf.math.is_finite(found.scores), found.slots, 1)
        return tf.math.is_finite(found.scores) & tf.gather(tf.constant(allowed), slots - 1, batch_dims=1)

    found = search_in_rounds(
        search,
        is_allowed,
        tf.constant(queries),
        tf.constant(offset),
        tf.constant(wanted, tf.int32),
        tf.constant(excluded, tf.int32),
        tf.constant(by_score),
        tf.constant(m, tf.int32),
    )
    value = np.where(np.isfinite(found.scores), found.scores, -np.inf)
    for row in np.flatnonzero(by_score).tolist():
        best = np.argsort(-value[row], kind="stable")[: m[row]]
        listed = best[np.isfinite(value[row, best])]
        expected = best_of_all(offset[row], scores[row], group, allowed[row], m[row])
        assert (found.slots.numpy()[row, listed] - 1).tolist() == expected
        columns = found.group.numpy()[row]
        for one in np.unique(columns[np.isfinite(value[row])]):
            places = np.flatnonzero(np.isfinite(value[row]) & (columns == one))
            assert (np.diff(value[row, places]) <= 1e-6).all(), "each group's are in order"
            before = value[row, found.starts.numpy()[row, one] : places[0]]
            assert found.starts.numpy()[row, one] <= places[0] and not np.isfinite(before).any()
    assert (searches[0][3] == wanted[3]).all(), "a row by quota is searched once, for its quotas"
    assert (searches[0] <= wanted).all() and (most != 120 or searches[0][0].sum() < wanted[0].sum())
    assert all((again[3] == 0).all() for again in searches[1:])


def test_a_group_may_have_more_behind_a_last_result_that_is_excluded() -> None:
    """Of rows of several M, too: the 8 lies above the second best that the first round finds, the 1, and hides the 7.

    Of eight groups a list of two asks for one item each, and one more of the first group for the one that is excluded.
    """
    values = [np.array([9.0, 8.0, 7.0, 6.0]), *([np.array([1.0])] * 7)]
    sizes = [len(one) for one in values]
    members = np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1])
    index_set = ExactIndexSet(np.concatenate(values)[:, None].astype(np.float32), members)
    m, excluded = np.array([2, 1]), np.zeros([2, 8], np.int32)
    excluded[0, 0] = 1
    found = search_in_rounds(
        index_set.search,
        lambda found: tf.math.is_finite(found.scores) & ~((found.scores == 8.0) & (tf.range(2)[:, None] == 0)),
        tf.ones([2, 8, 1]),
        tf.zeros([2, 8]),
        tf.constant(np.minimum(m[:, None] + excluded, sizes), tf.int32),
        tf.constant(excluded),
        tf.constant([True, True]),
        tf.constant(m, tf.int32),
    )
    best = [-np.sort(-np.where(np.isfinite(row), row, -np.inf)) for row in found.scores.numpy()]
    assert best[0][:2].tolist() == [9.0, 7.0]
    assert best[1][:1].tolist() == [9.0]
