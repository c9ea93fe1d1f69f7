"""The drifting log drifts as it promises."""

from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from pipeline.datasets.drifting import DriftingLog, generate

DAYS = ("2024-01-01", "2024-01-02")


def test_users_who_drift_move_to_any_topic(tmp_path: Path) -> None:
    """All drift; of eight topics that a user may draw, seven are others."""
    log = DriftingLog(
        num_days=2, num_users=400, num_items=64, topics_per_user=1, daily_share=1.0, new_share=0.0, drift=1.0
    )
    generate(log, tmp_path / "log")
    items = pa_csv.read_csv(tmp_path / "log" / "items.csv").to_pydict()
    topic_of = dict(zip(items["item_id"], items["topic"], strict=True))
    topics = []
    for day in DAYS:
        events = pq.read_table(tmp_path / "log" / day / "events.parquet").to_pydict()
        topics.append({user: topic_of[item] for user, item in zip(events["user_id"], events["item_id"], strict=True)})
    moved = [topics[0][user] != topics[1][user] for user in topics[0].keys() & topics[1].keys()]
    assert abs(np.mean(moved) - 7 / 8) < 0.07


def test_an_item_is_not_taken_before_it_appears(tmp_path: Path) -> None:
    """Nine tenths of 400 items are new, spread over the days."""
    log = DriftingLog(num_days=2, num_users=4000, num_items=400, num_topics=4, new_share=0.9, daily_share=1.0)
    generate(log, tmp_path / "log")
    first = pq.read_table(tmp_path / "log" / DAYS[0] / "events.parquet")["item_id"].to_pylist()
    assert len(set(first)) < 80
