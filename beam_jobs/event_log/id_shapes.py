"""What ids look like: each run of letters or digits is one character, so "user_17" is "a_9" and "17.0" is "9.9".

A log whose ids change shape (an integer column that a missing value turned into floats, a new prefix) matches nothing
that was learnt from the old one, although every single row of it is valid.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_SAMPLE = 4_096  # distinct ids looked at in a bucket of users or a table
_MOST_RUNS = 8  # in a shape: only the beginning of a UUID or a hash is kept
_MOST_SHAPES = 64
_RARE = 0.05  # share of ids up to which a shape is rare
_MOST_RARE = 0.01  # share of ids with rare shapes above which the next ids are expected to have other shapes
_MOST = 0.5
_KEY = 2  # one id may well be made of this many values

_MARKS = ("NULL", "Null", "null", "(null)", r"\N", "None", "none", "NaN", "nan", "<NA>", "N/A", "n/a", "undefined")
"""What databases, pandas and others write for a missing value."""

SHAPE = "shape"
"""Last part of the name of a feature whose values are shapes."""


def id_shapes(ids: pa.Array) -> Counter[str]:
    """Counts the shapes of the distinct ids, or of an evenly spread sample of them."""
    step = max(1, -(-len(ids) // _SAMPLE))
    sample = ids.take(pa.array(np.arange(0, len(ids), step)))
    shapes = pc.replace_substring_regex(sample.filter(pc.not_equal(sample, "")), r"\p{L}+", "a")
    shapes = pc.replace_substring_regex(shapes, r"\p{N}+", "9")
    counts = pc.value_counts(pc.utf8_slice_codeunits(shapes, 0, _MOST_RUNS))
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def merge_shapes(counters: list[dict[str, int]]) -> dict[str, int]:
    """The most frequent shapes of all; rarer ones are dropped."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_SHAPES])


def are_random(shares: dict[str, float]) -> bool:
    """Whether shapes, given with their shares, look random: there are many, and the next ids will have others.

    This goes by shares, not by counts, since an item counts once for each bucket of users that it is in.
    """
    return sum(share for share in shares.values() if share <= _RARE) > _MOST_RARE


def begin_oddly(shapes: dict[str, int]) -> str | None:
    """The commonest shape that begins with a space or a quote, if most ids do: due to how the file is written."""
    odd = {shape: count for shape, count in shapes.items() if shape[:1].isspace() or shape[:1] in ('"', "'")}
    return max(odd, key=odd.__getitem__) if sum(odd.values()) > _MOST * sum(shapes.values()) else None


def are_lists(shapes: dict[str, int]) -> str | None:
    """The commonest shape of several ids in one field, if most fields hold several; else None.

    Keys made of two columns look alike in all rows, and titles do not repeat a shape with digits: neither is a list.
    """
    listed = {shape: _listed(shape) for shape in shapes}
    several = {shape: count for shape, count in shapes.items() if listed[shape][1] > 1}
    if sum(several.values()) <= _MOST * sum(shapes.values()):
        return None
    commonest = max(several, key=several.__getitem__)
    one, _ = listed[commonest]
    lengths = {number for shape, (first, number) in listed.items() if first == one}
    is_cut = len(commonest) == _MOST_RUNS and one != "9"  # the runs of an ISBN are digits, too
    return commonest if is_cut or (len(lengths) > 1 and max(lengths) > _KEY) else None


def _listed(shape: str) -> tuple[str, int]:
    """What a shape repeats between separators and how often, as far as it is kept; else the shape itself and 1."""
    first, *others = re.split("[ ,;|]+", shape)
    *whole, last = others or [first]
    is_last = last == first or (len(shape) == _MOST_RUNS and first.startswith(last))
    return (first, 1 + len(others)) if "9" in first and set(whole) <= {first} and is_last else (shape, 1)


def spelled_twice(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Ids that occur both as `17` and as `17.0`: two ids here, but one if a column with gaps was written as floats."""
    decimals = ids.filter(pc.match_substring_regex(ids, r"^-?[0-9]+\.0+$"))
    whole = pc.replace_substring_regex(decimals, r"\.0+$", "")
    return whole.filter(pc.is_in(whole, ids))


def marks_of_absence(ids: pa.ChunkedArray) -> list[str]:
    """Those of the distinct ids that files often contain in place of a missing one."""
    return ids.filter(pc.is_in(ids, pa.array(_MARKS))).to_pylist()
