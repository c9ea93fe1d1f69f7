"""What ids look like: letters and digits by runs, so that "user_17" is "a_9" and "17.0" is "9.9".

A log whose ids change their look (an integer column that a missing value turned into floats, a new prefix) joins
with nothing that was learnt from the old one, and every single row of it is valid.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.span_statistics import OTHER

_SAMPLE = 4_096  # distinct ids of a batch that are looked at
_MOST_RUNS = 8  # of a shape: of a UUID or a hash only the beginning is kept
_MOST_SHAPES = 64
_RARE = 0.01  # share of ids below which a shape is rare
_MOST_RARE = 0.02  # share of ids with rare shapes from which new ones are to be expected every day


def id_shapes(ids: pa.Array) -> Counter[str]:
    """How many of the distinct ids, or of a sample evenly spread over them, have which shape."""
    step = max(1, -(-len(ids) // _SAMPLE))
    sample = ids.take(pa.array(np.arange(0, len(ids), step)))
    shapes = pc.replace_substring_regex(sample.filter(pc.not_equal(sample, "")), r"\p{L}+", "a")
    shapes = pc.replace_substring_regex(shapes, r"\p{N}+", "9")
    counts = pc.value_counts(pc.utf8_slice_codeunits(shapes, 0, _MOST_RUNS))
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def merge_shapes(counters: list[dict[str, int]]) -> dict[str, int]:
    """The most frequent shapes of all; rarer ones are `OTHER`."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    other = total.pop(OTHER, 0)
    ranked = sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))
    other += sum(count for _, count in ranked[_MOST_SHAPES:])
    return {**dict(ranked[:_MOST_SHAPES]), **({OTHER: other} if other else {})}


def usual_shapes(counters: list[dict[str, int]]) -> dict[str, int]:
    """Shapes of a whole log or table: those of random characters are `OTHER`, so that no schema lists them.

    Where shapes that occur once, or hardly ever, make up more than a few ids, the next log will bring others.
    """
    shapes = merge_shapes(counters)
    number = sum(shapes.values())
    rare = {shape for shape, count in shapes.items() if count == 1 or count < _RARE * number} | {OTHER}
    of_rare = sum(shapes.get(shape, 0) for shape in rare)
    if of_rare <= _MOST_RARE * number:
        return {shape: count for shape, count in shapes.items() if shape != OTHER}
    return {**{shape: count for shape, count in shapes.items() if shape not in rare}, OTHER: of_rare}
