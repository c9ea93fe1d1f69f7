"""No user is trained on much more than the others."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics, windows
from beam_jobs.records.busy_users import max_user_positives
from contracts.artifact import read_manifest
from contracts.config import WindowsConfig
from contracts.layout import ItemStatistics, Workdir
from contracts.names import ITEMS_PER_USER, Split
from tests.beam_jobs.helpers import community_log, make_config, read_events, write_log
from trainer.input.training_windows import TrainingWindows


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([3] * 999 + [50_000], 1000),  # a crawler: the average is (999 * 3 + 1000) / 1000, 20 times which is 79.94
        ([400] * 10, 8000),  # a dense log: 20 * 400, of which nobody has so much
        ([100] * 3 + [5000, 0], 6500),  # 20 * (300 + 1000) / 4: who is not trained on is not counted
        ([0, 0], 1000),
    ],
)
def test_twenty_times_the_average_user(counts: list[int], expected: int, tmp_path: Path) -> None:
    of_log = ItemStatistics(tmp_path)
    table = pa.table({"user_id": [f"u{place}" for place in range(len(counts))], "train_count": counts})
    pq.write_table(table, of_log.users)
    assert max_user_positives(WindowsConfig(), of_log) == expected
    assert max_user_positives(WindowsConfig(max_user_positives=7), of_log) == 7


def test_the_newest_positives_of_busy_users_are_trained_on_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    length, most = 3, 4
    config = make_config(
        community_log(tmp_path / "log.parquet"), windows={"length": length, "max_user_positives": most}
    )
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "f")
    had: dict[str, dict[str, None]] = defaultdict(dict)
    for event in read_events(workdir):
        if event["split"] == Split.TRAIN:
            had[event["user_id"]].setdefault(event["item_id"])
    item_ids = pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    user_ids = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    found: dict[str, set[str]] = defaultdict(set)
    for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0):
        later = batch.is_target & (np.arange(batch.item_index.shape[1]) > 0)
        for window, place in zip(*np.nonzero(later), strict=True):
            found[user_ids[batch.user_index[window] - 1]].add(item_ids[batch.item_index[window, place] - 1])
    left_out = Counter[str]()
    for user, items in had.items():
        targets = list(items)[1:]
        # Whole windows, from the newest on, until they hold `most`.
        number = min(len(targets), -(-most // length) * length)
        assert found[user] == set(targets[len(targets) - number :])
        left_out[user] = len(targets) - number
    counts = read_manifest(workdir.windows.path).counts
    assert counts["busy_positives"] == left_out.total() > 0
    assert counts["busy_users"] == sum(number > 0 for number in left_out.values()) < len(had)
    assert "windows.max_user_positives" in caplog.text
    caplog.clear()
    windows.run(config.model_copy(update={"windows": WindowsConfig(length=length)}), workdir, "g")
    assert read_manifest(workdir.windows.path).counts["busy_positives"] == 0
    assert "windows.max_user_positives" not in caplog.text


@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_what_users_have_taken_is_counted_once_and_of_nobody_more_than_is_trained_on(
    repeats: str, tmp_path: Path
) -> None:
    """By this the model weighs what its user has: repeats, crawlers, strangers or who came once do not change it.

    Each user's last two items are held out. Of the others `a` has three, i1 twice, `b` two, i1 three times, and a
    crawler forty, of which five count. `c` and `d` have one: nobody's window is of one event.
    """
    taken = {"a": [1, 2, 1, 3, 4, 5], "b": [1, 1, 1, 2, 3, 4], "crawler": range(1, 43), "c": [7], "d": [8, 9, 10]}
    rows = [f"{user},i{item},{time}" for user, items in taken.items() for time, item in enumerate(items)]
    (tmp_path / "users.csv").write_text("\n".join(["user_id", *taken, "stranger"]))
    data = {"user_features": {"path": str(tmp_path / "users.csv"), "id": "user_id"}}
    config = make_config(
        write_log(tmp_path / "log.csv", rows), data=data, windows={"max_user_positives": 5, "repeats": repeats}
    )
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "f")
    assert read_manifest(workdir.windows.path).details[ITEMS_PER_USER] == (3 + 2 + 5) / 3
