"""Columns of a feature table whose values are hardly those that were meant: what is said of them."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.event_log.span_statistics import histograms_of
from beam_jobs.features.feature_statistics import feature_statistics
from contracts.config import DataConfig

VALUES = ["drama", "comedy", "crime", "war", "horror"]
PAIRS = [(one, other) for one in VALUES for other in VALUES]

PRINTED = "has lists, sets or arrays in printed form"

# (kind, name) -> (cells, what is said)
COLUMNS: dict[tuple[str, str], tuple[list, str | None]] = {
    ("tokens", "printed lists"): ([str(["a", "b"]), json.dumps(["b", "c"]), ""], PRINTED),
    ("tokens", "printed sets"): (["{'a', 'b'}", "{'a'}", "", "{'c'}", "set()"], PRINTED),
    ("tokens", "printed tuples"): ([str(("a", "b")), str(("c",))], PRINTED),
    ("tokens", "PostgreSQL's arrays"): (["{a,b}", "{c}", "{}"], PRINTED),
    ("tokens", "some in other brackets"): (["a|b", "{x}|c", "c|(live)", "(live)"], None),
    ("categorical", "printed pairs"): ([*map(str, PAIRS)], f"{PRINTED}, and each of 25 combinations of 5 values"),
    ("categorical", "arrays of pairs"): (
        ["{" + ",".join(pair) + "}" for pair in PAIRS],
        f"{PRINTED}.*set kind: tokens",
    ),
    ("categorical", "bracketed values"): ([f"({value})" for value in VALUES * 10], None),
    ("categorical", "bracketed names"): ([f"[Smith, {number}]" for number in range(40)], None),
    ("tokens", "some in brackets"): (["a|b", "[live]|c", "c"], None),
    ("tokens", "lists"): ([["a", "b"]] * 3, None),
    ("tokens", "spaces behind"): (
        ["a| b| c", "b| a", "a", "c|b"],
        r"a space after each '\|', .*: set separator: '\| '",
    ),
    ("tokens", "a space in a value"): (["rock| pop", "pop|rock", "pop|a b"], None),
    ("tokens", "another separator"): (
        ["a, b", "b,c", "a", ""],
        r"',' in most cells, and '\|' in none, .*: set separator",
    ),
    ("tokens", "single values"): (["a", "b", "c, d"], None),
    ("tokens", "commas in values"): (["a|b, c", "d, e", "f, g"], None),
    ("categorical", "pairs"): (
        ["", *map("|".join, PAIRS)],
        r"25 categories made of 5 values separated by '\|', .*separator: '\|'$",
    ),
    ("categorical", "pairs with commas"): ([*map(",".join, PAIRS)], "set kind: tokens and separator: ','$"),
    ("categorical", "pairs with spaces"): ([*map(", ".join, PAIRS)], "25 categories made of 5 .* separator: ', '$"),
    ("categorical", "few pairs"): ([*map("|".join, PAIRS[:9])], None),
    ("categorical", "names"): ([f"Smith, {number}" for number in range(40)], None),
    ("categorical", "first names"): ([f"Smith {a}, {name}" for a in range(9) for name in VALUES], None),
    ("categorical", "numbers"): ([f"{number:,}" for number in range(1_000, 5_000)], None),
    ("categorical", "paths"): ([f"{a}|{leaf}" for a in range(9) for leaf in VALUES], None),
    ("categorical", "single values"): (VALUES * 10, None),
    ("text", "pairs"): ([*map("|".join, PAIRS)], None),
}


@pytest.mark.parametrize("name", COLUMNS, ids="-".join)
def test_values_that_are_hardly_meant_are_said(
    name: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of "Food, Bars" and "Bars, Food", as Yelp has them, there would be four tokens; so would be of "['a', 'b']".

    And MovieLens' genres "Drama|War" and "War" would have nothing in common as categories.
    """
    cells, said = COLUMNS[name]
    path = tmp_path / "items.parquet"
    pq.write_table(pa.table({"id": list(range(len(cells))), "it": cells}), path)
    table = {"path": str(path), "id": "id", "features": [{"name": "it", "kind": name[0]}]}
    list(feature_statistics(DataConfig.model_validate({"item_features": table})))
    found = [record.getMessage() for record in caplog.records if "column 'it' of" in record.getMessage()]
    assert len(found) == (said is not None) and (said is None or re.search(said, found[0]))


@pytest.mark.filterwarnings("error")
def test_a_long_vector_is_there(tmp_path: Path) -> None:
    """3e20 and 4e20 are float32, as are none of their squares; a length is 5 times a power of ten."""
    lists = [[3e20, 4e20], [3.0, 4.0], [0.0, 0.0], [float("nan"), 1.0]]
    pq.write_table(pa.table({"id": list("abcd"), "picture": lists}), tmp_path / "i.parquet")
    feature = {"name": "picture", "kind": "vector", "dim": 2}
    table = {"path": str(tmp_path / "i.parquet"), "id": "id", "features": [feature]}
    (statistics,) = feature_statistics(DataConfig.model_validate({"item_features": table}))
    shares = histograms_of(statistics)["item_features.picture"]
    assert shares == {"1e20": 0.25, "1e0": 0.25, "0": 0.25, "(missing)": 0.25}
