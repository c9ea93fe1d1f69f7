"""What groups are called, by hand."""

import numpy as np

from beam_jobs.features.side_features import SideFeatures, TokenFeature
from beam_jobs.grouping.group_report import describe_groups


def test_a_group_is_called_by_what_is_frequent_in_it_and_rarer_elsewhere() -> None:
    groups = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    # All items are new; 0, 1 and 3 are red, 1 and 2 are old, 3, 4 and 5 are blue, 4 alone is odd.
    of_value = {"new": range(8), "red": [0, 1, 3], "old": [1, 2], "blue": [3, 4, 5], "odd": [4]}
    pairs = sorted((item, code) for code, items in enumerate(of_value.values()) for item in items)
    items, codes = np.array(pairs, np.int32).T
    side = SideFeatures(8, [TokenFeature("colour", list(of_value), items, codes)], {}, ["A", "", *"CDEFGH"])
    first, second, last = describe_groups(groups, 3, [f"i{item}" for item in range(8)], side)
    # p log(p / p of all): of old 2/3 log(2/3 / 2/8) = .65, of red 2/3 log(2/3 / 3/8) = .38, of new 1 log 1 = 0.
    assert first == {"group_id": 0, "size": 3, "label": "old, red", "top_items": ["A", "i1", "C"]}
    assert second["label"] == "blue"  # of red and odd there is one each, which tells nothing
    assert last == {"group_id": 2, "size": 2, "label": "G; H", "top_items": ["G", "H"]}


def test_a_word_that_an_item_says_often_is_one_of_its_words() -> None:
    """Both items of group 0 say "sea", of group 1 one does; item 0 says "very" three times."""
    items, codes = np.array([0, 0, 0, 0, 1, 2, 3, 3], np.int32), np.array([0, 1, 1, 1, 0, 2, 0, 2], np.int32)
    side = SideFeatures(4, [TokenFeature("text", ["sea", "very", "land"], items, codes)], {}, list("ABCD"))
    reports = describe_groups(np.array([0, 0, 1, 1]), 2, list("abcd"), side)
    assert [report["label"] for report in reports] == ["sea", "land"]
