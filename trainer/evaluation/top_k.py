"""Exact top-k of many rows, on sortable integers."""

from __future__ import annotations

import numpy as np

LAST_KEY = np.iinfo(np.int64).max
"""Sorts after all `sort_keys`."""

_LOW = np.int64(0xFFFFFFFF)
_SAMPLE_STRIDE = 16
_LEAST_COLUMNS_PER_PLACE = 8
"""With fewer columns per place, looking for the few that matter costs more than it saves."""


def top_k(scores: np.ndarray, length: int, tie_break: np.ndarray | None = None) -> np.ndarray:
    """Columns of each row's highest scores, best first; equal scores in ascending order of `tie_break`.

    A score and its tie-break are packed into one integer that sorts in the desired order. Partitioning and sorting
    integers, which NumPy does with vector instructions, is then exact, ties included.

    Args:
        scores: float32 [num_rows, num_columns], no NaN; -inf comes last.
        length: at most num_columns.
        tie_break: a permutation, int [num_columns]; the column itself by default.

    Returns:
        int64 [num_rows, length].
    """
    num_columns = scores.shape[1]
    columns = np.arange(num_columns)
    tie_break = columns if tie_break is None else tie_break.astype(np.int64)
    if num_columns >= _LEAST_COLUMNS_PER_PLACE * length:
        keys = _keys_of_the_likely(scores, length, tie_break)
    else:
        keys = sort_keys(scores, tie_break)
        keys.partition(min(length, num_columns) - 1, axis=1)
        keys = keys[:, :length]
    keys.sort(axis=1)
    column_of_tie_break = np.empty_like(columns)
    column_of_tie_break[tie_break] = columns
    return column_of_tie_break[keys[:, :length] & _LOW]


def sort_keys(scores: np.ndarray, tie_break: np.ndarray) -> np.ndarray:
    """int64 of the shape of `scores`, ascending where scores descend; the lower half is the tie-break."""
    # IEEE floats order like integers once the negative ones are mirrored; + 0.0 makes -0.0 equal to 0.0.
    bits = (scores + np.float32(0)).view(np.int32)
    keys = (~(bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF)))).astype(np.int64)
    keys <<= 32
    keys |= tie_break
    return keys


def _keys_of_the_likely(scores: np.ndarray, length: int, tie_break: np.ndarray) -> np.ndarray:
    """Keys [num_rows, at least length] that hold each row's `length` lowest, padded with the highest integer.

    A sample of each row serves to guess a score that more than `length` columns reach; if the guess was too high, the
    whole row is taken.
    """
    sample = -scores[:, ::_SAMPLE_STRIDE]
    place = min(2 * length // _SAMPLE_STRIDE + 8, sample.shape[1] - 1)
    least = -np.partition(sample, place, axis=1)[:, place, None]
    reached = scores >= least
    count = reached.sum(axis=1)
    if (count < length).any():
        reached[count < length] = True
        count = reached.sum(axis=1)
    where = np.flatnonzero(reached)
    row = np.repeat(np.arange(len(scores)), count)
    within = np.arange(len(where)) - np.repeat(np.cumsum(count) - count, count)
    keys = np.full((len(scores), int(count.max(initial=length))), LAST_KEY)
    keys[row, within] = sort_keys(scores.ravel()[where], tie_break[where - row * scores.shape[1]])
    return keys
