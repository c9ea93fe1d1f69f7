"""Side features as a matrix for the ridge regression that places items without history."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs.features import side_features
from beam_jobs.features.side_features import SideFeatures, read_side_features, take_apart
from beam_jobs.grouping.cold_items import embed_cold
from beam_jobs.grouping.item_embeddings import normalise_rows
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
    matrix = read_side_features(table, pa.array([str(item) for item in range(630)])).columns().values.toarray()
    expected = []
    for (_, column), number in zip(cells.items(), kept, strict=True):
        often = sorted(Counter(column).items(), key=lambda pair: (-pair[1], pair[0]))[:number]
        expected += [[cell == value for cell in column] for value, _ in often]
    np.testing.assert_array_equal(matrix, np.array(expected).T)


def test_a_value_that_an_item_has_twice_is_one_of_its_values() -> None:
    cells = pa.array([b"the sea, the sand and the sun", b"sand", b"the"])
    side = SideFeatures(3, [take_apart(Feature(name="text", kind="text"), cells)], {}, [])
    words = side.tokens[0].values
    expected = [[word in said for word in words] for said in (["the", "sea", "sand", "and", "sun"], ["sand"], ["the"])]
    np.testing.assert_array_equal(side.columns().values.toarray(), expected)


def test_items_without_history_lie_where_a_ridge_regression_puts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks that do not end where items do; the same regression, of all columns in one dense matrix."""
    monkeypatch.setattr(side_features, "_DENSE_ROWS", 7)
    rng = np.random.default_rng(2)
    colours, prices, looks = rng.integers(0, 4, 60), rng.normal(5, 3, (60, 1)), rng.normal(size=(60, 3))
    prices[::6], looks[::5, 1] = np.nan, np.nan
    colours[[5, 57]], prices[[5, 57]], looks[[5, 57]] = 3, np.nan, np.nan  # of these nothing is known
    numbers = {"price": prices, "look": looks, "same": np.full((60, 1), 0.1), "none": np.full((60, 2), np.nan)}
    values = take_apart(Feature(name="colour", kind="categorical"), pa.array([b"abc"[c : c + 1] for c in colours]))
    side = SideFeatures(60, [values], {name: each.astype(np.float32) for name, each in numbers.items()}, [])
    embeddings = normalise_rows(rng.normal(size=(60, 5)))
    embeddings[40:] = 0
    columns = [np.equal.outer(colours, range(3)).astype(float)]  # the last colour is none
    for each in (prices, looks):
        known = ~np.isnan(each).any(axis=1)
        scaled = (each - each[known].mean(axis=0)) / each[known].std(axis=0) / each.shape[1] ** 0.5
        columns.append(np.where(known[:, None], scaled, 0))
    x = np.concatenate(columns, axis=1)
    tells = x.any(axis=1)
    train, cold = tells & (np.arange(60) < 40), tells & (np.arange(60) >= 40)
    mean = embeddings[train].mean(axis=0)
    weights = np.linalg.inv(x[train].T @ x[train] + np.eye(x.shape[1])) @ x[train].T @ (embeddings[train] - mean)
    expected = embeddings.copy()
    expected[cold] = normalise_rows(x[cold] @ weights + mean)
    found, placed = embed_cold(embeddings, side.columns())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(placed, expected.any(axis=1))
    assert np.flatnonzero(~placed).tolist() == [57]


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
    # A group of categories holds an item once, by the first of its values.
    assert found.first_values(40).to_pylist() == [dict(reversed(pairs)).get(place) for place in range(40)]


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
