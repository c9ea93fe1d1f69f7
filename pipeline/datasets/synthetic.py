"""A seeded event log with known structure, for smoke runs, tests and benchmarks of any size.

Items belong to topics; within a topic their popularity follows a power law. A user has a few
topics and moves between them like a Markov chain; within a topic the next item is, with
`sequential_share`, the successor of the topic's last item on the topic's ring, else drawn by
popularity. So the topics are what grouping should find, and the successor is what a sequence
model can learn and popularity cannot.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from contracts import artifact
from pipeline.datasets import writing

FEEDBACK_LEVELS = ("exposure", "click", "purchase")
_START_SECONDS = 1_700_000_000


@dataclass(frozen=True)
class SyntheticLog:
    """Size and structure of the log."""

    num_events: int = 40_000
    num_users: int = 1_500
    num_items: int = 600
    num_topics: int = 6
    topics_per_user: int = 3
    stay: float = 0.8
    sequential_share: float = 0.6
    click_share: float = 0.7
    purchase_share: float = 0.1
    num_files: int = 2
    file_format: str = "csv"
    seed: int = 0


def generate(log: SyntheticLog, out: Path) -> artifact.Manifest:
    """Writes events-*.{csv,parquet}, users.csv and items.csv into `out`, or reuses the same log.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    if log.num_items < 2 * log.num_topics or log.topics_per_user > log.num_topics:
        raise ValueError(
            f"a synthetic log needs at least 2 items per topic and as many topics as a user has; got {log.num_items} "
            f"items, {log.num_topics} topics, {log.topics_per_user} per user"
        )
    if not log.num_files <= log.num_users <= log.num_events:
        raise ValueError(
            "a synthetic log needs at least one event per user and one user per file; got "
            f"{log.num_events} events, {log.num_users} users, {log.num_files} files"
        )
    fingerprint = artifact.fingerprint(vars(log))
    if manifest := artifact.find_current(out, fingerprint):
        return manifest
    rng = np.random.default_rng(log.seed)
    topic_of_item = np.sort(rng.integers(0, log.num_topics, log.num_items))
    topic_of_item[: 2 * log.num_topics] = np.repeat(np.arange(log.num_topics), 2)
    topic_of_item.sort()
    with writing(out, fingerprint) as writer:
        _write_events(log, topic_of_item, rng, writer)
        _write_tables(log, topic_of_item, rng, writer)
        writer.counts.update(events=log.num_events, users=log.num_users, items=log.num_items)
    return artifact.read_manifest(out)


def _write_events(
    log: SyntheticLog, topic_of_item: np.ndarray, rng: np.random.Generator, writer: artifact.ArtifactWriter
) -> None:
    user_bounds = np.linspace(0, log.num_users, log.num_files + 1).astype(int)
    per_user = _events_per_user(log, rng)
    for number, (first, last) in enumerate(itertools.pairwise(user_bounds)):
        table = _events_of(np.arange(first, last), per_user[first:last], log, topic_of_item, rng)
        name = f"events-{number:05d}.{log.file_format}"
        if log.file_format == "csv":
            pa_csv.write_csv(table, writer.path / name)
        else:
            pq.write_table(table, writer.path / name)
        writer.files.append(name)


def _events_per_user(log: SyntheticLog, rng: np.random.Generator) -> np.ndarray:
    """Log-normal activity that sums exactly to `num_events`, with at least one event per user."""
    weight = rng.lognormal(0.0, 0.8, log.num_users)
    edges = np.floor(np.cumsum(weight / weight.sum()) * (log.num_events - log.num_users) + 0.5).astype(np.int64)
    edges[-1] = log.num_events - log.num_users
    return np.diff(edges, prepend=0) + 1


def _events_of(
    users: np.ndarray, per_user: np.ndarray, log: SyntheticLog, topic_of_item: np.ndarray, rng: np.random.Generator
) -> pa.Table:
    user = np.repeat(users, per_user)
    total = len(user)
    start = np.repeat(np.cumsum(per_user) - per_user, per_user)
    topic = _topics(user, start, log, rng)
    item = _items(user, topic, topic_of_item, log, rng)
    gap = rng.exponential(3_600, total)
    elapsed = np.cumsum(gap)
    seconds = _START_SECONDS + rng.integers(0, 30 * 86_400, len(users))[user - users[0]] + (elapsed - elapsed[start])
    level = np.digitize(rng.random(total), [1 - log.click_share, 1 - log.purchase_share])
    order = np.argsort(seconds, kind="stable")  # a real log comes in order of time, not of users
    return pa.table(
        {
            "user_id": pa.array(np.char.add("u", user[order].astype(str))),
            "item_id": pa.array(np.char.add("i", item[order].astype(str))),
            "timestamp": pa.array(seconds[order].astype(np.int64)),
            "event": pa.DictionaryArray.from_arrays(level[order].astype(np.int32), list(FEEDBACK_LEVELS)).cast(
                pa.string()
            ),
        }
    )


def _topics(user: np.ndarray, start: np.ndarray, log: SyntheticLog, rng: np.random.Generator) -> np.ndarray:
    """The topic of each event [num_events]: the user's last one with probability `stay`, else one of theirs."""
    total = len(user)
    own = np.argsort(rng.random((user.max() + 1 - user.min(), log.num_topics)), axis=1)[:, : log.topics_per_user]
    drawn = own[user - user.min(), rng.integers(0, log.topics_per_user, total)]
    position = np.arange(total)
    moves = (rng.random(total) >= log.stay) | (position == start)
    return drawn[np.maximum.accumulate(np.where(moves, position, 0))]


def _items(
    user: np.ndarray, topic: np.ndarray, topic_of_item: np.ndarray, log: SyntheticLog, rng: np.random.Generator
) -> np.ndarray:
    """The item of each event [num_events]: a chain of successors on the topic's ring, or a popular one."""
    total = len(user)
    size = np.bincount(topic_of_item, minlength=log.num_topics)
    first = np.cumsum(size) - size
    # Zipf-like rank within the topic by inverting the cumulative of 1 / (rank + 1).
    rank = np.expm1(rng.random(total) * np.log1p(size[topic])).astype(np.int64)
    rank = np.minimum(rank, size[topic] - 1)
    order = np.lexsort((np.arange(total), topic, user))  # by user and topic, in time
    fresh = np.empty(total, bool)
    fresh[0] = True
    fresh[1:] = (user[order][1:] != user[order][:-1]) | (topic[order][1:] != topic[order][:-1])
    fresh |= rng.random(total) >= log.sequential_share
    position = np.arange(total)
    chain_start = np.maximum.accumulate(np.where(fresh, position, 0))
    along = (rank[order][chain_start] + position - chain_start) % size[topic[order]]
    item = np.empty(total, np.int64)
    item[order] = first[topic[order]] + along
    return item


def _write_tables(
    log: SyntheticLog, topic_of_item: np.ndarray, rng: np.random.Generator, writer: artifact.ArtifactWriter
) -> None:
    ids = np.arange(log.num_items)
    items = {
        "item_id": np.char.add("i", ids.astype(str)),
        "title": np.char.add("Item ", ids.astype(str)),
        "category": np.char.add("topic-", topic_of_item.astype(str)),
        "price": np.round(rng.lognormal(3.0, 1.0, log.num_items), 2),
    }
    users = {
        "user_id": np.char.add("u", np.arange(log.num_users).astype(str)),
        "country": rng.choice(["DE", "FR", "IN", "US"], log.num_users),
    }
    for name, columns in (("items", items), ("users", users)):
        pa_csv.write_csv(
            pa.table({key: pa.array(value) for key, value in columns.items()}), writer.path / f"{name}.csv"
        )
        writer.files.append(f"{name}.csv")
