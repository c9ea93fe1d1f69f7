"""Side features as a matrix for the ridge regression that places items without history."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import side_features
from beam_jobs.side_features import read_side_features
from contracts.config import FeatureTable


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
