"""What is measured of a span: where it begins, what strays from its date, on which runner; and what is not checked."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from beam_jobs import ingest
from contracts.config import Config, SpanLimits
from contracts.store_layout import SpanParts
from pipeline.retraining.span_profile import EarlierSpans, SpanProfile, profile_span, refusals, starts, unchecked
from pipeline.retraining.spans import find_spans
from tests.pipeline.test_spans import DAY, FIRST, config_of, profile_of, write_day


@pytest.fixture
def log(tmp_path: Path) -> Path:
    for day in range(5):
        write_day(tmp_path / "log", day)
    return tmp_path / "log"


@pytest.mark.parametrize(
    ("first", "early", "last_before", "start"),
    [
        pytest.param(10, 12, 9, 10, id="its first event comes after all others"),
        pytest.param(5, 12, 9, 10, id="few are late ones: it begins where the others end"),
        pytest.param(5, 7, 9, 7, id="more than 1% are late ones"),
        pytest.param(10, 12, 90, 12, id="an earlier span holds an event of the future"),
    ],
)
def test_a_span_begins_after_all_earlier_events(first: int, early: int, last_before: int, start: int) -> None:
    before = [SpanProfile("1", 1, 1, 0.0, 0.0, 2, "", 1, 4), SpanProfile("2", 1, 1, 0.0, 0.0, 5, "", 5, last_before)]
    assert starts([*before, SpanProfile("3", 1, 1, 0.0, 0.0, early, "", first, 20)]) == [2, 5, start]


def test_a_span_begins_after_the_last_event_of_any_earlier_one() -> None:
    earlier = [SpanProfile("1", 1, 1, 0.0, 0.0, 2, "", 2, 9), SpanProfile("2", 1, 1, 0.0, 0.0, 5, "", 5, 7)]
    assert starts([*earlier, SpanProfile("3", 1, 1, 0.0, 0.0, 12, "", 6, 20)])[-1] == 10


def test_a_date_is_that_of_utc_wherever_the_host_is(log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = FIRST + 4 * DAY
    write_day(log, 4, timestamp=np.array([start - DAY, start + 2 * DAY - 1, *(start + 60 * np.arange(398))]))
    span, shares = find_spans(config_of(log))[-1], []
    for zone in ("UTC-9", "UTC", "UTC+9"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        shares.append(profile_span(config_of(log), span, SpanParts(tmp_path / zone)).stray_share)
    monkeypatch.undo()
    time.tzset()  # of the host again
    assert shares == [0.0] * 3


def test_a_window_that_can_never_be_checked_is_told_how_to_be() -> None:
    """With three spans at most two precede the newest; with four, three."""
    for window_spans, num_earlier, wider in ((3, 2, True), (4, 2, False)):
        [note] = unchecked("k", num_earlier, window_spans)
        assert ("set retrain.window_spans to 4 or more" in note) == wider
    assert unchecked("k", 3, 4) == []


def test_as_many_events_of_other_users_are_no_second_delivery(tmp_path: Path) -> None:
    first = profile_of(tmp_path, "1", {"a": 1000})
    assert refusals(replace(first, key="2", users=2), EarlierSpans([first]), SpanLimits()) == []


def test_a_span_is_ingested_on_the_runner_of_the_config(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, run = [], ingest.run

    def ingested(config: Config, *of: object, **how: object) -> object:
        used.append(config.beam)
        return run(config, *of, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "run", ingested)
    config = config_of(log, "beam.options=[--direct_num_workers=1]")
    profile_span(config, find_spans(config)[-1], SpanParts(tmp_path / "span"))
    assert used == [config.beam] != [Config().beam]
