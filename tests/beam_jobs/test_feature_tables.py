"""Feature tables: one with many rows of an id, as a log that is its own item table, and one without a sound row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from beam_jobs.event_log.csv_blocks import RawBatch
from beam_jobs.event_log.event_columns import validate
from beam_jobs.features import feature_tables
from beam_jobs.features.feature_statistics import feature_statistics
from contracts.config import DataConfig, FeatureTable

ROWS, ITEMS, CELL = 200_000, 300, 100

FORMATS: dict[str, Callable[[pa.Table, Path], object]] = {"parquet": pq.write_table, "csv": pa_csv.write_csv}


@pytest.mark.parametrize("kind", FORMATS)
def test_of_each_id_the_first_row_is_kept_and_hardly_any_other_held(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told from Python's own dict. All rows, with their cells of a hundred bytes, are 20 MB."""
    ids: list[str | None] = [f"i{item}" for item in np.random.default_rng(0).integers(0, ITEMS, ROWS).tolist()]
    ids[::1000] = [""] * len(ids[::1000])
    brands = [f"{row:0{CELL}d}" for row in range(ROWS)]
    path = tmp_path / f"log.{kind}"
    FORMATS[kind](pa.table({"id": ids, "brand": brands}), path)
    expected = dict(reversed([(item, brand.encode()) for item, brand in zip(ids, brands, strict=True) if item]))
    held: list[int] = []
    check = feature_tables.check_ids

    def watched(values: pa.Array) -> np.ndarray:
        held.append(pa.total_allocated_bytes())
        return check(values)

    monkeypatch.setattr(feature_tables, "check_ids", watched)
    monkeypatch.setattr(feature_tables, "_ROWS_HELD", 10_000)
    monkeypatch.setattr(feature_tables.read_csv_batches, "__defaults__", (1 << 20,))
    before = pa.total_allocated_bytes()
    table = FeatureTable.model_validate(
        {"path": str(path), "id": "id", "features": [{"name": "brand", "kind": "categorical"}]}
    )
    found = feature_tables.read_feature_table(table, "data.item_features")
    assert dict(zip(found.ids.to_pylist(), found.columns["brand"].to_pylist(), strict=True)) == expected
    assert found.ids.to_pylist() == sorted(expected, key=lambda item: expected[item or ""])
    counts = {"unusable_ids": ROWS // 1000, "repeated_ids": ROWS - ROWS // 1000 - ITEMS}
    assert {name: count for name, count in found.counts.items() if count} == counts
    assert max(held) - before < ROWS * CELL / 2


def test_a_table_of_unreadable_rows_alone_stops_the_run(tmp_path: Path) -> None:
    """As Spark writes titles, and Book-Crossing has them: the model would have been trained without a feature."""
    (tmp_path / "items.csv").write_text('item_id,title\n"i1","a \\"b\\", c"\n"i2","\\"d\\", e"\n')
    table = {"path": str(tmp_path / "items.csv"), "id": "item_id", "features": [{"name": "title", "kind": "text"}]}
    said = r"no row of .*items\.csv can be used, 2 unreadable_rows .*: quotes in quoted cells must be doubled"
    with pytest.raises(ValueError, match=said):
        list(feature_statistics(DataConfig.model_validate({"item_features": table})))


def test_a_changed_byte_is_found_by_the_checksum_of_its_page(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    columns = pa.table({"id": ["i1", "i2"], "brand": ["acme", "apex"]})
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(columns, path, **options, write_page_checksum=True)
    path.write_bytes(path.read_bytes().replace(b"acme", b"acne"))
    table = FeatureTable.model_validate(
        {"path": str(path), "id": "id", "features": [{"name": "brand", "kind": "categorical"}]}
    )
    with pytest.raises(ValueError, match=r"data\.item_features\.path: .*checksum.*: get an intact copy"):
        feature_tables.read_feature_table(table, "data.item_features")


def test_cells_of_a_feature_called_rows_are_told_from_rows(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,rows\ni1,many\ni2,3\ni3\n")
    table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": [{"name": "rows", "kind": "numeric"}]}
    found = feature_tables.read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert {name: count for name, count in found.counts.items() if count} == {"unreadable_rows": 1, "malformed_rows": 1}
    assert found.examples["malformed_rows"] == "'many'"
    assert found.examples["unreadable_rows"].startswith("row 3")


@pytest.mark.parametrize("is_dictionary", [False, True])
@pytest.mark.parametrize(("kind", "exact"), [(pa.float32(), 2**24), (pa.float64(), 2**53)], ids=str)
def test_ids_that_may_be_two_are_set_aside_as_in_the_log(
    kind: pa.DataType, exact: int, is_dictionary: bool, tmp_path: Path
) -> None:
    """2^24 + 1 is 2^24 in 32 bits, as 2^53 + 1 is 2^53 in 64."""
    ids = pa.array([exact - 2, exact - 1, exact, exact + 1, None]).cast(kind, safe=False)
    ids = ids.dictionary_encode() if is_dictionary else ids
    pq.write_table(pa.table({"item_id": ids, "year": [1, 2, 3, 4, 5]}), tmp_path / "items.parquet")
    features = [{"name": "year", "kind": "numeric"}]
    table = {"path": str(tmp_path / "items.parquet"), "id": "item_id", "features": features}
    found = feature_tables.read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert found.ids.to_pylist() == [str(exact - 2), str(exact - 1)]
    assert found.counts["unusable_ids"] == 3
    log = pa.table({"user_id": list("abcde"), "item_id": ids, "timestamp": [1, 2, 3, 4, 5]})
    events = validate(RawBatch(log, np.arange(5)), DataConfig()).events
    assert events["item_id"].to_pylist() == found.ids.to_pylist()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_number_that_32_bits_cannot_hold_is_malformed(kind: str, tmp_path: Path) -> None:
    """The largest is 3.4028e38; an infinite one, and none, are missing, and nothing is wrong with them."""
    prices = [1e39, -4e38, 3.4e38, float("inf"), None, 2.5]
    FORMATS[kind](pa.table({"id": list("abcdef"), "price": prices}), tmp_path / f"items.{kind}")
    features = [{"name": "price", "kind": "numeric"}]
    table = {"path": str(tmp_path / f"items.{kind}"), "id": "id", "features": features}
    found = feature_tables.read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert found.counts["malformed_price"] == 2
    assert float(found.examples["malformed_price"].strip("'")) == 1e39
    values = found.columns["price"].to_numpy()
    assert np.flatnonzero(np.isfinite(values)).tolist() == [2, 5]
    assert values[[2, 5]].tolist() == [np.float32(3.4e38), 2.5]
