"""Recall by the target's group and by the user's activity, by hand."""

import numpy as np

from tests.trainer.artifacts import of_rows
from trainer.catalogue import Catalogue
from trainer.evaluate import break_down
from trainer.input.evaluation_users import EvaluationUsers


def test_breakdowns_by_hand() -> None:
    group_id = np.array([-1, 0, 0, 1, 1, 2])
    catalogue = Catalogue(np.arange(5).astype(object), group_id, 4, train_count=group_id, sampling_probability=group_id)
    # Users have seen 5, 1, 4, 2, 6 and 3 items: the least active are 1 and 3, then come 5 and 2, then 0 and 4.
    seen = of_rows([list(range(number)) for number in (5, 1, 4, 2, 6, 3)])
    targets = of_rows([[1], [3, 4], [5], [3], [2], [1]])
    lists = np.array([[1, 2], [3, 5], [1, 2], [4, 5], [2, 0], [3, 2]])
    found = break_down(catalogue, EvaluationUsers(np.arange(6), seen, seen, targets, np.zeros(6)), lists)
    # Group 0 holds the targets of users 0, 4 (found) and 5 (not); group 1 those of 1 (one of two) and 3; group 2 of 2.
    assert found["group"] == {
        "0": {"value": 2 / 3, "count": 3},
        "1": {"value": 1 / 3, "count": 3},
        "2": {"value": 0, "count": 1},
    }
    assert found["user_activity"] == {
        "low": {"value": 0.25, "count": 2},
        "medium": {"value": 0, "count": 2},
        "high": {"value": 1, "count": 2},
    }


def test_users_who_are_equally_active_are_of_the_same_third() -> None:
    """Six of eight users have seen one item each: their places in the file must not tell them apart."""
    group_id = np.array([-1, 0])
    catalogue = Catalogue(np.arange(1).astype(object), group_id, 1, train_count=group_id, sampling_probability=group_id)
    seen = of_rows([[1]] * 3 + [[1, 2]] + [[1]] * 3 + [[1, 2, 3]])
    users = EvaluationUsers(np.arange(8), seen, seen, of_rows([[1]] * 8), np.zeros(8))
    found = break_down(catalogue, users, np.array([[1]] * 4 + [[2]] * 4))
    assert found["user_activity"] == {"medium": {"value": 0.5, "count": 6}, "high": {"value": 0.5, "count": 2}}
