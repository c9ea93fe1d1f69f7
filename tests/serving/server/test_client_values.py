"""Values that callers give the client, over both transports."""

from __future__ import annotations

import math

import numpy as np
import pytest


def test_bytes_of_another_encoding_are_an_unknown_id(client):
    [known], [both] = (client.recommend([history], num_candidates=5) for history in (["i1"], [b"\xff\xfe", "i1"]))
    assert both.item_ids == known.item_ids
    assert client.candidate_embedding([b"\xff"])[1].tolist() == [-1]


def test_histories_that_are_given_twice_are_refused(client):
    """One of the two would be dropped without a word."""
    for ask in (client.recommend, client.query_embedding):
        with pytest.raises(ValueError, match=r"the histories are the first argument: leave out history=\[\['i2'\]\]"):
            ask([["i1"]], history=[["i2"]])


def test_lists_of_lists_where_values_belong_are_refused_by_name(client):
    """As in REST's rows, which are easily copied."""
    with pytest.raises(ValueError, match="input 'num_candidates' is nested too deeply"):
        client.recommend([["i1"], ["i2"]], num_candidates=[[3], [4]])
    with pytest.raises(ValueError, match="input 'item_ids' is nested too deeply"):
        client.candidate_embedding([["i1"], ["i2"]])


@pytest.mark.parametrize("timeout", [math.inf, 1e15])
def test_a_timeout_may_be_without_end(client, timeout):
    assert client.recommend([["i1"]], num_candidates=2, timeout=timeout)[0].item_ids
    client.wait_until_ready(timeout)


@pytest.mark.parametrize("mark", ["False", "", 2, 0.5, float("nan")])
def test_a_mark_that_is_neither_true_nor_false_is_refused(client, mark):
    """Any text but the empty one is true to Python: of a log's "False", every event would be context."""
    with pytest.raises(ValueError, match="'history_is_context' must hold true or false; got "):
        client.recommend([["i1", "i2"]], history_is_context=[[True, mark]])
    same = [client.recommend([["i1", "i2"]], history_is_context=[[one, None]])[0] for one in (False, 0, np.False_)]
    assert same[0].item_ids == same[1].item_ids == same[2].item_ids


def test_none_for_one_user_leaves_out_a_list_of_fixed_length(client):
    """As it does of one value, and of a list of any length."""
    boosts, histories = [[0.0, 1.0, 1.0, 0.5, 2.0], [1.0] * 5], [["i1"], ["i2"]]
    given, left_out = (
        client.recommend(histories, num_candidates=9, group_boost=[boosts[0], other]) for other in (boosts[1], None)
    )
    assert [found.item_ids for found in left_out] == [found.item_ids for found in given]
    with pytest.raises(ValueError, match="input 'num_candidates' is nested too deeply"):
        client.recommend(histories, num_candidates=[[3], None])


@pytest.mark.parametrize("users", [1, 2, 5])  # there are five groups
def test_none_for_every_user_leaves_it_out(client, users):
    histories = [["i1"], ["i2"], ["i3"], ["i4"], ["i5"]][:users]
    plain = client.recommend(histories, num_candidates=9)
    for name in ("group_boost", "groups", "exclude_item_ids", "alpha", "merge"):
        left_out = client.recommend(histories, num_candidates=9, **{name: [None] * users})
        assert [found.item_ids for found in left_out] == [found.item_ids for found in plain], name
    with pytest.raises(ValueError, match="input 'group_boost' must be float32"):
        client.recommend(histories, group_boost=[None] * 3)


def test_marks_that_are_no_lists_are_refused(client):
    with pytest.raises(ValueError, match="'history_is_context' must hold a list per user; got True"):
        client.recommend([["i1"]], history_is_context=True)


def test_an_array_of_no_dimension_is_a_single_value(client):
    given, as_array = (
        client.recommend([["i1"], ["i2"]], num_candidates=number, merge=merge)
        for number, merge in ((3, "quota"), (np.array(3), np.array("quota")))
    )
    assert [found.item_ids for found in as_array] == [found.item_ids for found in given]
    with pytest.raises(ValueError, match="input 'groups' must be a list, or one list per user; got array"):
        client.recommend([["i1"]], groups=np.array(1))
