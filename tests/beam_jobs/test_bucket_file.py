"""Order and duplicates of a bucket's events."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.buckets.bucket_file import EVENT_SCHEMA, order_events
from contracts.names import EventColumn

# A century in microseconds, times some users, still fits a number of 64 bits; the far ends of time do not.
MOMENTS = st.sampled_from([0, 1, 2, 3_000_000_000_000_000, -(2**61), 2**62])
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["u1", "u10", "u2", "é"]),
        st.sampled_from(["a", "b", "c", "日"]),
        MOMENTS,
        st.integers(0, 3),
        st.integers(0, 2),
    ),
    max_size=60,
)


def ordered(events: list[tuple[str, str, int, int, int]]) -> tuple[list[tuple[str, str, int, int, int]], int]:
    table, duplicates = order_events(pa.table(list(zip(*events, strict=True)) or [[]] * 5, schema=EVENT_SCHEMA))
    return [tuple(row.values()) for row in table.to_pylist()], duplicates


@given(EVENTS)
def test_events_are_ordered_by_user_and_time_each_once_at_its_highest_level(events) -> None:
    found, duplicates = ordered(events)
    assert [row[:1] + row[2:3] for row in found] == sorted(
        (row[:1] + row[2:3] for row in found), key=lambda row: (row[0].encode(), row[1])
    )
    best: dict[tuple[str, str, int], tuple[int, int]] = {}
    for user, item, time, level, request in events:
        # Of the same level the greatest code of what the request told, so that arrival decides nothing.
        best[user, item, time] = max(best.get((user, item, time), (-1, 0)), (level, request))
    assert sorted(found) == sorted((*key, *kept) for key, kept in best.items())
    assert duplicates == len(events) - len(best)


@given(EVENTS, st.randoms(use_true_random=False))
def test_arrival_decides_nothing(events, random) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)
    assert ordered(shuffled) == ordered(events)


@pytest.mark.parametrize("spread", [1, 10**6, 2**62])
def test_many_events_are_in_the_order_of_one_sort(spread: int) -> None:
    """Times without ties: the order is that of (user, time)."""
    rng = np.random.default_rng(0)
    times = rng.permutation(50_000).astype(np.int64) * max(1, spread // 50_000)
    users = rng.integers(0, 999, len(times))
    columns = [[f"u{user:03}" for user in users], ["i"] * len(times), times, [0] * len(times), [0] * len(times)]
    table, _ = order_events(pa.table(columns, schema=EVENT_SCHEMA))
    np.testing.assert_array_equal(table[EventColumn.TIMESTAMP].to_numpy(), times[np.lexsort((times, users))])
