"""Splits by hand and against a per-user loop, and as ingest makes them of a log."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats

from beam_jobs import groups, ingest, ingest_steps, statistics, windows
from beam_jobs.buckets.bucket_file import order_events
from beam_jobs.buckets.splits import by_time, leave_one_out, time_quantile
from beam_jobs.common.payload import pack, unpack
from beam_jobs.event_log.csv_blocks import RawBatch
from contracts.config import DataConfig
from contracts.layout import Workdir
from contracts.names import EventColumn, Split
from tests.beam_jobs.helpers import HEADER, make_config, read_events, write_log

TRAIN, VALIDATION, TEST = int(Split.TRAIN), int(Split.VALIDATION), int(Split.TEST)


def test_leave_one_out_by_hand() -> None:
    # user 0: t t x t x t x  -> the 4th event is the validation target, the 6th the test target (t: target level)
    # user 1: t t            -> too few, trains only
    users = np.array([0] * 7 + [1] * 2)
    target = np.array([1, 1, 0, 1, 0, 1, 0, 1, 1], bool)
    expected = [TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST, TRAIN, TRAIN]
    assert leave_one_out(users, target, min_user_events=3).tolist() == expected


def test_leave_one_out_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    users = np.sort(rng.integers(0, 60, 500))
    target = rng.random(500) < 0.5
    expected = []
    for user in np.unique(users):
        mine = target[users == user]
        places = np.flatnonzero(mine)
        split = np.full(len(mine), TRAIN)
        if len(places) >= 4:
            split[places[-2] :] = VALIDATION
            split[places[-1] :] = TEST
        expected += split.tolist()
    assert leave_one_out(users, target, min_user_events=4).tolist() == expected


def test_each_moment_opens_its_split() -> None:
    assert by_time(np.array([9, 10, 19, 20]), 10, 20).tolist() == [TRAIN, VALIDATION, VALIDATION, TEST]


def test_quantile_of_counted_seconds() -> None:
    # Events at 1, 1, 1, 5, 9: three of five lie at 1, so the 60% quantile is 1 and the 61% one is 5.
    seconds, counts = np.array([1, 5, 9]), np.array([3, 1, 1])
    assert [time_quantile(seconds, counts, q) for q in (0.6, 0.61, 1.0)] == [1, 5, 9]


def test_seconds_are_merged_a_few_files_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker merges those of all files: held at once, they would be as many as a log's events."""
    held: list[int] = []

    def unpack_noting(payloads: list[bytes]) -> pa.Table:
        held.append(len(payloads))
        return unpack(payloads)

    rng = np.random.default_rng(0)
    files = [rng.integers(0, 50, 20) for _ in range(100)]
    counted = [np.unique(file, return_counts=True) for file in files]
    tables = [pa.table({"second": seconds, "count": counts}) for seconds, counts in counted]
    monkeypatch.setattr(ingest_steps, "unpack", unpack_noting)
    merged = unpack([ingest_steps.merge_seconds(pack(table) for table in tables)])
    assert sum(held) == 100 and max(held) < 20
    expected = sorted(Counter(np.concatenate(files).tolist()).items())
    assert [(row["second"], row["count"]) for row in merged.to_pylist()] == expected
    assert unpack([ingest_steps.merge_seconds([])]).num_rows == 0


def test_what_is_held_out_is_new_to_its_user(tmp_path: Path) -> None:
    """Of abacbcc, c is the last new item and b the one before it; of xyxyy, two items, nothing is held out."""
    histories = {"u": "abacbcc", "v": "xyxyy"}
    lines = [f"{user},{item},{second}" for user, items in histories.items() for second, item in enumerate(items)]
    (tmp_path / "log.csv").write_text("\n".join([HEADER, *lines]))
    workdir = Workdir(tmp_path / "run")
    ingest.run(make_config(tmp_path / "log.csv"), workdir, "f")
    events = sorted(read_events(workdir), key=lambda event: (event["user_id"], event["timestamp"]))
    of_user = {user: [event["split"] for event in events if event["user_id"] == user] for user in "uv"}
    assert of_user == {"u": [TRAIN, VALIDATION, VALIDATION, TEST, TEST, TEST, TEST], "v": [TRAIN] * 5}


def test_time_protocol_by_quantiles(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [f"u{i % 3},i{i},{1000 + i}" for i in range(100)])
    workdir = Workdir(tmp_path / "run")
    manifest = ingest.run(make_config(tmp_path / "log.csv", split={"protocol": "time"}), workdir, "f")
    # The 80th of 100 events, 1 a second, is at 1079 and the 90th at 1089: each opens its split.
    assert manifest.details["split"]["validation_start"] == 1079 * 10**6
    assert manifest.details["split"]["test_start"] == 1089 * 10**6
    splits = {r["item_id"]: r["split"] for r in read_events(workdir)}
    assert splits["i78"] == Split.TRAIN and splits["i79"] == Split.VALIDATION and splits["i89"] == Split.TEST


def test_a_split_without_training_events_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [f"u{i % 3},i{i},{1_700_000_000 + i}" for i in range(100)])
    split = {"protocol": "time", "validation_start": "2001-01-01", "test_start": "2002-01-01"}
    with pytest.raises(ValueError, match=r"leaves no event to train on: the log runs from 2023-11-14T22:13:20 to 2023"):
        ingest.run(make_config(tmp_path / "log.csv", split=split), Workdir(tmp_path / "run"), "f")


def test_a_log_of_one_moment_cannot_be_split_by_time(tmp_path: Path) -> None:
    """All quantiles of one moment are that moment, and so is any start that leaves something on both sides."""
    write_log(tmp_path / "log.csv", [f"u{i % 3},i{i},1700000000" for i in range(100)])
    config = make_config(tmp_path / "log.csv", split={"protocol": "time"})
    with pytest.raises(ValueError, match=r"all events have the time 2023-11-14T22:13:20.*leave_one_out"):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


def test_a_start_that_is_no_time_is_refused_before_the_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other start, by default a quantile, takes a pass over the log."""
    write_log(tmp_path / "log.csv", ["u,i,1"])
    monkeypatch.setattr(ingest, "collect", lambda *_: pytest.fail("the log was read"))
    config = make_config(tmp_path / "log.csv", split={"protocol": "time", "test_start": "soon"})
    with pytest.raises(ValueError, match=r"split\.test_start='soon'"):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"test_start": "2026-11-01"}, "split.test_start=2026-11-01T00:00:00 leaves no test event: the log runs from"),
        (
            {"validation_start": "2023-11-14T22:13:50", "test_start": "2023-11-14T22:13:50"},
            "no event is between .*13:50, so none is left for validation: .* a later test_start",
        ),
        (
            {"test_start": "2023-11-14T22:13:50"},
            r"_start=2023-11-14T22:14:39 \(the 80% quantile of time\) is after",
        ),
    ],
)
def test_starts_that_leave_nothing_to_measure_are_refused(split: dict[str, str], said: str, tmp_path: Path) -> None:
    write_log(tmp_path / "log.csv", [f"u{i % 3},i{i},{1_700_000_000 + i}" for i in range(100)])
    with pytest.raises(ValueError, match=said):
        ingest.run(
            make_config(tmp_path / "log.csv", split={"protocol": "time", **split}), Workdir(tmp_path / "run"), "f"
        )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("u1,i1,07/06/2014 02:30", r"no valid row among the 5 .*timestamp_format"),
        ("u1,i1,1700000000,", r"no valid row among the 5 .*not 3 fields: 5"),
        ("u1,i1,1700000000", "no event in .* reaches the level 'click': check data.feedback"),
    ],
    ids=["times of no form", "a comma too many", "levels below the target"],
)
def test_a_log_by_time_without_a_target_says_what_is_wrong_with_its_rows(line: str, said: str, tmp_path: Path) -> None:
    feedback = {"levels": ["exposure", "click"], "flags": {"click": "click"}, "target_level": "click"}
    is_table = said.endswith("data.feedback")
    write_log(tmp_path / "log.csv", [line + ",0" * is_table] * 5, "user_id,item_id,timestamp" + ",click" * is_table)
    data = {"feedback": feedback} if is_table else {}
    config = make_config(tmp_path / "log.csv", data=data, split={"protocol": "time"})
    with pytest.raises(ValueError, match=said):
        ingest.run(config, Workdir(tmp_path / "run"), "f")


def test_which_item_of_a_tie_comes_last_is_chance_for_every_user() -> None:
    """Of logs by the day most targets end a tie: items that always ended it would be guessed without a model."""
    num_users, num_items = 2_000, 500
    rng = np.random.default_rng(0)
    users, items = (rng.integers(0, size, 20_000) for size in (num_users, num_items))
    columns = {
        EventColumn.USER_ID: [f"u{user}" for user in users],
        EventColumn.ITEM_ID: [f"i{item}" for item in items],
        EventColumn.TIMESTAMP: np.zeros(len(users), np.int64),
        EventColumn.FEEDBACK_LEVEL: np.zeros(len(users), np.int8),
        EventColumn.REQUEST: np.zeros(len(users), np.int32),
    }
    events, _ = order_events(pa.table(columns))
    user = events[EventColumn.USER_ID].to_numpy()
    last = events[EventColumn.ITEM_ID].to_numpy()[np.append(user[1:] != user[:-1], True)]
    counts = np.bincount([int(item[1:]) for item in last], minlength=num_items)
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(("length", "least", "is_said"), [(4, 3, True), (4, 5, False), (7, 3, False)])
def test_histories_of_which_little_is_left_to_learn_from_are_said(
    length: int, least: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As sessions, of whose few items two are held out; here of 20 with `length` items, and of ten with eight."""
    lengths = {f"u{user}": length for user in range(20)} | {f"v{user}": 8 for user in range(10)}
    rows = [f"{user},i{place},{1_700_000_000 + place}" for user, number in lengths.items() for place in range(number)]
    log = write_log(tmp_path / "log.csv", rows)
    workdir, config = Workdir(tmp_path / "run"), make_config(log, split={"min_user_events": least})
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    counts = windows.run(config, workdir, "f").counts
    held_out = 2 * sum(number >= least for number in lengths.values())
    learnt = sum(number - 1 - 2 * (number >= least) for number in lengths.values())
    assert counts["validation_targets"] + counts["test_targets"] == held_out
    assert counts["train_positives"] == learnt
    said = f"{held_out} targets are held out, and only {learnt} left to learn from"
    assert (said in caplog.text, "raise split.min_user_events=3," in caplog.text) == (is_said, is_said)


def test_histories_that_are_held_out_but_for_one_item_have_their_remedy(tmp_path: Path) -> None:
    """Of three items each two are held out, so that nothing precedes what is left; a split by time has enough.

    Nobody has more than `split.min_user_events`: raising it would hold out nobody.
    """
    rows = [
        f"u{user},i{(user + place) % 7},{1_700_000_000 + user + 5 * place}" for user in range(40) for place in range(3)
    ]
    log = write_log(tmp_path / "log.csv", rows)
    workdir, config = Workdir(tmp_path / "run"), make_config(log)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    with pytest.raises(ValueError, match=r"longer histories, or, if users .*\(split\.protocol=time\)") as error:
        windows.run(config, workdir, "f")
    assert "min_user_events" not in str(error.value)
    workdir, config = Workdir(tmp_path / "by_time"), make_config(log, split={"protocol": "time"})
    for job in (ingest, statistics, groups, windows):
        manifest = job.run(config, workdir, "f")
    assert manifest.counts["train_positives"] > 40 and manifest.counts["test_users"] > 0


def test_a_read_that_fails_once_does_not_move_the_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A split by time reads the log twice, and its times must not be those of the files that could be read."""
    for day in (1, 2):
        write_log(tmp_path / f"{day}.csv", [f"u{user},a,{day * 100 + user}" for user in range(9)])
    read, failed = ingest_steps.read_batches, set[str]()

    def read_later(path: str, columns: list[str], data: DataConfig) -> Iterator[RawBatch]:
        if path.endswith("2.csv") and path not in failed:
            failed.add(path)
            raise ValueError(f"{path} cannot be read to its end (stale file handle)")
        yield from read(path, columns, data)

    monkeypatch.setattr(ingest_steps, "read_batches", read_later)
    config = make_config(tmp_path / "*.csv", split={"protocol": "time"})
    workdir = Workdir(tmp_path / "workdir")
    with pytest.raises(ValueError, match=r"^data\.events: .*2\.csv cannot be read to its end \(stale file handle\)$"):
        ingest.run(config, workdir, "f")
    assert not workdir.events.path.exists()
    ingest.run(config, workdir, "f")
    splits = [event["split"] for event in sorted(read_events(workdir), key=lambda event: event["timestamp"])]
    # 18 events, one a second from 100 and from 200 on: the 80% quantile of time is event 15, the 90% quantile event 17
    assert splits == [TRAIN] * 14 + [VALIDATION] * 2 + [TEST] * 2
