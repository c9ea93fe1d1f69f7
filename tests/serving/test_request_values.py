"""What a caller in Python gets wrong is refused; one list for all users is that list for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.names import Request, Response, Signature
from serving.request_values import per_user
from serving.servable_session import ServableSession, request_inputs


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
        ([["i1"]], {"num_candidates": 5.9}, "'num_candidates' must hold int32, whole numbers below 2.31; got 5.9"),
        ([["i1"]], {"max_groups": 2**31}, "'max_groups' must hold int32, .* got 2147483648"),
        ([["i1"]], {"num_exploration": [2**70]}, "'num_exploration' must hold int32"),
        ([["i1"]], {"num_candidates": "many"}, "'num_candidates' must hold int32, .* got 'many'"),
        ([["i1"], []], {"groups": [[0], [1.7]]}, r"'groups' must hold int32, .* got \[1.7\]"),
        ([["i1"]], {"merge": "bogus"}, "'merge' must be one of quota, score, round_robin; got 'bogus'"),
        ([["i1"], []], {"merge": ["score", 7]}, "'merge' must be one of .*; got 7"),
    ],
)
def test_wrong_arguments_are_refused(
    session: ServableSession, histories: Any, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        session.recommend(histories, **inputs)


def test_a_merge_that_there_is_not_empties_its_row_alone(session: ServableSession) -> None:
    """In the graph, as in a batch of TF Serving that holds other callers' rows."""
    inputs = {**request_inputs([["i5"], ["i6"]]), Request.MERGE: np.array([b"avarage", b""], object)}
    full = len(session.recommend([["i6"]]).item_ids[0])
    item_ids = session.predict(Signature.SERVING_DEFAULT, inputs)[Response.ITEM_IDS]
    assert (item_ids != b"").sum(axis=1).tolist() == [0, full]


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
