"""A seeded log by days whose world moves: interests drift, items and users appear, what is new is popular.

As in `synthetic`, items belong to topics and the next item of a session is often the successor of the last
on the topic's ring. On top, every day a user may trade a topic for another, new items join the topics'
ends, where popularity is highest, and new users arrive. A model of last week has something to forget
and something to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from contracts import artifact
from pipeline.datasets import writing

FIRST_DAY = date(2024, 1, 1)
_DAY_SECONDS = 86_400
_SESSION_GAP_SECONDS = 60


@dataclass(frozen=True)
class DriftingLog:
    """Size and motion of the log.

    Attributes:
        daily_share: share of the existing users who come on a day.
        session: mean events of a user's day.
        drift: chance a day that a user trades one of their topics.
        new_share: share of items, and of users, that appear after the first day, spread over the days.
    """

    num_days: int = 30
    num_users: int = 2_000
    num_items: int = 1_000
    num_topics: int = 8
    topics_per_user: int = 2
    daily_share: float = 0.4
    session: float = 6.0
    stay: float = 0.8
    sequential_share: float = 0.5
    drift: float = 0.05
    new_share: float = 0.4
    seed: int = 0


def generate(log: DriftingLog, out: Path) -> artifact.Manifest:
    """Writes DATE/events.parquet for each day and items.csv into `out`, or reuses the same log.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    if log.num_items < 4 * log.num_topics or log.topics_per_user > log.num_topics or log.num_days < 1:
        raise ValueError(
            "a drifting log needs at least 1 day, 4 items per topic, and as many topics as a user has; got "
            f"{log.num_days} days, {log.num_items} items, {log.num_topics} topics, {log.topics_per_user} per user"
        )
    fingerprint = artifact.fingerprint(vars(log))
    if manifest := artifact.find_current(out, fingerprint):
        return manifest
    rng = np.random.default_rng(log.seed)
    topic_of_item = np.sort(rng.integers(0, log.num_topics, log.num_items))
    topic_of_item[: 4 * log.num_topics] = np.repeat(np.arange(log.num_topics), 4)
    topic_of_item.sort()
    born = _birthdays(log, topic_of_item, rng)
    user_born = np.sort(_appearance(log, log.num_users, rng))
    own = np.argsort(rng.random((log.num_users, log.num_topics)), axis=1)[:, : log.topics_per_user]
    with writing(out, fingerprint) as writer:
        total = 0
        for day in range(log.num_days):
            own = _drifted(own, log, rng)
            present = np.flatnonzero((user_born <= day) & (rng.random(log.num_users) < log.daily_share))
            table = _day(log, day, present, own, topic_of_item, born, rng)
            folder = writer.path / (FIRST_DAY + timedelta(days=day)).isoformat()
            folder.mkdir()
            pq.write_table(table, folder / "events.parquet")
            writer.files.append(f"{folder.name}/events.parquet")
            total += table.num_rows
        _write_items(topic_of_item, writer.path / "items.csv")
        writer.files.append("items.csv")
        writer.counts.update(events=total, users=log.num_users, items=log.num_items, days=log.num_days)
    return artifact.read_manifest(out)


def _appearance(log: DriftingLog, count: int, rng: np.random.Generator) -> np.ndarray:
    """The day on which each of `count` appears: most on day 0, the others spread over the rest."""
    late = rng.random(count) < log.new_share
    return np.where(late, rng.integers(1, max(log.num_days, 2), count), 0)


def _birthdays(log: DriftingLog, topic_of_item: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """int64 [num_items], ascending within a topic, so that the items of a day are a prefix of the topic's."""
    born = _appearance(log, log.num_items, rng)
    first = np.searchsorted(topic_of_item, np.arange(log.num_topics))
    born[first] = born[first + 1] = 0  # a topic always has something to show
    return born[np.lexsort((born, topic_of_item))]


def _drifted(own: np.ndarray, log: DriftingLog, rng: np.random.Generator) -> np.ndarray:
    """Topics of each user [num_users, topics_per_user] a day later; a user may come to have one twice."""
    moves = rng.random(len(own)) < log.drift
    result = own.copy()
    rows = np.flatnonzero(moves)
    result[rows, rng.integers(0, log.topics_per_user, len(rows))] = rng.integers(0, log.num_topics, len(rows))
    return result


def _day(
    log: DriftingLog,
    day: int,
    present: np.ndarray,
    own: np.ndarray,
    topic_of_item: np.ndarray,
    born: np.ndarray,
    rng: np.random.Generator,
) -> pa.Table:
    length = rng.geometric(1 / log.session, len(present))
    user = np.repeat(present, length)
    start = np.repeat(np.cumsum(length) - length, length)
    total, position = len(user), np.arange(len(user))
    drawn = own[user, rng.integers(0, log.topics_per_user, total)]
    moves = (rng.random(total) >= log.stay) | (position == start)
    topic = drawn[np.maximum.accumulate(np.where(moves, position, 0))]
    alive = np.bincount(topic_of_item[born <= day], minlength=log.num_topics)
    # A chain of successors runs until the topic changes or the user looks for something new.
    fresh = moves | (rng.random(total) >= log.sequential_share)
    begin = np.maximum.accumulate(np.where(fresh, position, 0))
    rank = np.minimum(np.expm1(rng.random(total) * np.log1p(alive[topic])).astype(np.int64), alive[topic] - 1)
    newest_first = alive[topic] - 1 - rank
    place = (newest_first[begin] + position - begin) % alive[topic]
    item = np.searchsorted(topic_of_item, np.arange(log.num_topics))[topic] + place
    midnight = int((FIRST_DAY + timedelta(days=day) - date(1970, 1, 1)).total_seconds())
    opening = rng.integers(0, _DAY_SECONDS // 2, log.num_users)[user]
    seconds = midnight + opening + (position - start) * _SESSION_GAP_SECONDS
    order = np.argsort(seconds, kind="stable")
    return pa.table(
        {
            "user_id": np.char.add("u", user[order].astype(str)),
            "item_id": np.char.add("i", item[order].astype(str)),
            "timestamp": seconds[order].astype(np.int64),
        }
    )


def _write_items(topic_of_item: np.ndarray, path: Path) -> None:
    ids = np.arange(len(topic_of_item)).astype(str)
    columns = {"item_id": np.char.add("i", ids), "topic": np.char.add("topic-", topic_of_item.astype(str))}
    pa_csv.write_csv(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
