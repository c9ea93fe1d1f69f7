"""Columns of the log that a request tells as well: from the file to the records."""

import gzip
import itertools
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics, transform, windows
from beam_jobs.event_log.span_statistics import MISSING, OTHER, histograms_of, read_statistics
from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.config_io import ConfigError, load_config
from contracts.layout import Workdir
from contracts.names import Split, WindowField
from serving.user_requests import user_requests
from tests.beam_jobs.helpers import make_config, read_events, write_log
from trainer.catalogue import Catalogue
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.training_windows import TrainingWindows

PAGES, DEVICES = ["home", "2"], ["phone"]
FEATURES = [{"name": "page", "values": PAGES}, {"name": "device", "column": "Device type", "values": DEVICES}]
HEADER = "user_id,item_id,timestamp,page,Device type"


def ingested(path: Path, lines: list[str]) -> list[int]:
    """The codes of the events, in order of time."""
    config = make_config(write_log(path / "log.csv", lines, HEADER), data={"request_features": FEATURES})
    ingest.run(config, Workdir(path), "f")
    return [row["request"] for row in sorted(read_events(Workdir(path)), key=lambda row: row["timestamp"])]


def test_an_event_holds_the_places_of_its_values(tmp_path: Path) -> None:
    """3 pages, none among them, by 2 devices: a code is 2 * page + device."""
    rows = [("home", "phone"), ("2.0", ""), ("cellar", "phone"), ("", "web"), ("2", "phone"), ("Home", "")]
    lines = [f"u,i{place},{100 + place},{page},{device}" for place, (page, device) in enumerate(rows)]
    assert ingested(tmp_path, lines) == [2 * 1 + 1, 2 * 2 + 0, 1, 0, 2 * 2 + 1, 0]


def test_the_highest_level_of_an_event_tells_its_page(tmp_path: Path) -> None:
    lines = ["u,a,5,home,,seen", "u,a,5,2,,liked", "u,b,6,home,,seen"]
    levels = {"levels": ["seen", "liked"]}
    log = write_log(tmp_path / "log.csv", lines, f"{HEADER},event")
    data = {"request_features": FEATURES, "feedback": levels, "columns": {"event": "event"}}
    ingest.run(make_config(log, data=data), Workdir(tmp_path), "f")
    assert {row["item_id"]: row["request"] for row in read_events(Workdir(tmp_path))} == {"a": 4, "b": 2}


def test_of_duplicates_one_that_tells_something_is_kept(tmp_path: Path) -> None:
    """As of an event that a second collector logged without the page; of two pages the one listed later."""
    lines = [
        "u,a,5,,",
        "u,a,5,home,",
        "u,b,6,,phone",
        "u,b,6,,",
        "u,c,7,home,phone",
        "u,c,7,home,",
        "u,d,8,2,",
        "u,d,8,home,",
    ]
    assert ingested(tmp_path, lines) == [2 * 1, 1, 2 * 1 + 1, 2 * 2]


def test_numbers_of_parquet_are_values(tmp_path: Path) -> None:
    """As a column with gaps is of decimals."""
    table = {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "timestamp": [1, 2, 3], "page": [2.0, None, 3.0]}
    pq.write_table(pa.table(table), tmp_path / "log.parquet")
    config = make_config(tmp_path / "log.parquet", data={"request_features": FEATURES[:1]})
    ingest.run(config, Workdir(tmp_path), "f")
    assert {row["item_id"]: row["request"] for row in read_events(Workdir(tmp_path))} == {"a": 2, "b": 0, "c": 0}


def test_values_that_are_not_listed_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    lines = [f"u{row % 3},i{row},{row},{'cellar' if row < 4 else 'home'},phone" for row in range(20)]
    ingested(tmp_path, lines)
    assert "the request feature 'page' has values that data.request_features does not list" in caplog.text
    assert "such as 'cellar', in 4 of 20 rows" in caplog.text and "'device'" not in caplog.text
    counted = read_manifest(Workdir(tmp_path).events.path).details["unlisted_request_values"]
    assert counted == {"page": 4, "device": 0}


def _span(path: Path, page_of_ten: list[str], previous: Workdir | None = None, **data: object) -> Workdir:
    """20 events, the pages of which repeat."""
    lines = [f"u{row % 3},i{row},{1_700_000_000 + row},{page_of_ten[row % 10]},phone" for row in range(20)]
    data = {"request_features": FEATURES, "previous": previous and str(previous.events.path), **data}
    path.mkdir()
    workdir = Workdir(path)
    ingest.run(make_config(write_log(path / "log.csv", lines, HEADER), data=data), workdir, "f")
    return workdir


def test_what_requests_tell_may_not_change_much_from_span_to_span(tmp_path: Path) -> None:
    first = _span(tmp_path / "first", ["home"] * 6 + ["2.0", "2"] + ["", "cellar"])
    [events] = read_statistics(first.events.statistics)
    shares = histograms_of(events)
    assert shares["page.told"] == {"home": 0.6, "2": 0.2, MISSING: 0.1, OTHER: 0.1}
    assert shares["device.told"] == {"phone": 1.0}
    assert _span(tmp_path / "like", ["home"] * 7 + ["2"] * 3, first).events.path.exists()
    with pytest.raises(ValueError, match=r"page\.told: the share of 'home' went from 60\.0% to 0\.0%"):
        _span(tmp_path / "renamed", ["HOME"] * 6 + ["2"] * 4, first)
    with pytest.raises(ValueError, match=r"page\.told: the share of '\(missing\)' went from 10\.0% to 40\.0%"):
        _span(tmp_path / "absent", ["home"] * 4 + ["2"] * 2 + [""] * 4, first)


def test_a_listed_value_may_be_told_later_than_others_and_a_feature_come_later(tmp_path: Path) -> None:
    without = _span(tmp_path / "without", ["home"] * 10, request_features=[])
    first = _span(tmp_path / "first", ["home"] * 10, without)
    assert _span(tmp_path / "next", ["home"] * 9 + ["2"], first).events.path.exists()
    assert _span(tmp_path / "gone", ["home"] * 10, first, request_features=[]).events.path.exists()


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", ["u,a,5,home"], "user_id,item_id,timestamp,page")
    with pytest.raises(ValueError, match=r"no column 'Device type' \(the column of device in data\.request_"):
        ingest.run(make_config(log, data={"request_features": FEATURES}), Workdir(tmp_path), "f")


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("[{name: page, values: []}]", "at least 1 item"),
        ("[{name: page, values: [a, b, a]}]", "must be distinct and not empty"),
        ("[{name: page, values: [a, '']}]", "must be distinct and not empty"),
        ("[{name: page, values: [1, 2]}]", "put it in quotes"),
        ("[{name: history, values: [a]}]", "a name that the servable or its client uses"),
        ("[{name: request, values: [a]}]", "a name that the servable or its client uses"),
        ("[{name: timeout, values: [a]}]", "a name that the servable or its client uses"),
        ("[{name: the page, values: [a]}]", "needs a name that is valid"),
        ("[{name: page, values: [a]}, {name: page, column: b, values: [a]}]", "page twice"),
        ("[" + ", ".join(f"{{name: f{n}, values: [a, b, c]}}" for n in range(16)) + "]", "4,294,967,296 combinations"),
    ],
)
def test_what_cannot_be_told_is_refused(features: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, [f"data.request_features={features}"])


def test_an_input_has_one_meaning() -> None:
    table = "data.user_features={path: users.csv, id: user_id, features: [{name: page, kind: categorical}]}"
    with pytest.raises(ConfigError, match="page twice"):
        load_config(None, [table, "data.request_features=[{name: page, values: [a]}]"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workdir, dict[str, dict[str, str]]]:
    """Windows of users with eight items each; and user -> item -> page."""
    folder, rng = tmp_path_factory.mktemp("run"), np.random.default_rng(0)
    page_of: dict[str, dict[str, str]] = {}
    lines = []
    for user in range(40):
        items = rng.permutation(30)[:8]
        pages = rng.choice(["home", "2", "cellar", ""], 8).tolist()
        page_of[f"u{user}"] = {f"i{item}": page for item, page in zip(items, pages, strict=True)}
        rows = page_of[f"u{user}"].items()
        lines += [f"u{user},{item},{100 + time},{page},phone" for time, (item, page) in enumerate(rows)]
    log = write_log(folder / "log.csv", lines, HEADER)
    config, workdir = make_config(log, data={"request_features": FEATURES[:1]}), Workdir(folder / "run")
    for job in (ingest, statistics, groups, transform, windows):
        job.run(config, workdir, "f")
    return config, workdir, page_of


def test_training_and_requests_tell_what_the_log_told(run: tuple[Config, Workdir, dict[str, dict[str, str]]]) -> None:
    config, workdir, page_of = run
    listed = {page: page if page in PAGES else "" for page in ("home", "2", "cellar", "")}
    catalogue = Catalogue.for_config(config, workdir)
    users = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    for batch in TrainingWindows(workdir, 1000, 0).epoch(0):
        for row, place in itertools.product(*map(range, batch.item_index.shape)):
            if item := batch.item_index[row, place]:
                page = page_of[users[batch.user_index[row] - 1]][catalogue.item_ids[item - 1]]
                assert ["", *PAGES][batch.request[row, place]] == listed[page]
    for split in (Split.VALIDATION, Split.TEST):
        found = EvaluationUsers.load(workdir, split)
        requests = user_requests(workdir, catalogue, found)
        assert list(requests.told) == ["page"]
        targets = [catalogue.item_ids[item - 1] for item in found.targets.values]
        told = [listed[page_of[user][item]] for user, item in zip(requests.user_ids, targets, strict=True)]
        assert requests.told["page"] == told
        assert set(told) == {"", *PAGES}


def test_a_log_that_tells_nothing_has_records_without_it(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [f"u{user},i{(user + n) % 9},{n}" for user in range(20) for n in range(6)])
    config, workdir = make_config(log), Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups, transform, windows):
        job.run(config, workdir, "f")
    batch = next(TrainingWindows(workdir, 1000, 0).epoch(0))
    assert batch.request.shape == batch.item_index.shape and not batch.request.any()
    shard = next(workdir.windows.path.glob("train*"))
    assert WindowField.REQUEST.encode() not in gzip.decompress(shard.read_bytes())
    found = EvaluationUsers.load(workdir, Split.TEST)
    assert not found.request.any()
    assert user_requests(workdir, Catalogue.load(workdir), found).told == {}
