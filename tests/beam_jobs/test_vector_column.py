"""Vectors from any column that may hold them."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs.event_log import vector_column
from beam_jobs.event_log.vector_column import to_matrix, to_vectors
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import Feature, FeatureTable

NUMBERS = [[1.0, 2.0], None, [3.0, -4.5], [0.0, 1e-3]]
COLUMNS = {
    "list": pa.array(NUMBERS, pa.list_(pa.float64())),
    "large list": pa.array(NUMBERS, pa.large_list(pa.float32())),
    "fixed-size list": pa.array(NUMBERS, pa.list_(pa.float64(), 2)),
    "list of text": pa.array([cell and [str(value) for value in cell] for cell in NUMBERS]),
    "text": pa.array(["1 2", None, "3 -4.5", "0.0 1e-3"]),
    "text with brackets": pa.array(["[1 2]", None, " [3 -4.5] ", "0.0 1e-3"]),
    "text of few values": pa.array(["1 2", None, "3 -4.5", "0 .001"]).dictionary_encode(),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_every_form_gives_the_same_vectors(
    name: str, start: int, rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a slice, whose values lie elsewhere in memory; never more than a block of rows at a time."""
    read, rows = vector_column._read, []

    def counted(cells: pa.Array, *arguments: object) -> np.ndarray:
        rows.append(len(cells))
        return read(cells, *arguments)

    monkeypatch.setattr(vector_column, "_read", counted)
    monkeypatch.setattr(vector_column, "_ROWS_AT_ONCE", rows_at_once)
    feature = Feature(name="look", kind="vector", dim=2, separator=" ")
    vectors, is_malformed = to_vectors(pa.chunked_array([COLUMNS[name]]).slice(start), feature)
    expected = [cell or [np.nan] * 2 for cell in NUMBERS[start:]]
    np.testing.assert_array_equal(to_matrix(vectors), np.array(expected, np.float32))
    assert not is_malformed.any()
    assert max(rows) <= rows_at_once and sum(rows) == len(expected)


@pytest.mark.parametrize(("separator", "write"), [(" ", str), (",", lambda row: json.dumps(row.tolist(), indent=1))])
def test_vectors_are_read_from_csv_as_numpy_and_json_print_them(separator, write, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """NumPy lines columns up with spaces, and breaks lines after 75 characters."""
    rows = np.random.default_rng(0).normal(size=(9, 40)).astype(np.float32)
    with open(tmp_path / "items.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "look"], *([place, write(row)] for place, row in enumerate(rows))])
    assert "\n" in write(rows[0])
    features = (Feature(name="look", kind="vector", dim=40, separator=separator),)
    read = read_feature_table(FeatureTable(path=str(tmp_path / "items.csv"), id="id", features=features), "table")
    np.testing.assert_allclose(to_matrix(read.columns["look"]), rows, rtol=1e-6, atol=1e-7)
    assert read.counts["malformed_look"] == 0


def test_whole_numbers_and_what_float32_cannot_hold() -> None:
    feature = Feature(name="look", kind="vector", dim=1)
    cells = pa.array([[2**40], [7], [None], []], pa.list_(pa.int64()))
    vectors, is_malformed = to_vectors(pa.chunked_array([cells]), feature)
    np.testing.assert_array_equal(to_matrix(vectors)[:, 0], np.array([2**40, 7, np.nan, np.nan], np.float32))
    assert is_malformed.tolist() == [False, False, True, False]
    vectors, is_malformed = to_vectors(pa.chunked_array([[[1e300]], [[-1e300], [1e-300]]]), feature)
    np.testing.assert_array_equal(to_matrix(vectors)[:, 0], np.array([np.nan, np.nan, 0], np.float32))
    assert is_malformed.tolist() == [True, True, False]


def test_a_column_of_no_numbers_is_an_error_that_names_it(tmp_path) -> None:
    path = tmp_path / "items.parquet"
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"], "look": pa.array([{"x": 1}])}), path)
    table = FeatureTable(path=str(path), id="id", features=(Feature(name="look", kind="vector", dim=2),))
    with pytest.raises(ValueError, match=r"items.parquet, column 'look': .*struct"):
        read_feature_table(table, "data.item_features")


def test_what_pyarrow_cannot_read_is_explained(tmp_path) -> None:
    import pyarrow.parquet as pq

    path = tmp_path / "items.parquet"
    pq.write_table(
        pa.table({"id": list("abc"), "look": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32(), 2))}), path
    )
    table = FeatureTable(path=str(path), id="id", features=(Feature(name="look", kind="vector", dim=2),))
    with pytest.raises(ValueError, match="write lists of variable length"):
        read_feature_table(table, "data.item_features")


@pytest.mark.parametrize(("kind", "dim"), [("vector", 0), ("numeric", 3)])
def test_only_a_vector_has_a_length(kind: str, dim: int) -> None:
    with pytest.raises(ValueError, match="set dim to the vector's length"):
        Feature(name="look", kind=kind, dim=dim)
