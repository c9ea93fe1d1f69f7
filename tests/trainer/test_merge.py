import numpy as np
import pytest

from trainer.evaluation.merge import fill_quotas, quotas


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        pytest.param(0.0, [3, 4, 3], id="equal shares: C = 3.33, 6.67, 10 -> 3, 7, 10"),
        pytest.param(1.0, [5, 3, 2], id="in proportion: C = 5, 8, 10"),
        pytest.param(50.0, [10, 0, 0], id="the best group only"),
    ],
)
def test_quotas_by_hand(alpha: float, expected: list[int]) -> None:
    log_weight = alpha * np.log([[0.5, 0.3, 0.2]])
    assert quotas(log_weight, 10, np.full((1, 3), 100)).tolist() == [expected]


def test_a_group_without_items_has_no_share() -> None:
    log_weight, available = np.log([[0.5, 0.3, 0.2]] * 3), np.array([[0, 100, 100], [0, 0, 0], [9, 9, 0]])
    # Of .3 and .2, C = 6, 10; of .5 and .3 and M = 4, C = 2.5, 4 -> 3, 4.
    assert quotas(log_weight, np.array([10, 10, 4]), available).tolist() == [[0, 6, 4], [0, 0, 0], [3, 1, 0]]


def test_quotas_always_sum_to_m() -> None:
    intent = np.random.default_rng(0).dirichlet(np.full(37, 0.1), size=200)
    for length in (1, 7, 100, 1000):
        quota = quotas(0.7 * np.log(np.maximum(intent, 1e-20)), length, np.ones(intent.shape))
        assert (quota.sum(axis=1) == length).all()
        assert (quota >= 0).all()


def test_left_over_places_go_to_the_best_groups_that_have_items() -> None:
    log_intent = np.log([[0.2, 0.5, 0.3]])
    quota, available = np.array([[4, 4, 4]]), np.array([[9, 5, 1]])
    # Group 2 is 3 short: group 1 (best) takes 1, which is all it has, group 0 takes 2.
    assert fill_quotas(quota, available, log_intent).tolist() == [[6, 5, 1]]


def test_no_more_places_than_items() -> None:
    assert fill_quotas(np.array([[5, 5]]), np.array([[2, 1]]), np.log([[0.5, 0.5]])).tolist() == [[2, 1]]
