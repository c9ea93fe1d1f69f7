"""Schema and drift: what the next span may change, and what stops it."""

from pathlib import Path

import pyarrow as pa
import pytest

from beam_jobs import ingest
from beam_jobs.id_shapes import id_shapes
from beam_jobs.span_schema import read_schema
from beam_jobs.span_statistics import histograms_of, read_statistics
from contracts.config import Config
from contracts.layout import Workdir
from tests.beam_jobs.helpers import make_config, write_log

HEADER = "user_id,item_id,timestamp,event"
LEVELS = {"levels": ["exposure", "click", "purchase"], "target_level": "click"}


def test_shapes_of_ids() -> None:
    ids = pa.array(["u1", "user22", "17", "17.0", "Ünï9", "a-b-c-d-e-f", "", "x y"])
    assert id_shapes(ids) == {"a9": 3, "9": 1, "9.9": 1, "a-a-a-a-": 1, "a a": 1}


def _log(folder: Path, name: str, users: str = "u{}", clicks: int = 4, rows: int = 40, day: int = 0) -> Path:
    """`clicks` of each 10 rows are clicks, the others exposures."""
    start = 1_700_000_000 + day * 86_400
    lines = [
        f"{users.format(row % 7)},{row},{start + row},{'click' if row % 10 < clicks else 'exposure'}"
        for row in range(rows)
    ]
    return write_log(folder / name, lines, HEADER)


def _config(log: Path, **data: object) -> Config:
    return make_config(log, data={"events": str(log), "columns": {"event": "event"}, "feedback": LEVELS, **data})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    folder = tmp_path_factory.mktemp("first")
    workdir = Workdir(folder / "run")
    ingest.run(_config(_log(folder, "log.csv")), workdir, "f")
    return workdir


def test_first_run_infers_schema_and_statistics(first: Workdir) -> None:
    shares = histograms_of(read_statistics(first.events.statistics))
    assert shares == {
        "user_id.shape": {"a9": 1.0},
        "item_id.shape": {"9": 1.0},
        "feedback_level": {"exposure": 0.6, "click": 0.4},
    }
    domains = {feature.name: list(feature.string_domain.value) for feature in read_schema(first.events.schema).feature}
    assert domains == {"user_id.shape": ["a9"], "item_id.shape": ["9"], "feedback_level": ["click", "exposure"]}


def test_a_like_span_passes_and_carries_the_schema_on(first: Workdir, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    ingest.run(_config(_log(tmp_path, "log.csv", clicks=5, day=1), previous=str(first.events.path)), workdir, "f")
    assert workdir.events.schema.read_text() == first.events.schema.read_text()


# name -> (the log's difference, what the message must hold)
STOPPED: dict[str, tuple[dict[str, object], str]] = {
    "integers became floats": ({"users": "{}.0", "day": 1}, r"breaks the schema.*user_id.shape: 100.0%.*'9.9' 100.0%"),
    "clicks doubled": ({"clicks": 8, "day": 1}, r"the share of 'click' went from 40.0% to 80.0%.*data.max_drift=0.2"),
    "most rows are missing": ({"rows": 10, "day": 1}, r"events: 10, after 40.*data.min_volume=0.3"),
    "an old log": ({"day": -1}, r"the last event is 24.0 hours older"),
}


@pytest.mark.parametrize("name", STOPPED)
def test_what_stops_a_span(name: str, first: Workdir, tmp_path: Path) -> None:
    change, message = STOPPED[name]
    log = _log(tmp_path, "log.csv", **change)  # type: ignore[arg-type]
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        ingest.run(_config(log, previous=str(first.events.path)), workdir, "f")
    assert not workdir.events.path.exists()


def test_previous_must_be_whole(first: Workdir, tmp_path: Path) -> None:
    log = _log(tmp_path, "log.csv")
    with pytest.raises(ValueError, match=r"data\.previous: no artifact at"):
        ingest.run(_config(log, previous=str(tmp_path)), Workdir(tmp_path / "run"), "f")
