"""A group whose events stop is named: no check of a whole span sees that one source of it is gone."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics
from beam_jobs.grouping.stable_groups import silent_groups
from contracts.artifact import read_manifest
from contracts.layout import Workdir
from tests.beam_jobs.helpers import community_log, make_config, read_groups

REPORT = [{"label": label} for label in ("jazz", "rock", "new")]


@pytest.mark.parametrize(
    ("events", "before", "silent"),
    [
        ([11, 989], [100, 900], []),  # 1.1% of 10%: as large as the limit allows
        ([9, 991], [100, 900], [0]),
        ([9, 991], [49, 451], []),  # .9% of 9.8% would be few, but of 49 events it may be chance
        ([0, 30], [60, 400], [0]),
        ([90, 9], [900, 100], []),  # a shorter window, with the same shares
        ([0, 0], [500, 500], [0, 1]),
        ([0, 10, 5], [900, 100], [0]),  # group 2 is new
        ([10], [100, 900], []),  # group 1 is no longer
    ],
)
def test_which_groups_are_silent(events: list[int], before: list[int], silent: list[int]) -> None:
    found = silent_groups(REPORT, np.array(events), np.array(before))
    assert [note.split(" has ")[0] for note in found] == [f"group {g} ({REPORT[g]['label']})" for g in silent]
    assert silent_groups(REPORT, np.array(events), None) == []


def test_a_run_names_the_group_whose_events_stopped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = pq.read_table(community_log(tmp_path / "first.parquet"))
    users = log["user_id"].cast(pa.int64()).to_numpy()
    pq.write_table(
        log.filter((users % 2 == 0) | (users < 4)), tmp_path / "second.parquet"
    )  # 2 of 60 odd users are left
    before, notes = _events_by_group(tmp_path, "first")
    assert notes == []
    after, [note] = _events_by_group(tmp_path, "second", previous=str(tmp_path / "first" / "item_groups"))
    gone = min(after, key=after.__getitem__)
    assert note.startswith(f"group {gone} (") and note.endswith(": has a part of the log stopped?")
    assert f"has {after[gone]:,} of {sum(after.values()):,} training events" in note
    assert f"had {before[gone]:,} of {sum(before.values()):,}" in note
    assert note in caplog.text


def _events_by_group(folder: Path, name: str, **settings: str) -> tuple[Counter[int], list[str]]:
    """Training events by group, counted from the artifacts, and what the job notes."""
    config, workdir = (
        make_config(folder / f"{name}.parquet", groups={"num_groups": 2, **settings}),
        Workdir(folder / name),
    )
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    items, counted = pq.read_table(workdir.item_statistics.items), Counter[int]()
    group_of = read_groups(workdir)
    for item, events in zip(items["item_id"].to_pylist(), items["train_count"].to_pylist(), strict=True):
        counted[group_of[item]] += events
    return counted, read_manifest(workdir.item_groups.path).details.get("notes", [])
