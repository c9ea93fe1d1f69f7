"""A bucket's file of validated events: its columns, its order, and the counts taken from it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.buckets.event_order import by_user_and_time, ties
from beam_jobs.common.arrays import Int8, Int64
from beam_jobs.common.files import write_parquet
from beam_jobs.common.hashing import hash_strings, mix
from beam_jobs.common.payload import encode_ids, one_array
from contracts.names import EventColumn, Split

EVENT_SCHEMA = pa.schema(
    [
        (EventColumn.USER_ID, pa.string()),
        (EventColumn.ITEM_ID, pa.string()),
        (EventColumn.TIMESTAMP, pa.int64()),
        (EventColumn.FEEDBACK_LEVEL, pa.int8()),
        (EventColumn.REQUEST, pa.int32()),
    ]
)
"""Schema of events without a split."""


class Splitting(Protocol):
    """How events get their split."""

    def assign(self, events: pa.Table) -> Int8:
        """[num_events] `Split` of the events that `order_events` returns."""


def write_bucket(path: Path, events: pa.Table, splitting: Splitting) -> tuple[pa.Table, dict[str, int]]:
    """Writes a bucket's events in order, each once.

    Args:
        path: the bucket's file.
        events: of `EVENT_SCHEMA`, in any order.
        splitting: gives the events their splits, once they are in order.

    Returns:
        the written events, without their splits, and counts of them.
    """
    table, duplicates = order_events(events)
    splits = splitting.assign(table)
    write_parquet(table.append_column(EventColumn.SPLIT, pa.array(splits)), path)
    return table, {
        "events": table.num_rows,
        "users": len(one_array(table[EventColumn.USER_ID]).dictionary),
        "duplicates": duplicates,
        **{f"{split.name.lower()}_events": int((splits == split).sum()) for split in Split},
    }


def num_tied(events: pa.Table) -> int:
    """How many of the events that `order_events` returns have the same time as their user's previous event."""
    users, times = one_array(events[EventColumn.USER_ID]).indices, events[EventColumn.TIMESTAMP].to_numpy()
    return int(((np.diff(users) == 0) & (np.diff(times) == 0)).sum())


def steps_by_item(events: pa.Table) -> tuple[int, int, int]:
    """Counts users' steps to a later time and another item among the events that `order_events` returns.

    Returns:
        the number of all such steps, of those that go up in the bytewise order of item ids, and of those that go up if
        shorter ids come first, as with numbers.
    """
    users, items = (one_array(events[name]) for name in (EventColumn.USER_ID, EventColumn.ITEM_ID))
    places = items.indices.to_numpy()
    later = (np.diff(users.indices) == 0) & (np.diff(events[EventColumn.TIMESTAMP].to_numpy()) > 0)
    lengths = pc.binary_length(items.dictionary).to_numpy()
    as_number = np.empty(len(lengths), np.int64)
    as_number[np.argsort(lengths, kind="stable")] = np.arange(len(lengths))  # ids of one length are in bytewise order
    up, up_as_number = np.diff(places), np.diff(as_number[places])
    return int((later & (up != 0)).sum()), int((later & (up > 0)).sum()), int((later & (up_as_number > 0)).sum())


def order_events(events: pa.Table) -> tuple[pa.Table, int]:
    """Sorts by (user_id, timestamp, hash of user and item, item_id) and keeps the highest level of exact duplicates.

    The order depends on the events alone, not on how they arrived. Ties in time are broken by a hash of the
    pair: no item, be it popular, low-numbered or of a large hash, may come last for every user and become the target.
    Duplicates of the same level keep the greatest request code, as 0 stands for no values.

    Returns:
        the events, ids dictionary-encoded with user numbers ascending from 0 in the table's order, and
        the number of duplicates dropped.
    """
    user_ids, users = _ranked(events[EventColumn.USER_ID])
    item_ids, items = _ranked(events[EventColumn.ITEM_ID])
    times = events[EventColumn.TIMESTAMP].to_numpy()
    levels = events[EventColumn.FEEDBACK_LEVEL].to_numpy()
    requests = events[EventColumn.REQUEST].to_numpy()
    order = by_user_and_time(users, times)
    tied, run = ties(users[order], times[order])
    rows = order[tied]
    tie_break = mix(hash_strings(user_ids)[users[rows]] ^ hash_strings(item_ids)[items[rows]])
    order[tied] = rows[np.lexsort((-requests[rows], -levels[rows], items[rows], tie_break, run))]
    users, items, times, levels, requests = (values[order] for values in (users, items, times, levels, requests))
    keep = np.ones(len(users), bool)
    keep[1:] = (users[1:] != users[:-1]) | (times[1:] != times[:-1]) | (items[1:] != items[:-1])
    table = pa.table(
        {
            EventColumn.USER_ID: pa.DictionaryArray.from_arrays(pa.array(users[keep].astype(np.int32)), user_ids),
            EventColumn.ITEM_ID: pa.DictionaryArray.from_arrays(pa.array(items[keep].astype(np.int32)), item_ids),
            EventColumn.TIMESTAMP: pa.array(times[keep]),
            EventColumn.FEEDBACK_LEVEL: pa.array(levels[keep]),
            EventColumn.REQUEST: pa.array(requests[keep]),
        }
    )
    return table, int((~keep).sum())


def _ranked(ids: pa.ChunkedArray) -> tuple[pa.Array, Int64]:
    """Distinct ids in bytewise order, and each row's place among them."""
    distinct, places = encode_ids(ids)
    order = pc.sort_indices(distinct.cast(pa.binary()))
    rank = np.empty(len(order), np.int64)
    rank[order.to_numpy()] = np.arange(len(order))
    return distinct.take(order), rank[places]
