"""What ids look like: letters and digits by runs, so that "user_17" is "a_9" and "17.0" is "9.9".

A log whose ids change their look (an integer column that a missing value turned into floats, a new prefix) joins
with nothing that was learnt from the old one, and every single row of it is valid.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

_SAMPLE = 4_096  # distinct ids of a batch that are looked at
_MOST_RUNS = 8  # of a shape: of a UUID or a hash only the beginning is kept
_MOST_SHAPES = 64


def id_shapes(ids: pa.Array) -> Counter[str]:
    """How many of the first distinct ids have which shape."""
    shapes = pc.replace_substring_regex(ids.slice(0, _SAMPLE).filter(pc.not_equal(ids.slice(0, _SAMPLE), "")),
                                        r"\p{L}+", "a")  # fmt: skip
    shapes = pc.replace_substring_regex(shapes, r"\p{N}+", "9")
    counts = pc.value_counts(pc.utf8_slice_codeunits(shapes, 0, _MOST_RUNS))
    return Counter(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))


def merge_shapes(counters: list[dict[str, int]]) -> dict[str, int]:
    """The most frequent shapes of all; rarer ones are dropped."""
    total: Counter[str] = Counter()
    for counter in counters:
        total.update(counter)
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0]))[:_MOST_SHAPES])
