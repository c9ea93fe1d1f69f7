"""Events of one second in another order in each epoch, with all that belongs to them."""

import itertools
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from contracts.names import WindowField
from trainer.input.ragged import Ragged
from trainer.input.tied_events import shuffle_ties

Window = tuple[list[int], int, list[bool]]
"""Seconds of the events, events of context, and which of the events are no targets."""


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.array([*itertools.chain(*rows)], np.int64), np.cumsum([0, *map(len, rows)]))


def chunk_of(windows: list[Window], num_lists: int) -> dict[str, Ragged]:
    """Event e of all has item e + 1, level 10 e, request 100 e and, if it is predicted, lists of its own number."""
    number = itertools.count()
    events = [[next(number) for _ in seconds] for seconds, _, _ in windows]
    predicted = [
        [event for place, event in enumerate(row) if place >= num_context and not others[place]]
        for row, (_, num_context, others) in zip(events, windows, strict=True)
    ]
    lists = ragged([[event for event in row for _ in range(num_lists)] for row in predicted])
    return {
        WindowField.ITEM_INDEX: ragged([[event + 1 for event in row] for row in events]),
        WindowField.FEEDBACK_LEVEL: ragged([[10 * event for event in row] for row in events]),
        WindowField.REQUEST: ragged([[100 * event for event in row] for row in events]),
        WindowField.TIMESTAMP: ragged([seconds for seconds, _, _ in windows]),
        WindowField.NUM_CONTEXT: ragged([[num_context] for _, num_context, _ in windows]),
        WindowField.NON_TARGETS: ragged([[p for p, other in enumerate(others) if other] for _, _, others in windows]),
        WindowField.MINED_NEGATIVES: lists,
        WindowField.EXPOSED_NEGATIVES: ragged([[] for _ in windows]),
    }


@st.composite
def some_windows(draw: st.DrawFn) -> list[Window]:
    windows = []
    for _ in range(draw(st.integers(1, 5))):
        seconds = sorted(draw(st.lists(st.integers(7, 9), min_size=2, max_size=8)))
        others = draw(st.lists(st.booleans(), min_size=len(seconds), max_size=len(seconds)))
        others[-1] = False  # a window without a target is never written
        windows.append((seconds, draw(st.integers(1, len(seconds) - 1)), others))
    return windows


@given(windows=some_windows(), num_lists=st.integers(0, 2), seed=st.integers(0, 99))
def test_only_ties_move_and_what_belongs_to_an_event_goes_with_it(
    windows: list[Window], num_lists: int, seed: int
) -> None:
    chunk = chunk_of(windows, num_lists)
    before = chunk[WindowField.ITEM_INDEX].values - 1
    is_other = np.concatenate([others for _, _, others in windows])
    shuffle_ties(chunk, np.random.default_rng(seed))
    after = chunk[WindowField.ITEM_INDEX].values - 1
    assert chunk[WindowField.FEEDBACK_LEVEL].values.tolist() == (10 * after).tolist()
    assert chunk[WindowField.REQUEST].values.tolist() == (100 * after).tolist()
    start, lists = 0, []
    marked = chunk[WindowField.NON_TARGETS]
    for row, (seconds, num_context, _) in enumerate(windows):
        events = after[start : start + len(seconds)]
        # Each event is among those of its second, and context that has to stay does.
        assert [seconds[event - start] for event in events] == seconds
        if num_context > 1 or len(chunk[WindowField.MINED_NEGATIVES].values):
            assert set(events[:num_context]) == set(before[start : start + num_context])
        expected = [place for place, event in enumerate(events) if is_other[event]]
        assert marked.values[marked.splits[row] : marked.splits[row + 1]].tolist() == expected
        lists += [e for p, e in enumerate(events) if p >= num_context and not is_other[e] for _ in range(num_lists)]
        start += len(seconds)
    assert chunk[WindowField.MINED_NEGATIVES].values.tolist() == lists


def test_each_order_of_a_tie_is_as_likely() -> None:
    """Of three events of one second after one of another: six orders, and the first one of the window stays."""
    rng, found = np.random.default_rng(0), Counter[tuple[int, ...]]()
    for _ in range(1200):
        chunk = chunk_of([([1, 2, 2, 2], 1, [False] * 4)], 0)
        shuffle_ties(chunk, rng)
        found[tuple(chunk[WindowField.ITEM_INDEX].values)] += 1
    assert set(found) == {(1, *order) for order in itertools.permutations((2, 3, 4))}
    assert chisquare(list(found.values())).pvalue > 1e-4


def test_an_event_of_an_item_that_its_second_holds_already_stays_behind_it() -> None:
    """Places 3 and 5 are of the items of places 1 and 4: no targets, as nobody's next item is what he had."""
    rng, found = np.random.default_rng(0), set()
    for _ in range(400):
        chunk = chunk_of([([1, 2, 2, 2, 2, 2, 2], 1, [False, False, False, True, False, True, False])], 0)
        chunk[WindowField.ITEM_INDEX].values[[3, 5]] = 2, 5
        shuffle_ties(chunk, rng)
        items = chunk[WindowField.ITEM_INDEX].values.tolist()
        repeats = [place for place, item in enumerate(items) if item in items[:place]]
        assert chunk[WindowField.NON_TARGETS].values.tolist() == repeats
        found.add(tuple(items))
    parts = [(2, 3), (2, 5), (5, 7)]
    assert found == {(1, *a, *b, *c) for a, b, c in itertools.product(*map(itertools.permutations, parts))}
