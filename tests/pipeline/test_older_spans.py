"""Which span is older than which: numbers and dates are not compared, and a clock may be wrong."""

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from contracts.config_io import load_config
from contracts.store_layout import Store
from pipeline.retraining.records import all_records, write_record
from pipeline.retraining.retrain import _nothing_new
from pipeline.retraining.spans import Span
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.small_store import push
from tests.pipeline.stubbed_calls import StubbedCalls

OTHER = ["--set", "training.loss.z_weight=0.3"]


def test_a_log_whose_dates_were_read_as_numbers_goes_on_with_dates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a number, 20240103 is larger than the place of any date, so that each day was older than that one."""
    calls = StubbedCalls(tmp_path, monkeypatch)
    for day in DAYS:
        shutil.copytree(tmp_path / "log" / day, tmp_path / "compact" / day.replace("-", ""))
    by_number, by_date = (
        ["--set", f"data.events='{tmp_path}/compact/{kind}/events.parquet'"] for kind in ("{span}", "{date}")
    )
    assert calls.version("--span", "20240103", *by_number) == 1
    assert calls.version("--span", DAYS[3], *by_date) == 2
    assert calls.version("--span", DAYS[4], *by_date) == 3
    assert (
        f"span {DAYS[3]} is older than {DAYS[4]}," in calls.outcome("--span", DAYS[3], *by_date, *OTHER)["reasons"][0]
    )
    assert calls.version("--span", "20240106", *by_number) == 4
    assert calls.version("--span", "20240105", *by_number) == "nothing_new"
    notes = {
        record.version: [note for note in record.notes if "data.events names" in note]
        for record in all_records(calls.store)
    }
    said = "data.events names spans by {2}, but by {0} for version {1}: all spans of the window are new to this run"
    assert notes[1] == notes[3] == []
    assert notes[2] == [said.format("{span}", 1, "{date}")]
    assert notes[4] == [said.format("{date}", 3, "{span}")]


def test_runs_of_the_placeholder_that_was_used_last_are_the_newest(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    spans = {1: ("20240103", 20240103), 2: ("2024-01-05", 738890), 3: ("2024-01-04", 738889)}
    for number, (key, order) in spans.items():
        push(store, number, None)
        [record] = [record for record in all_records(store) if record.version == number]
        write_record(store, replace(record, spans=[{"key": key, "order": order}]))
    assert [record.version for record in all_records(store)] == [1, 3, 2]


@pytest.mark.parametrize(
    ("newest", "marker", "is_clock_asked"),
    [("2999-12-31", None, True), ("2024-01-05", None, False), ("2999-12-31", "log/{date}/_SUCCESS", False)],
)
def test_a_newest_span_that_is_not_over_yet_asks_for_the_clock(
    tmp_path: Path, newest: str, marker: str | None, is_clock_asked: bool
) -> None:
    """A day is trained on once it is over, unless a marker says that it is whole: the clock has gone back."""
    store, config = (
        Store(tmp_path / "store"),
        load_config(None, [f"retrain.complete_marker='{marker}'"] if marker else []),
    )
    push(store, 1, None)
    [record] = all_records(store)
    write_record(
        store, replace(record, spans=[{"key": newest, "order": date.fromisoformat(newest).toordinal(), "files": ""}])
    )
    window = [Span(date.fromisoformat(day).toordinal(), day, {}) for day in DAYS[:2]]
    reason = _nothing_new(config, store, window, "new") or ""
    assert reason.startswith(f"span {DAYS[1]} is older than {newest}, which has already been trained on")
    assert (
        "UTC) that day is not over; if the clock is wrong, correct it and call again; if" in reason
    ) == is_clock_asked
    assert f"if {newest} is misnamed, rename that span" in reason
