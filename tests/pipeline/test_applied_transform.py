"""Today's tables by the graphs of an earlier run, as `dnc index` reads them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_jobs import ingest, statistics, transform
from contracts.config import Config
from contracts.layout import Workdir
from pipeline.applied_transform import apply_transform
from tests.beam_jobs.helpers import make_config, write_log

ITEMS = range(10)
FEATURES = [
    {"name": "aisle", "kind": "categorical"},
    {"name": "tags", "kind": "tokens", "max_tokens": 3},
    {"name": "price", "kind": "numeric"},
    {"name": "colour", "kind": "vector", "dim": 2},
]


def row(item: int, **others: str) -> dict[str, str]:
    cells = {"id": f"i{item}", "aisle": f"{item % 3 + 38}", "tags": f"a{item % 2}|b", "price": f"{item + 1}"}
    return {**cells, "colour": f"{item}|{item % 4}", **others}


def config_of(folder: Path, rows: list[dict[str, str]], **data: object) -> Config:
    folder.mkdir(exist_ok=True)
    lines = [f"u{user},i{item},{user + 100 * item}" for user in range(4) for item in ITEMS]
    table = folder / "items.csv"
    table.write_text("\n".join(["\t".join(rows[0]), *("\t".join(one.values()) for one in rows)]).replace("\t", ";"))
    features = {"path": str(table), "id": "id", "features": FEATURES}
    return make_config(write_log(folder / "log.csv", lines), data={"item_features": features, **data})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    folder = tmp_path_factory.mktemp("trained")
    config, workdir = config_of(folder, [row(item) for item in ITEMS]), Workdir(folder / "run")
    for job in (ingest, statistics, transform):
        job.run(config, workdir, "f")
    return workdir


def applied(trained: Workdir, config: Config, folder: Path) -> Workdir:
    workdir = Workdir(folder / "run")
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    apply_transform(trained, config, workdir, "f")
    return workdir


def test_the_same_table_is_read_as_in_training(trained: Workdir, tmp_path: Path) -> None:
    """And two of ten items may change as they like, as data.max_drift says."""
    changed = [{"aisle": "39.0"}, {"aisle": ""}, *[{}] * 8]
    rows = [row(item, **changed[item]) for item in ITEMS]
    today = applied(trained, config_of(tmp_path, [*rows, row(10, aisle="7.0")]), tmp_path)
    before, after = (pq.read_table(workdir.transform.items).to_pydict() for workdir in (trained, today))
    places = [pq.read_table(one.item_statistics.items)["item_id"].to_pylist() for one in (trained, today)]
    order = [places[1].index(item) for item in places[0]]
    for name in ("tags", "price", "colour"):
        np.testing.assert_allclose([after[name][place] for place in order], before[name], rtol=1e-6, err_msg=name)
    aisles = dict(zip(places[1], after["aisle"], strict=True))
    known = dict(zip(places[0], before["aisle"], strict=True))
    assert min(known.values()) > 0
    assert aisles == known | dict.fromkeys(("i0", "i1", "i10"), 0)


@pytest.mark.parametrize(
    ("name", "written", "said"),
    [
        ("aisle", "39.0", "where it is '39.0'"),
        ("tags", "a0,b", "where it is 'a0,b'"),
        ("price", "", "where it is missing"),
        ("colour", "", "where it is missing"),
    ],
)
def test_a_column_that_the_model_cannot_read_any_more_is_refused(
    name: str, written: str, said: str, trained: Workdir, tmp_path: Path
) -> None:
    rows = [row(item, **({name: written} if item < 3 else {})) for item in ITEMS]
    known = sum(bool(row(item)[name]) for item in ITEMS)
    with pytest.raises(ValueError, match=rf"^data\.item_features: of {known} items that had a '{name}'") as caught:
        applied(trained, config_of(tmp_path, rows), tmp_path)
    assert "3 have none now, more than data.max_drift=0.2, e.g. item 'i" in str(caught.value)
    assert said in str(caught.value)
    assert not Workdir(tmp_path / "run").transform.path.exists()
    apply_transform(trained, config_of(tmp_path, rows, max_drift=0.3), Workdir(tmp_path / "run"), "f")
