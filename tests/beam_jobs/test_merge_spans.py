"""The borders of a window of spans: what is of the holdout, and which of its halves a user is of."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import merge_spans
from beam_jobs.merge_spans import HoldoutPlan, _counts
from beam_jobs.statistics_steps import CountBucket
from contracts.layout import Workdir
from contracts.names import EventColumn, Split
from contracts.patterns import identities
from contracts.store_layout import SpanParts
from pipeline.retraining.span_profile import profile_span
from pipeline.retraining.spans import Span
from tests.beam_jobs.helpers import make_config, write_log

START = 1_000
DAY = 86_400


def assigned(users: list[str], times: list[int], validation_users: float) -> np.ndarray:
    events = pa.table({EventColumn.USER_ID: pa.array(users).dictionary_encode(), EventColumn.TIMESTAMP: times})
    return HoldoutPlan(START, validation_users).assign(events)


def test_the_holdout_begins_with_its_first_moment() -> None:
    splits = assigned(["a"] * 3, [START - 1, START, START + 1], 0.0)
    assert splits.tolist() == [Split.TRAIN, Split.TEST, Split.TEST]


def test_so_many_users_are_for_validation_and_each_with_all_its_events() -> None:
    users = [f"u{user}" for user in range(4_000) for _ in range(2)]
    of_user = assigned(users, [START, START + 5] * 4_000, 0.2).reshape(-1, 2)
    assert (of_user[:, 0] == of_user[:, 1]).all()
    # Five standard deviations of a share of 4,000.
    assert np.mean(of_user[:, 0] == Split.VALIDATION) == pytest.approx(0.2, abs=5 * np.sqrt(0.2 * 0.8 / 4_000))
    assert set(of_user[:, 0].tolist()) == {Split.VALIDATION, Split.TEST}


def test_to_catch_up_those_who_judged_are_learnt_and_the_others_divided() -> None:
    users = [f"u{user}" for user in range(4_000)]
    events = pa.table(
        {EventColumn.USER_ID: pa.array(users).dictionary_encode(), EventColumn.TIMESTAMP: [START] * 4_000}
    )
    before, after = (HoldoutPlan(START, 0.3, catches_up).assign(events) for catches_up in (False, True))
    assert (after[before == Split.TEST] == Split.TRAIN).all()
    left = after[before == Split.VALIDATION]
    assert set(left.tolist()) == {Split.VALIDATION, Split.TEST}
    # Five standard deviations of a half of about 1,200.
    assert np.mean(left == Split.TEST) == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(1_200))


@pytest.mark.parametrize(("last_event", "is_counted_whole"), [(START - 1, True), (START, False)])
def test_counts_of_a_span_are_taken_whole_only_where_it_ends_before_the_holdout(
    last_event: int, is_counted_whole: bool
) -> None:
    span = SimpleNamespace(items=Path("i"), users=Path("u"), events=SimpleNamespace(path=Path("e")))
    manifest = SimpleNamespace(details={"last_event": last_event}, files=["0.parquet"])
    whole, cut = {"items": "i", "users": "u"}, {"events": "e/0.parquet", "before": START}
    assert _counts([span], [manifest], START) == [whole if is_counted_whole else cut]


def test_of_a_span_that_reaches_into_the_holdout_the_positives_before_it_are_counted(tmp_path: Path) -> None:
    columns = {EventColumn.USER_ID: ["u"] * 4, EventColumn.ITEM_ID: ["i"] * 4}
    columns |= {
        EventColumn.TIMESTAMP: [START - 2, START - 1, START, START + 1],
        EventColumn.FEEDBACK_LEVEL: [0, 1, 1, 1],
    }
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    source = {"events": str(tmp_path / "events.parquet"), "before": START}
    items, users = CountBucket(target_level=1, num_partitions=1)._counts(source)
    assert (items["train_count"].to_pylist(), items["total_count"].to_pylist()) == ([1], [4])
    assert users["train_count"].to_pylist() == [1]


@pytest.mark.parametrize(
    ("num_days", "tower", "said"), [(2, "gru", ["93%"]), (5, "gru", []), (2, "mean", [])], ids=["two", "five", "mean"]
)
def test_whether_events_have_an_order_is_asked_of_the_window(
    num_days: int, tower: str, said: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A basket of eight items a day: on one day all that follow one are tied, of two 14 of 15, of five 35 of 39."""
    config, parts = make_config("unused", model={"user_tower": tower}), []
    for day in range(num_days):
        rows = [f"u{user},i{day}-{item},{day * DAY + user}" for user in range(30) for item in range(8)]
        log = write_log(tmp_path / f"{day}.csv", rows)
        parts.append(SpanParts(tmp_path / str(day)))
        profile_span(config, Span(day, str(day), identities(str(log))), parts[-1])
    merge_spans.run(config, Workdir(tmp_path / "run"), "f", parts, (num_days - 1) * DAY * 1_000_000)
    found = [record.getMessage() for record in caplog.records if "is arbitrary" in record.getMessage()]
    assert [message.split()[1] for message in found] == said
