"""What the tower reads of a request's history, against loops over its rows."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from contracts.names import MOST_CONTEXT
from serving.graph.history import is_repeat, latest_context


@pytest.mark.parametrize("length", [0, 1, 40])
def test_a_repeat_is_what_stands_earlier_in_its_row(length):
    items = np.random.default_rng(length).integers(0, 12, [7, length])
    expected = [[item in row[:place] for place, item in enumerate(row)] for row in items.tolist()]
    assert is_repeat(tf.constant(items)).numpy().tolist() == expected


@pytest.mark.parametrize("length", [0, 1, 40])
def test_of_a_run_of_context_the_latest_stays(length):
    rng = np.random.default_rng(length)
    rows = [(rng.choice([-1, -1, -1, 1], number) * (1 + np.arange(number))).tolist() for number in (length, 0, length)]
    found = latest_context(tf.ragged.constant(rows, tf.int64, ragged_rank=1)).to_list()
    expected = []
    for row in rows:
        later = [list(itertools.takewhile(lambda other: other < 0, row[place + 1 :])) for place in range(len(row))]
        expected.append([event for event, run in zip(row, later, strict=True) if event > 0 or len(run) < MOST_CONTEXT])
    assert found == expected


@pytest.mark.parametrize("length", [0, 1, 40])
def test_context_repeats_a_positive_wherever_it_stands(length):
    rng = np.random.default_rng(length)
    items, is_context = rng.integers(0, 30, [7, length]), rng.random([7, length]) < 0.5
    expected = [
        [
            item in row[:place][~marks[:place]] or (marks[place] and (item in row[:place] or item in row[~marks]))
            for place, item in enumerate(row)
        ]
        for row, marks in zip(items, is_context, strict=True)
    ]
    assert is_repeat(tf.constant(items), tf.constant(is_context)).numpy().tolist() == expected


def test_context_is_counted_row_by_row():
    """Three context events where two may stay: the second row loses its first one, too."""
    assert MOST_CONTEXT == 2
    rows = tf.ragged.constant([[-1, -2, -3], [-4, -5, -6]], tf.int64, ragged_rank=1)
    assert latest_context(rows).to_list() == [[-2, -3], [-5, -6]]
