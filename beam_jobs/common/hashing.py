"""A hash of strings that is the same on every worker, runner and Python version."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from beam_jobs.common.arrays import Int64

_FNV_OFFSET = np.uint64(0xCBF29CE484222325)
_FNV_PRIME = np.uint64(0x100000001B3)


def hash_strings(values: pa.Array) -> npt.NDArray[np.uint64]:
    """64-bit FNV-1a of each string's bytes, with a splitmix64 finish for even low bits.

    The loop runs over byte positions, not over strings: hash the distinct ids of a batch, not its rows.

    Args:
        values: [num_strings] string or binary array without nulls.

    Returns:
        [num_strings] hashes.
    """
    data, offsets = binary_buffers(values)
    lengths = np.diff(offsets)
    longest_first = np.argsort(-lengths, kind="stable")
    starts = offsets[:-1][longest_first]
    ascending = -lengths[longest_first]
    hashes = np.full(len(lengths), _FNV_OFFSET)
    for position in range(int(lengths.max(initial=0))):
        live = int(np.searchsorted(ascending, -position, side="left"))  # strings longer than `position`
        hashes[:live] = (hashes[:live] ^ data[starts[:live] + position]) * _FNV_PRIME
    result = np.empty_like(hashes)
    result[longest_first] = mix(hashes)
    return result


def binary_buffers(values: pa.Array) -> tuple[npt.NDArray[np.uint8], Int64]:
    """The bytes of a string array and its [num_strings + 1] offsets into them."""
    array = values.cast(pa.large_binary())
    _, offset_buffer, data_buffer = array.buffers()
    if offset_buffer is None or len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(len(array) + 1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    return data, offsets


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finish: every bit of the result depends on every bit of the value, one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
