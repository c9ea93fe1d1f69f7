"""Groups that hardly occur in the newest span: what the end of one of a log's sources looks like.

No check of a whole span sees it, and neither does the gate, which judges no group that nobody wants.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts.layout import ItemGroups
from contracts.names import ItemColumn
from pipeline.retraining.span_profile import SpanProfile

_SILENT = 0.1
"""Part of the events to expect of a group below which it is said to be silent."""
_LEAST_EXPECTED = 50
"""Events to expect from which on so few are no chance."""


def silent_groups(profiles: Sequence[SpanProfile], groups: ItemGroups) -> list[str]:
    """A note for each group that has less than a tenth of its share of events in the newest span.

    Args:
        profiles: of the spans, oldest first.
        groups: the run's.
    """
    report = json.loads(groups.report.read_text(encoding="utf-8"))
    table = pq.read_table(groups.groups, columns=[ItemColumn.ITEM_ID, ItemColumn.GROUP_ID])
    before, newest = (_events_by_group(spans, table, len(report)) for spans in (profiles[:-1], profiles[-1:]))
    expected = before / max(before.sum(), 1) * newest.sum()
    return [
        f"span {profiles[-1].key} holds {newest[group]:,} events of group {group} ({report[group]['label']}), which by "
        f"the earlier spans would have {expected[group]:,.0f}: has a part of the log stopped?"
        for group in np.flatnonzero((expected >= _LEAST_EXPECTED) & (newest < _SILENT * expected)).tolist()
    ]


def _events_by_group(profiles: Sequence[SpanProfile], groups: pa.Table, num_groups: int) -> np.ndarray:
    """int64 [num_groups] in all the spans; an item that is in no group counts nowhere."""
    columns = {ItemColumn.ITEM_ID: pa.string(), ItemColumn.TOTAL_COUNT: pa.int64()}
    spans = [pq.read_table(profile.items, columns=list(columns)).cast(pa.schema(columns)) for profile in profiles]
    items = pa.concat_tables([pa.schema(columns).empty_table(), *spans])
    # Of all spans at once: each call makes a table of the catalogue.
    row = pc.index_in(items[ItemColumn.ITEM_ID], groups[ItemColumn.ITEM_ID].cast(pa.string()).combine_chunks())
    group = groups[ItemColumn.GROUP_ID].take(row.drop_null()).to_numpy()
    counts = items[ItemColumn.TOTAL_COUNT].filter(row.is_valid()).to_numpy()
    return np.bincount(group, counts, num_groups).astype(np.int64)
