import numpy as np
import pytest

from trainer.scoring import fill_quotas, quotas


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        pytest.param(0.0, [3, 4, 3], id="equal shares: C = 3.33, 6.67, 10 -> 3, 7, 10"),
        pytest.param(1.0, [5, 3, 2], id="in proportion: C = 5, 8, 10"),
        pytest.param(50.0, [10, 0, 0], id="the best group only"),
    ],
)
def test_quotas_by_hand(alpha: float, expected: list[int]) -> None:
    assert quotas(np.log([[0.5, 0.3, 0.2]]), 10, alpha).tolist() == [expected]


def test_quotas_always_sum_to_m() -> None:
    intent = np.random.default_rng(0).dirichlet(np.full(37, 0.1), size=200)
    for length in (1, 7, 100, 1000):
        quota = quotas(np.log(np.maximum(intent, 1e-30)), length, 0.7)
        assert (quota.sum(axis=1) == length).all()
        assert (quota >= 0).all()


def test_left_over_places_go_to_the_best_groups_that_have_items() -> None:
    log_intent = np.log([[0.2, 0.5, 0.3]])
    quota, available = np.array([[4, 4, 4]]), np.array([[9, 5, 1]])
    # Group 2 is 3 short: group 1 (best) takes 1, which is all it has, group 0 takes 2.
    assert fill_quotas(quota, available, log_intent).tolist() == [[6, 5, 1]]


def test_no_more_places_than_items() -> None:
    assert fill_quotas(np.array([[5, 5]]), np.array([[2, 1]]), np.log([[0.5, 0.5]])).tolist() == [[2, 1]]
