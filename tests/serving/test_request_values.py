"""What a caller in Python gets wrong is refused; one list for all users is that list for each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts.names import Request, Response, Signature
from serving.request_values import request_arrays
from serving.servable_session import ServableSession
from tests.serving.asking import history_inputs


@pytest.fixture(scope="module")
def session(servable: Path) -> Iterator[ServableSession]:
    with ServableSession(servable) as loaded:
        yield loaded


@pytest.mark.parametrize(
    ("histories", "inputs", "message"),
    [
        (["i1", "i2"], {}, r"write \[\['i1', ...\]\]"),
        ("i1", {}, r"write \[\['i1', ...\]\]"),
        ([[1, 2]], {}, "1 is not a string; ids are strings"),
        ([["i1"]], {"user_id": ["u1", "u2"]}, r"'user_id' must have one value, or one per user \(1\); got 2"),
        ([["i1"], []], {"age": [1.0, 2.0, 3.0]}, r"'age' must have one value, or one per user \(2\); got 3"),
        ([["i1"]], {"exclude_item_ids": "i2"}, "'exclude_item_ids' must be a list"),
        ([["i1"], []], {"exclude_item_ids": [["i2"]]}, r"a list per user \(2\); got 1"),
        ([["i1"], []], {"groups": [[0], 1]}, "got 1 for one"),
        ([["i1"]], {"groups": 1}, "'groups' must be a list"),
        (
            [["i1"], []],
            {"num_candidates": [1, 2, 3]},
            r"'num_candidates' must have one value, or one per user \(2\); got 3",
        ),
        ([["i1"]], {"num_candidates": 5.9}, "'num_candidates' must hold int32: 5.9 is not a whole number"),
        ([["i1"]], {"max_groups": 2**31}, "'max_groups' must hold int32: .* 2147483648 out of bounds"),
        ([["i1"]], {"num_exploration": [2**70]}, "'num_exploration' must hold int32"),
        ([["i1"]], {"num_candidates": "many"}, "'num_candidates' must hold int32: .* 'many'"),
        ([["i1"], []], {"groups": [[0], [1.7]]}, "'groups' must hold int32: 1.7 is not a whole number"),
        ([["i1"]], {"group_boost": [1.0] * 3}, r"'group_boost' must be float32 \['\?', 5\], got the shape \[1, 3\]"),
        ([["i1"]], {"merge": "bogus"}, "'merge' must be one of quota, score, round_robin; got 'bogus'"),
        ([["i1"], []], {"merge": ["score", 7]}, "'merge' must hold string: 7 is not a string"),
    ],
)
def test_wrong_arguments_are_refused(
    session: ServableSession, histories: Any, inputs: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        session.recommend(histories, **inputs)


def test_a_merge_that_there_is_not_empties_its_row_alone(session: ServableSession) -> None:
    """In the graph, as in a batch of TF Serving that holds other callers' rows."""
    inputs = {**history_inputs([["i5"], ["i6"]]), Request.MERGE: np.array([b"avarage", b""], object)}
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


def test_an_input_that_there_is_not_may_be_left_out(session: ServableSession) -> None:
    """As by a caller who passes on options, to a servable of older code."""
    plain = session.recommend([["i1"]])
    assert session.recommend([["i1"]], not_yet=None).item_ids.tolist() == plain.item_ids.tolist()
    with pytest.raises(ValueError, match="has no input 'not_yet'"):
        session.recommend([["i1"]], not_yet=1)


@pytest.mark.filterwarnings("error")
def test_what_is_beyond_a_float32_is_infinite(session: ServableSession) -> None:
    """Of which the servable makes its largest; the largest float32 is 3.4e38."""
    given = {Request.ALPHA: 1e39, "age": [1e39], Request.GROUP_BOOST: [[1e39, 1.0, 1.0, 1.0, -1e39]]}
    arrays = request_arrays(session.specs[Signature.SERVING_DEFAULT], given, 1)
    assert arrays[Request.ALPHA].tolist() == arrays["age"].tolist() == [np.inf]
    assert arrays[Request.GROUP_BOOST].tolist() == [[np.inf, 1.0, 1.0, 1.0, -np.inf]]


def test_a_user_may_go_without_a_list(session: ServableSession) -> None:
    """Lists are padded on the left, by one place at least: TF Serving pads a batch with a row's first value."""
    spec = session.specs[Signature.SERVING_DEFAULT]
    for groups, padded in (([[1], None, [2, 3]], [[-1, -1, 1], [-1, -1, -1], [-1, 2, 3]]), ([], [[-1]] * 3)):
        assert request_arrays(spec, {Request.GROUPS: groups}, 3)[Request.GROUPS].tolist() == padded
