"""Feature tables: one with many rows of an id, as a log that is its own item table, and one without a sound row."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from beam_jobs import feature_tables
from beam_jobs.feature_statistics import feature_statistics
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
    said = r"of .*items\.csv no row can be used, 2 unreadable_rows .*: quotes in quoted cells are doubled"
    with pytest.raises(ValueError, match=said):
        list(feature_statistics(DataConfig.model_validate({"item_features": table})))


def test_cells_of_a_feature_called_rows_are_told_from_rows(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("id,rows\ni1,many\ni2,3\ni3\n")
    table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": [{"name": "rows", "kind": "numeric"}]}
    found = feature_tables.read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert {name: count for name, count in found.counts.items() if count} == {"unreadable_rows": 1, "malformed_rows": 1}
    assert found.examples["malformed_rows"] == "'many'"
    assert found.examples["unreadable_rows"].startswith("row 3")
