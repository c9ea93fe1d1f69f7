"""Properties of windows and negatives that hold for every log, not only for the examples one thinks of."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs.buckets.bucket_events import BucketEvents
from beam_jobs.buckets.splits import leave_one_out
from beam_jobs.common.payload import pack_parts, pack_sorted, unpack, unpack_sorted
from beam_jobs.records.history_events import find_repeats
from beam_jobs.records.window_records import window_bounds
from beam_jobs.sampling.negatives import OwnedItems, WindowNegatives
from contracts.names import PADDING_INDEX, Split

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12).map(np.array)


@given(counts=COUNTS, length=st.integers(1, 12))
def test_every_event_but_a_users_first_is_a_target_once(counts: np.ndarray, length: int) -> None:
    bounds = window_bounds(counts, length)
    starts = np.cumsum(counts) - counts
    user_of = np.repeat(np.arange(len(counts)), counts)
    assert bounds.target_positions().tolist() == [p for p in range(len(user_of)) if p not in set(starts[counts > 0])]
    assert ((bounds.num_targets >= 1) & (bounds.num_targets <= length)).all()
    last = bounds.starts + bounds.num_targets
    assert (user_of[bounds.starts] == user_of[last]).all()  # a window is one user's
    # Only a user's oldest window may be short.
    assert (bounds.num_targets[1:] == length)[user_of[bounds.starts[1:]] == user_of[bounds.starts[:-1]]].all()


@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 4), st.integers(0, 2)), max_size=60),
    scale=st.sampled_from([1, 2**29]),
)
def test_an_event_is_a_repeat_if_its_user_had_the_item_and_levels_are_told_apart(
    events: list[tuple[int, int, int, int]], scale: int
) -> None:
    """Also where a user, an item and a place do not fit into 64 bits together. Only training has a highest level."""
    events = sorted(events, key=lambda event: event[:2])
    users, splits, items, levels = np.array(events, int).reshape(-1, 4).T
    nothing = np.zeros(len(events), int)
    of_users = BucketEvents(users * scale, items * scale, nothing, levels, splits, nothing, np.arange(4))
    repeats = find_repeats(of_users, 4 * scale)
    for event, (user, _, item, level) in enumerate(events):
        before = [one for u, _, i, one in events[:event] if (u, i) == (user, item)]
        assert repeats.is_repeat[event] == bool(before)
        assert repeats.comes_back[event] == (max(before, default=-1) >= level)
        learnt = [one for u, split, i, one in events if (u, i) == (user, item) and split == Split.TRAIN]
        assert repeats.highest_level[event] == max(learnt, default=0)


@given(events=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=60), least=st.integers(3, 6))
def test_nothing_later_than_a_target_is_trained_on(events: list[tuple[int, bool]], least: int) -> None:
    events = sorted(events, key=lambda event: event[0])
    users, targets = np.array([u for u, _ in events], int), np.array([t for _, t in events], bool)
    splits = leave_one_out(users, targets, least)
    for user in set(users.tolist()):
        mine, is_target = splits[users == user], targets[users == user]
        assert (np.diff(mine) >= 0).all()
        held_out = [int((is_target & (mine == split)).sum()) for split in (Split.VALIDATION, Split.TEST)]
        assert held_out == ([1, 1] if is_target.sum() >= least else [0, 0])


@st.composite
def catalogues(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sampling weights over many orders of magnitude, groups, and (user, item) positives, up to owning everything."""
    num_items = draw(st.integers(1, 40))
    weights = np.exp(draw(st.lists(st.floats(-20, 20), min_size=num_items, max_size=num_items)))
    groups = np.array(draw(st.lists(st.integers(0, 3), min_size=num_items, max_size=num_items)))
    pair = st.tuples(st.integers(0, 2), st.integers(1, num_items))
    pairs = np.array(draw(st.lists(pair, min_size=1, max_size=3 * num_items)))
    return weights / weights.sum(), groups, pairs[:, 0], pairs[:, 1]


@given(catalogue=catalogues(), number=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_negatives_are_lawful_for_any_catalogue(
    catalogue: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], number: int, seed: int
) -> None:
    probabilities, groups, users, items = catalogue
    sampler = WindowNegatives(probabilities, groups, 4)
    owned = OwnedItems(users, items, 3, len(groups))
    mine = {user: set(items[users == user].tolist()) for user in range(3)}
    rng = np.random.default_rng(seed)
    in_group = sampler.in_group(users, items, number, owned, rng).reshape(len(users), number)
    easy = sampler.easy(users, number, owned, rng).reshape(len(users), number)
    for user, item, hard_row, easy_row in zip(users.tolist(), items.tolist(), in_group, easy, strict=True):
        group = set((np.flatnonzero(groups == groups[item - 1]) + 1).tolist())
        for row, allowed in ((hard_row, group - mine[user]), (easy_row, set(range(1, len(groups) + 1)) - mine[user])):
            # Padding stands exactly where no negative exists.
            assert set(row.tolist()) <= (allowed or {PADDING_INDEX})


@given(st.lists(st.integers(0, 2**62)))
def test_sorted_numbers_survive_their_packing(numbers: list[int]) -> None:
    ordered = np.sort(np.array(numbers, np.int64))
    assert unpack_sorted(pack_sorted(ordered)).tolist() == ordered.tolist()


@given(st.lists(st.integers(0, 5)))
def test_rows_are_dealt_out_to_their_parts_in_their_order(parts: list[int]) -> None:
    places = pa.array(range(len(parts)), pa.int64())
    found = {part: unpack([rows]) for part, rows in pack_parts(pa.table({"place": places}), np.array(parts, int), 6)}
    assert list(found) == sorted(set(parts))
    for part, rows in found.items():
        assert rows["place"].to_pylist() == [place for place, one in enumerate(parts) if one == part]
    [*typed] = pack_parts(pa.table({"place": places}), np.zeros(len(parts), int), 1, pa.schema([("place", pa.int8())]))
    assert [unpack([rows]).schema.types for _, rows in typed] == [[pa.int8()]] * bool(parts)
