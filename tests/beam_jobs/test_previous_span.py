"""Schema and drift: what the next span may change, and what stops it."""

import shutil
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from beam_jobs import ingest
from beam_jobs.event_log.id_shapes import id_shapes, merge_shapes
from beam_jobs.event_log.span_schema import drift_anomalies, infer_schema, read_schema, schema_anomalies
from beam_jobs.event_log.span_statistics import (
    Statistics,
    dataset_statistics,
    event_statistics,
    histograms_of,
    last_event,
    late_event,
    read_statistics,
)
from beam_jobs.features.feature_statistics import feature_statistics, magnitudes, value_counts
from contracts.artifact import writing
from contracts.config import Config, DataConfig, Feature
from contracts.layout import Workdir
from tests.beam_jobs.helpers import make_config, write_log

HEADER = "user_id,item_id,timestamp,event"
LEVELS = {"levels": ["exposure", "click", "purchase"], "target_level": "click"}


LETTERS = list(string.ascii_letters + string.digits + "-_")


def _of_random_characters(number: int, length: int, seed: int) -> list[str]:
    return ["".join(row) for row in np.random.default_rng(seed).choice(LETTERS, (number, length))]


def _statistics_of_ids(ids: list[str], files: int = 1) -> Statistics:
    """Those of a log with all of its ids in each file."""
    shapes = merge_shapes([merge_shapes([id_shapes(pa.array(ids))])] * files)
    return event_statistics(len(ids), {"item_id.shape": shapes}, 0, 1, 1, 0)


@pytest.mark.parametrize(("before", "after"), [(20, 20), (50, 300), (300, 100), (300, 30_000)])
@pytest.mark.parametrize("files", [1, 5])
@pytest.mark.parametrize("length", [11, 22])
def test_ids_of_random_characters_raise_no_false_alarm(length: int, files: int, before: int, after: int) -> None:
    first = _statistics_of_ids(_of_random_characters(before, length, 0), files)
    second = _statistics_of_ids(_of_random_characters(after, length, 1), files)
    assert schema_anomalies(infer_schema([first]), [second]) == []
    assert drift_anomalies(second, first, 0.2, 0.3) == []


def test_a_feature_that_the_schema_lacks_is_named() -> None:
    statistics = [dataset_statistics("user_features", 2, {"user_features.country": {"DE": 2}})]
    assert schema_anomalies(infer_schema([]), statistics) == ["user_features.country is not in the schema"]


def test_a_change_to_or_from_random_characters_is_seen() -> None:
    plain = _statistics_of_ids([str(number) for number in range(300)])
    random = _statistics_of_ids(_of_random_characters(300, 11, 0))
    assert schema_anomalies(infer_schema([plain]), [random]) != []
    assert drift_anomalies(plain, random, 0.2, 0.3) != []


def test_a_few_odd_ids_leave_the_others_their_domain() -> None:
    odd = ["unknown", "test-1"]
    schema = infer_schema([_statistics_of_ids([*odd, *(str(number) for number in range(300))])])
    changed = _statistics_of_ids([*odd, *(f"{number}{'.0' if number < 30 else ''}" for number in range(300))])
    assert schema_anomalies(schema, [changed]) == ["item_id.shape: 9.9% of values are not in its domain ('9.9' 9.9%)"]


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
    [events] = read_statistics(first.events.statistics)
    shares = histograms_of(events)
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


def test_a_day_of_few_events_is_no_table_that_has_lost_rows(
    first: Workdir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the last day's, as on a holiday: data.min_volume and the retrain's limits are for that."""
    ingest.run(
        _config(_log(tmp_path, "log.csv", rows=20, day=1), previous=str(first.events.path)),
        Workdir(tmp_path / "run"),
        "f",
    )
    assert "rows, after" not in caplog.text


def test_a_log_in_more_files_is_the_same_log(tmp_path: Path) -> None:
    """Members come all day, guests once: counted by files, members would be half of the users, and then nine tenths."""
    (tmp_path / "hours").mkdir()
    day = []
    for hour in range(12):
        users = [f"m{member}" for member in range(20)] + [f"{hour}-{guest}" for guest in range(2)]
        rows = [f"{user},{row},{1_700_000_000 + 60 * hour},click" for row, user in enumerate(users)]
        write_log(tmp_path / "hours" / f"{hour:02d}.csv", rows, HEADER)
        day += rows
    whole = write_log(tmp_path / "day.csv", day, HEADER)
    one, many = Workdir(tmp_path / "one"), Workdir(tmp_path / "many")
    ingest.run(_config(whole), one, "f")
    ingest.run(_config(tmp_path / "hours" / "*.csv", previous=str(one.events.path)), many, "f")
    assert many.events.statistics.read_text() == one.events.statistics.read_text()


def test_a_clock_that_is_years_ahead_does_not_make_the_next_span_an_old_one(tmp_path: Path) -> None:
    log, ahead = _log(tmp_path, "log.csv"), 1_700_000_000 + 6 * 365 * 86_400
    log.write_text(f"{log.read_text()}u1,1,{ahead},click\n")
    ingest.run(_config(log), Workdir(tmp_path / "first"), "f")
    [events] = read_statistics(Workdir(tmp_path / "first").events.statistics)
    assert last_event(events) == ahead * 1_000_000 and late_event(events) < (1_700_000_000 + 40) * 1_000_000
    previous = str(Workdir(tmp_path / "first").events.path)
    ingest.run(_config(_log(tmp_path, "next.csv", day=1), previous=previous), Workdir(tmp_path / "next"), "f")
    with pytest.raises(ValueError, match="check that this is not an old log"):
        ingest.run(_config(_log(tmp_path, "old.csv", day=-1), previous=previous), Workdir(tmp_path / "old"), "f")


# name -> (the log's difference, what the message must hold)
STOPPED: dict[str, tuple[dict[str, object], str]] = {
    "integers became floats": (
        {"users": "{}.0", "day": 1},
        r"the data break the schema.*user_id.shape: 100.0%.*'9.9' 100.0%",
    ),
    "clicks doubled": ({"clicks": 8, "day": 1}, r"the share of 'click' went from 40.0% to 80.0%.*data.max_drift=0.2"),
    "most rows are missing": ({"rows": 10, "day": 1}, r"events: 10, after 40.*data.min_volume=0.3"),
    "an old log": ({"day": -1}, r"the last event is at .*, but by .* 99% of the last span's had happened"),
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


def test_a_damaged_schema_is_named_with_both_switches(first: Workdir, tmp_path: Path) -> None:
    shutil.copytree(first.events.path, tmp_path / "events")
    (tmp_path / "events" / "schema.pbtxt").write_text("no schema")
    config = _config(_log(tmp_path, "log.csv", day=1), previous=str(tmp_path / "events"))
    named = r"schema\.pbtxt cannot be read as a schema .*data\.previous=null .*retrain\.span\.schema_of_last=false"
    with pytest.raises(ValueError, match=named):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


def test_previous_must_be_events(first: Workdir, tmp_path: Path) -> None:
    with writing(tmp_path / "groups", "item_groups", "f"):
        pass
    config = _config(_log(tmp_path, "log.csv"), previous=str(tmp_path / "groups"))
    with pytest.raises(ValueError, match=r"data\.previous: .* holds item_groups, not events"):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


ITEMS = [
    f"i{item},{'shoes' if item % 4 else 'hats'},{10 + item}.5,{'red|blue' if item % 2 else ''}" for item in range(40)
]


def _with_items(folder: Path, lines: list[str], previous: Workdir | None = None) -> Workdir:
    """Ingests a log beside an item table of id, category, price and colours."""
    folder.mkdir(exist_ok=True)
    log = _log(folder, "log.csv", day=0 if previous is None else 1)
    features = [
        {"name": "category", "kind": "categorical"},
        {"name": "price", "kind": "numeric"},
        {"name": "colours", "kind": "tokens"},
    ]
    path = write_log(folder / "items.csv", lines, "item,category,price,colours")
    table = {"path": str(path), "id": "item", "features": features}
    workdir = Workdir(folder / "run")
    named = {} if previous is None else {"previous": str(previous.events.path)}
    ingest.run(_config(log, item_features=table, **named), workdir, "f")
    return workdir


@pytest.fixture(scope="module")
def with_items(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    return _with_items(tmp_path_factory.mktemp("items"), ITEMS)


def test_feature_tables_are_in_schema_and_statistics(with_items: Workdir, tmp_path: Path) -> None:
    events, items = read_statistics(with_items.events.statistics)
    assert (events.name, items.name, items.num_examples) == ("events", "item_features", 40)
    # Prices 10.5 to 49.5; every second item has both colours, so 20 + 20 tokens and 20 rows without.
    assert histograms_of(items) == {
        "item_features.item.shape": {"a9": 1.0},
        "item_features.category": {"shoes": 0.75, "hats": 0.25},
        "item_features.price": {"1e1": 1.0},
        "item_features.colours": {"(missing)": 1 / 3, "blue": 1 / 3, "red": 1 / 3},
    }
    again = _with_items(tmp_path / "again", ITEMS, with_items)
    assert again.events.schema.read_text() == with_items.events.schema.read_text()


# name -> (the new table, what the message must hold)
BROKEN_TABLES = {
    "ids look different": ([line[1:] for line in ITEMS], r"item_features.item.shape: 100.0%.*'9' 100.0%"),
    "a new category": (
        [line.replace("hats", "caps") for line in ITEMS],
        r"item_features.category: 25.0%.*'caps' 25.0%",
    ),
    "prices in cents": (
        [line.replace(".5,", "50,") for line in ITEMS],
        r"item_features.price: 100.0% of values.*'1e3' 100.0%",
    ),
    "prices missing": (
        [line if item % 10 else line.replace(f"{10 + item}.5", "") for item, line in enumerate(ITEMS)],
        r"item_features.price: 10.0% of values.*'\(missing\)' 10.0%",
    ),
    "colours lost": ([line.replace("red|blue", "red") for line in ITEMS], r"share of 'blue' went from 33.3% to 0.0%"),
    "most rows lost": (ITEMS[:8], r"item_features: 8, after 40 in the last span"),
}


@pytest.mark.parametrize("name", BROKEN_TABLES)
def test_what_stops_a_feature_table(name: str, with_items: Workdir, tmp_path: Path) -> None:
    lines, message = BROKEN_TABLES[name]
    with pytest.raises(ValueError, match=message):
        _with_items(tmp_path / "next", lines, with_items)


def test_a_table_that_has_lost_rows_is_pointed_out(
    with_items: Workdir, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was cut off at a row is whole to any reader, and down to data.min_volume the span is taken."""
    _with_items(tmp_path / "few", ITEMS[4:], with_items)
    assert "rows, after" not in caplog.text
    _with_items(tmp_path / "many", ITEMS[20:], with_items)
    assert "data.item_features: 20 rows, after 40 in the last span; was the table delivered whole?" in caplog.text


@pytest.mark.parametrize("following", [[], ITEMS], ids=["as empty", "filled"])
def test_a_table_without_a_row_does_not_stop_the_spans_that_follow(following: list[str], tmp_path: Path) -> None:
    """As of users of whom nothing is known yet: a first run takes it with a warning."""
    first = _with_items(tmp_path / "first", [])
    second = _with_items(tmp_path / "second", following, first)
    assert read_statistics(second.events.statistics)[1].num_examples == len(following)


def test_vectors_by_length_and_text_by_presence(tmp_path: Path) -> None:
    # Lengths 5 and 50; the third vector is too short, which makes it a missing one.
    (tmp_path / "items.csv").write_text("item,vector,title\na,3 4,One two\nb,30 40,\nc,3,Three\n")
    table = {
        "path": str(tmp_path / "items.csv"),
        "id": "item",
        "features": [
            {"name": "vector", "kind": "vector", "dim": 2, "separator": " "},
            {"name": "title", "kind": "text"},
        ],
    }
    [found] = feature_statistics(DataConfig.model_validate({"item_features": table}))
    assert histograms_of(found) == {
        "item_features.item.shape": {"a": 1.0},
        "item_features.vector": {"1e0": 1 / 3, "1e1": 1 / 3, "(missing)": 1 / 3},
        "item_features.title": {"(text)": 2 / 3, "(missing)": 1 / 3},
    }


def test_a_column_of_very_many_values_has_no_domain() -> None:
    column = pa.array([f"{value % 3_000}".encode() for value in range(30_000)])
    found = histograms_of(
        dataset_statistics("items", 30_000, {"brand": value_counts(column, Feature(name="brand", kind="categorical"))})
    )["brand"]
    assert len(found) == 1_001 and found["(other)"] == pytest.approx(2 / 3)
    schema = infer_schema([dataset_statistics("items", 30_000, {"brand": {"(other)": 2, "0": 1}})])
    assert schema_anomalies(schema, [dataset_statistics("items", 3, {"brand": {"new": 3}})]) == []
    assert schema_anomalies(schema, [dataset_statistics("items", 3, {})]) == ["brand is absent"]


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.0, -0.0], {"0": 2}),
        ([9.99, 10.0, -250.0, 0.004], {"1e0": 1, "1e1": 1, "-1e2": 1, "1e-3": 1}),
        ([float("nan"), float("inf"), 1.0], {"(missing)": 2, "1e0": 1}),
        ([], {}),
    ],
)
def test_magnitudes(numbers: list[float], expected: dict[str, int]) -> None:
    assert {value: count for value, count in magnitudes(np.array(numbers, np.float32)).items() if count} == expected
