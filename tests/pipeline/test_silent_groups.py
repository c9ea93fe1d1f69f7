"""A group that is missing in the newest span is named, on the very day that its source ends."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.layout import ItemGroups
from pipeline.retraining.silent_groups import silent_groups
from pipeline.retraining.span_profile import SpanProfile

GROUP_OF = {"a": 0, "b": 0, "c": 1, "d": 2}


def _profile(folder: Path, key: str, counts: dict[str, int]) -> SpanProfile:
    path = folder / f"{key}.parquet"
    pq.write_table(pa.table({"item_id": list(counts), "total_count": list(counts.values())}), path)
    return SpanProfile(key, sum(counts.values()), 1, 0.1, 0.0, 0, str(path), 0, 9)


def _groups(folder: Path) -> ItemGroups:
    groups = ItemGroups(folder)
    ids = pa.array(list(GROUP_OF)).dictionary_encode()
    pq.write_table(pa.table({"item_id": ids, "group_id": pa.array(list(GROUP_OF.values()), pa.int32())}), groups.groups)
    groups.report.write_text(json.dumps([{"label": label} for label in ("jazz", "rock", "folk")]))
    return groups


@pytest.mark.parametrize(
    ("newest", "silent"),
    [
        # Of 1,000 earlier events, 600 are of group 0, 300 of 1, 100 of 2.
        ({"a": 300, "b": 300, "c": 300, "d": 100}, []),
        ({"a": 600, "c": 400}, ["0 events of group 2 (folk), which by the earlier spans would have 100"]),
        ({"a": 620, "c": 370, "d": 10}, []),  # a tenth of what is expected
        ({"a": 620, "c": 371, "d": 9}, ["9 events of group 2 (folk), which by the earlier spans would have 100"]),
        ({"b": 300, "c": 190}, []),  # of group 2, 49 are expected
        ({"d": 1000}, ["0 events of group 0 (jazz), which by the earlier spans would have 600",
                       "0 events of group 1 (rock), which by the earlier spans would have 300"]),
        ({"a": 60, "c": 30, "d": 10, "new": 5000}, []),  # an item that is in no group says nothing of the others
    ],
)  # fmt: skip
def test_which_groups_are_silent(newest: dict[str, int], silent: list[str], tmp_path: Path) -> None:
    earlier = [{"a": 500, "c": 100, "gone": 900}, {"b": 100, "c": 200, "d": 100}]
    profiles = [_profile(tmp_path, str(key), counts) for key, counts in enumerate([*earlier, newest])]
    notes = silent_groups(profiles, _groups(tmp_path))
    assert notes == [f"span 2 holds {group}: has a part of the log stopped?" for group in silent]
