"""What ids look like, how often, and what that tells."""

import pyarrow as pa
import pytest

from beam_jobs.event_log.id_shapes import (
    are_lists,
    are_random,
    begin_oddly,
    id_shapes,
    marks_of_absence,
    merge_shapes,
    spelled_twice,
)


def test_shapes_of_ids() -> None:
    ids = pa.array(["u1", "user22", "17", "17.0", "Ünï9", "a-b-c-d-e-f", "", "x y"])
    assert id_shapes(ids) == {"a9": 3, "9": 1, "9.9": 1, "a-a-a-a-": 1, "a a": 1}


def test_shapes_are_those_of_all_ids_however_many() -> None:
    """Of 50,000 ids every 13th, the least step by which no more than 4,096 are looked at."""
    ids = pa.array([str(number) for number in range(5_000)] + [f"{number}.0" for number in range(5_000, 50_000)])
    assert id_shapes(ids) == {"9": 385, "9.9": 3_462}  # 0, 13, .., 4,992 and 5,005, .., 49,998


def test_the_most_frequent_shapes_of_all_files_are_kept() -> None:
    """Of 100 shapes 64; of equally frequent ones the first by name."""
    counts = {f"a{number:02d}": 1 + number // 10 for number in range(100)}
    kept = merge_shapes([counts, {"a00": 50}])
    assert kept == {"a00": 51} | {
        name: counts[name] for name in [*(f"a{n}" for n in range(40, 100)), "a30", "a31", "a32"]
    }


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"9": 1.0}, False),
        ({"a": 0.5, "9": 0.5}, False),
        ({"a": 0.99, "b": 0.005, "c": 0.005}, False),  # a hundredth is odd: what is to come is of the same shape
        ({"a": 0.97, "b": 0.02, "c": 0.01}, True),
        ({"a": 0.94, "b": 0.06}, False),  # one shape of 6% is no rare one
    ],
)
def test_many_rare_shapes_are_those_of_random_characters(shares: dict[str, float], expected: bool) -> None:
    assert are_random(shares) == expected


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"a9": 5, " a9": 5}, None),  # half of them are not most
        ({"a9": 5, " a9": 4, '"a"': 1, "'9": 1}, " a9"),
        ({"a9": 3, '"a9"': 4}, '"a9"'),
        ({"a 9": 9}, None),
        ({}, None),
    ],
)
def test_what_most_ids_begin_with(shapes: dict[str, int], expected: str | None) -> None:
    assert begin_oddly(shapes) == expected


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["N55689-1 N35729-0 N1-0", "N3-0 N44-1"], "a9-9 a9-"),
        (["N1 N2 N3", "N1", "N4 N5", "N7 N8 N9 N10 N11"], "a9 a9 a9"),
        (["1,2,3", "17", "4,5"], "9,9,9"),
        (["1|2|3|4|5", "4|5", "9|17"], "9|9"),
        (["a1, a2, a3", "b1, b2"], "a9, a9, "),
        (["i1", "i2", "N1 N2 N3", "N1 N2"], None),  # half of them are not most
        (["Toy Story (1995)", "Twelve Monkeys (1995)", "Seven (1995)", "2001: A Space Odyssey (1968)"], None),
        (["Heat 2", "Rocky 4", "Rocky 5", "Se7en"], None),
        (["shop1|item7", "shop2|item8", "shop3|item9"], None),
        (["12 345", "13 346", "7 8"], None),
        (["978 3 16 148410 0", "978 3 86680 192 9"], None),
        (["S1 E2", "S1 E3", "S1"], None),
        (["2024-01-02 03:04:05", "2024-01-03 03:04:05"], None),
        ([], None),
    ],
)
def test_lists_of_ids_are_no_ids(ids: list[str], expected: str | None) -> None:
    assert are_lists(id_shapes(pa.array(ids, pa.string()))) == expected


def test_ids_that_are_there_as_whole_numbers_and_as_decimals() -> None:
    ids = pa.chunked_array([["17", "-3.0", "8", "8.5", "a7.0"], ["17.00", "-3", "9.0", "a7"]])
    assert spelled_twice(ids).to_pylist() == ["-3", "17"]


def test_ids_that_stand_for_none() -> None:
    ids = pa.chunked_array([["17", "NULL", "nullable"], [r"\N", "nan", "anna", "N"]])
    assert marks_of_absence(ids) == ["NULL", r"\N", "nan"]
