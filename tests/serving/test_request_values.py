"""What a caller in Python gets wrong is refused; one list for all users is that list for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.request_values import per_user
from serving.servable_session import ServableSession


@pytest.fixture(scope="module")
def session(servable: Path) -> Iterator[ServableSession]:
    with ServableSession(servable) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("histories", "inputs", "message"),
    [
        (["i1", "i2"], {}, r"write \[\['i1', ...\]\]"),
        ("i1", {}, r"write \[\['i1', ...\]\]"),
        ([[1, 2]], {}, "ids are strings"),
        ([["i1"]], {"user_ids": ["u1", "u2"]}, r"'user_id' must have one value per user \(1\); got 2"),
        ([["i1"], []], {"features": {"price": [1.0]}}, r"'price' must have one value per user \(2\); got 1"),
        ([["i1"]], {"exclude_item_ids": "i2"}, "'exclude_item_ids' must be a list"),
        ([["i1"], []], {"exclude_item_ids": [["i2"]]}, r"a list per user \(2\); got 1"),
        ([["i1"], []], {"groups": [[0], 1]}, "got 1 for one"),
        ([["i1"]], {"groups": 1}, "'groups' must be a list"),
        ([["i1"], []], {"num_candidates": [1, 2, 3]}, "broadcast"),
    ],
)
def test_wrong_arguments_are_refused(
    session: ServableSession, histories: Any, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        session.recommend(histories, **inputs)


def test_letters_are_no_ids(session: ServableSession) -> None:
    with pytest.raises(ValueError, match=r"write \['i3'\]"):
        session.candidate_embedding("i3")


@pytest.mark.parametrize(
    ("name", "one"), [("exclude_item_ids", ["i2", "i4"]), ("groups", [0]), ("group_boost", [1.0, 5.0, 0.5, 2.0, 0.0])]
)
def test_one_list_for_all_is_that_list_for_each(session: ServableSession, name: str, one: list[Any]) -> None:
    histories = [["i1"], ["i5", "i6"]]
    of_all = session.recommend(histories, num_candidates=10, **{name: one})
    of_each = session.recommend(histories, num_candidates=10, **{name: [one, one]})
    assert of_all.item_ids.tolist() == of_each.item_ids.tolist()
    assert len(of_all.item_ids) == 2


def test_a_user_may_go_without_a_list() -> None:
    assert per_user("groups", [[1], None], 2) == [[1], ()]
    assert per_user("groups", [], 2) == [[], []]
