import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from contracts.config import COVERAGE_K
from trainer.evaluation.metric_names import COVERAGE, GINI, GROUPS_PER_LIST, NDCG, NDCG_K, metric_names
from trainer.evaluation.metrics import (
    bootstrap_intervals,
    bootstrap_means,
    catalog_coverage,
    gini,
    groups_per_list,
    hits,
    metrics_from_lists,
    monitored_k,
    ndcg_at_k,
    ndcg_of_ranks,
    recall_at_k,
    recall_of_ranks,
    target_recall,
)
from trainer.input.ragged import Ragged

LISTS = np.array([[3, 1, 2, 0], [4, 5, 6, 1], [7, 8, 9, 2]])
TARGETS = Ragged(np.array([2, 9, 5, 1]), np.array([0, 2, 3, 4]))  # user 0: {2, 9}; user 1: {5}; user 2: {1}


def test_hits_are_of_the_users_own_targets() -> None:
    expected = [[False, False, True, False], [False, True, False, False], [False] * 4]
    assert hits(LISTS, TARGETS).tolist() == expected


def test_a_repeated_item_is_one_hit() -> None:
    assert hits(np.array([[2, 2]]), Ragged(np.array([2]), np.array([0, 1]))).tolist() == [[True, False]]


def test_hits_of_many_users_are_found_in_little_memory() -> None:
    """5 million places, of which each target has one; as numbers of 64 bits they are 40 MB, and copies of that."""
    num_users, length = 5000, 1000
    rng = np.random.default_rng(0)
    lists = rng.permutation(np.arange(1, length + 1, dtype=np.int32))[None].repeat(num_users, axis=0)
    place = rng.integers(0, length, num_users)
    targets = Ragged(lists[0, place].astype(np.int64), np.arange(num_users + 1))
    tracemalloc.start()
    found = hits(lists, targets)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found.sum(axis=1) == 1).all()
    assert (found.argmax(axis=1) == place).all()
    assert peak < 60e6


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        pytest.param(1, [0, 0, 0], id="nothing in the first place"),
        pytest.param(2, [0, 1, 0], id="user 1 at place 2"),
        pytest.param(3, [1 / 2, 1, 0], id="user 0 finds one of two"),
    ],
)
def test_recall_divides_by_the_reachable_targets(k: int, expected: list[float]) -> None:
    assert recall_at_k(hits(LISTS, TARGETS), TARGETS.lengths, k).tolist() == expected
    # Of five targets no more than k are within reach.
    assert recall_at_k(np.array([[True, True, False]]), np.array([5]), k).tolist() == [min(k, 2) / k]


@pytest.mark.parametrize("number", [3, 12], ids=["fewer targets than places", "more"])
def test_ndcg_agrees_with_scikit_learn(number: int) -> None:
    rng = np.random.default_rng(0)
    lists = np.stack([rng.permutation(np.arange(1, 21)) for _ in range(30)])
    chosen = [rng.choice(np.arange(1, 21), number, replace=False) for _ in range(30)]
    targets = Ragged(np.concatenate(chosen), np.arange(31) * number)
    relevance = hits(lists, targets).astype(float)
    scores = np.tile(np.arange(20, 0, -1), (30, 1))
    ours = ndcg_at_k(hits(lists, targets), targets.lengths, 10)
    assert ours.mean() == pytest.approx(ndcg_score(relevance, scores, k=10))


def test_coverage_and_gini() -> None:
    assert catalog_coverage(LISTS, 18) == 9 / 18  # items 1..9 of 18; 0 is no item
    assert gini(np.array([[1, 2], [3, 4]]), 4) == pytest.approx(0)
    assert gini(np.array([[2], [2]]), 4) == pytest.approx(3 / 4)  # all exposure on one of four
    assert gini(np.zeros((2, 3), int), 4) == 0  # nothing is listed


def test_groups_per_list_ignores_absent_places() -> None:
    group_id = np.array([2, 0, 0, 1, 1, 1, 2, 2, 2, 2])  # what stands for padding means nothing
    # user 0: items 3, 1, 2 -> groups {1, 0}; user 1: 4, 5, 6, 1 -> {1, 2, 0}; user 2: 7, 8, 9, 2 -> {2, 0}
    assert groups_per_list(LISTS, group_id).tolist() == [2, 3, 2]


def test_target_recall_is_per_target() -> None:
    hit = hits(LISTS, TARGETS)
    assert target_recall(hit, LISTS, TARGETS, 4).tolist() == [1, 0, 1, 0]
    assert target_recall(hit, LISTS, TARGETS, 2).tolist() == [0, 0, 1, 0]


def test_bootstrap_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(0).random((2000, 1))
    low, high = bootstrap_intervals(values, 4000, 0.95, seed=1)
    half = 1.96 * values.std() / np.sqrt(2000)
    # Four standard errors of a quantile of 4,000; an interval of 90% is 16% shorter.
    assert low[0] == pytest.approx(values.mean() - half, abs=half / 11)
    assert high[0] == pytest.approx(values.mean() + half, abs=half / 11)
    again = bootstrap_intervals(values, 4000, 0.95, seed=1)
    assert (low[0], high[0]) == (again[0][0], again[1][0])
    assert bootstrap_means(values, 150, seed=1).shape == (150, 1)


def test_all_that_is_measured_has_its_name() -> None:
    lists = dict.fromkeys([1, 5, NDCG_K, COVERAGE_K], LISTS)
    table = metrics_from_lists(
        lists, TARGETS, [1, 5], np.zeros(10, int), bootstrap_samples=0, confidence=0.95, seed=0
    ).table
    assert sorted(table) == sorted(metric_names([1, 5]))


def test_each_metric_is_that_of_the_list_of_its_length() -> None:
    """One user's target is 7; a quota list is no prefix of a longer one."""
    lists = {1: [[7]], 5: [[1, 2, 3, 4, 5]], NDCG_K: [[1, 7]], COVERAGE_K: [[1, 2]], 200: [[3, 4, 5, 6, 7, 8, 9]]}
    table = metrics_from_lists(
        {length: np.array(rows) for length, rows in lists.items()},
        Ragged(np.array([7]), np.array([0, 1])),
        [1, 5, 200],
        np.array([-1, 0, 0, 0, 1, 1, 1, 2, 2, 2]),
        bootstrap_samples=0,
        confidence=0.95,
        seed=0,
    ).table
    values = {name: cell["value"] for name, cell in table.items()}
    assert [values[f"recall_at_{k}"] for k in (1, 5, 200)] == [1, 0, 1]
    assert values[NDCG] == pytest.approx(1 / np.log2(3))
    # Items 1 and 2 of nine, of one group; the other seven have nothing of what is listed.
    assert (values[COVERAGE], values[GROUPS_PER_LIST], values[GINI]) == (2 / 9, 1, pytest.approx(7 / 9))


def test_lists_and_users_must_match() -> None:
    with pytest.raises(ValueError, match="2 lists and 3 users"):
        metrics_from_lists(
            {1: LISTS[:2]}, TARGETS, [1], np.zeros(10, int), bootstrap_samples=0, confidence=0.95, seed=0
        )


@pytest.mark.parametrize(
    ("num_items", "k"), [(1, 1), (2, 1), (12, 4), (48, 10), (400, 40), (500, 50), (1682, 50), (10**7, 50)]
)
def test_early_stopping_watches_lists_that_hold_little_of_the_catalogue(num_items: int, k: int) -> None:
    """At 50 of 48 items recall is 1 after any epoch, and the first would be shipped."""
    assert monitored_k(50, num_items) == k


def test_places_of_users_with_more_and_fewer_targets() -> None:
    """The first user has one target, in the first place; the second has three, in the first three."""
    targets, ranks = Ragged(np.array([1, 2, 3, 4]), np.array([0, 1, 4])), np.array([0, 0, 1, 2])
    assert recall_of_ranks(ranks, targets, 10).tolist() == [1, 1]
    assert recall_of_ranks(ranks, targets, 2).tolist() == [1, 1]  # two of at most two
    np.testing.assert_allclose(ndcg_of_ranks(ranks, targets), [1, 1])
    later = np.array([1, 0, 1, 2])  # 1 / log2(3)
    np.testing.assert_allclose(ndcg_of_ranks(later, targets), [1 / np.log2(3), 1])
