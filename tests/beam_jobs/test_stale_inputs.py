"""Jobs in a workdir in which an earlier job has run again, and those between have not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics, windows
from contracts.layout import Workdir
from tests.beam_jobs.helpers import community_log, make_config


def test_groups_of_other_items_are_refused(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    for seed in (0, 1):  # the same items, in another order of their counts
        config = make_config(community_log(tmp_path / f"{seed}.parquet", seed=seed))
        for job in (ingest, statistics) if seed else (ingest, statistics, groups):
            job.run(config, workdir, "f")
    with pytest.raises(ValueError, match="run groups again"):
        windows.run(config, workdir, "f")


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_statistics_of_other_events_are_refused(tmp_path: Path, column: str) -> None:
    """As where ingest alone has run again: by the old vocabulary, new ids are padding."""
    log, workdir = community_log(tmp_path / "log.parquet"), Workdir(tmp_path / "run")
    config = make_config(log)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    table = pq.read_table(log)
    ids = table[column].to_pylist()
    renamed = pa.array(["new" if name == ids[0] else name for name in ids])
    pq.write_table(table.set_column(table.column_names.index(column), column, renamed), log)
    ingest.run(config, workdir, "f")
    with pytest.raises(ValueError, match=f"^{ids.count(ids[0])} events .* run statistics and all later stages again"):
        windows.run(config, workdir, "f")


def test_statistics_of_another_split_are_refused(tmp_path: Path) -> None:
    """All ids are known, but not as often as they were counted: test events would be among training's counts."""
    log, workdir = community_log(tmp_path / "log.parquet"), Workdir(tmp_path / "run")
    config = make_config(log)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    times = sorted(pq.read_table(log)["timestamp"].to_pylist())
    split = {"protocol": "time", "validation_start": times[-200], "test_start": times[-100]}
    ingest.run(make_config(log, split=split), workdir, "f")
    for job in (groups, windows):  # groups would be those of items that hardly co-occur in the events of today
        with pytest.raises(ValueError, match=r"holds other events than .*: run statistics and all later stages again"):
            job.run(config, workdir, "f")
