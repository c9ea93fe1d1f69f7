"""Side features as a matrix for the ridge regression that places items without history."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import side_features
from beam_jobs.side_features import read_side_features, take_apart
from contracts.config import Feature, FeatureTable


@pytest.mark.parametrize(
    ("of_each", "of_all", "kept"),
    [(9, 100, [2, 8, 9]), (5, 100, [2, 5, 5]), (9, 12, [2, 5, 5]), (9, 5, [1, 1, 1]), (9, 18, [2, 8, 8])],
    ids=["all but one fit", "each is cut", "the large are cut alike", "all are cut", "what is left over stays so"],
)
def test_the_most_frequent_values_of_each_feature_are_columns(
    of_each: int, of_all: int, kept: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many features there are: a system of all their values would take hours."""
    monkeypatch.setattr(side_features, "_MAX_VALUES", of_each)
    monkeypatch.setattr(side_features, "_MAX_VALUES_OF_ALL", of_all)
    rng = np.random.default_rng(0)
    cells = {}
    for name, number in (("two", 2), ("eight", 8), ("twenty", 20)):
        # Value 0 occurs most often, each next one less often.
        drawn = np.repeat(np.arange(number), np.arange(number, 0, -1) * 3)
        cells[name] = [f"{name}{value:02d}" for value in rng.permutation(np.resize(drawn, 700)[:630])]
    pq.write_table(pa.table({"id": [str(item) for item in range(630)], **cells}), tmp_path / "items.parquet")
    features = [{"name": name, "kind": "categorical"} for name in cells]
    table = FeatureTable.model_validate({"path": str(tmp_path / "items.parquet"), "id": "id", "features": features})
    matrix = read_side_features(table, pa.array([str(item) for item in range(630)])).matrix().toarray()
    expected = []
    for (_, column), number in zip(cells.items(), kept, strict=True):
        often = sorted(Counter(column).items(), key=lambda pair: (-pair[1], pair[0]))[:number]
        expected += [[cell == value for cell in column] for value, _ in often]
    np.testing.assert_array_equal(matrix, np.array(expected).T)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1 << 15])
@pytest.mark.parametrize("kind", ["categorical", "tokens", "text"])
def test_a_column_is_taken_apart_the_same_in_blocks_of_any_length(
    kind: str, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_features, "_ROWS_AT_ONCE", rows_at_once)
    rng = np.random.default_rng(1)
    lists = [rng.choice(["a", "b", "caf\xe9", "d", "e"], rng.integers(0, 5)).tolist() for _ in range(40)]
    separator, between = {"categorical": (None, "+"), "tokens": ("|", "||"), "text": (" ", " - ")}[kind]
    cells = [between.join(each) for each in lists]
    found = take_apart(Feature(name="x", kind=kind), pa.array([cell.encode() for cell in cells]))
    pairs = [
        (place, value)
        for place, cell in enumerate(cells)
        for value in ([cell] if separator is None else cell.replace("-", " ").split(separator))
        if value
    ]
    often = Counter(value for _, value in pairs)
    assert found.values == sorted(often, key=lambda value: (-often[value], value.encode()))
    assert [(item, found.values[code]) for item, code in zip(found.items, found.codes, strict=True)] == pairs


def test_words_are_taken_apart_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of rows at a time, and eight bytes a word are kept."""
    split, rows = side_features._split, []

    def counted(column: pa.Array, feature: Feature) -> pa.Array | None:
        rows.append(len(column))
        return split(column, feature)

    monkeypatch.setattr(side_features, "_split", counted)
    found = take_apart(Feature(name="x", kind="text"), pa.array([b"a b c"] * 100_000))
    assert sum(rows) == 100_000 and max(rows) <= 1 << 15
    assert found.items.nbytes + found.codes.nbytes == 8 * 300_000
