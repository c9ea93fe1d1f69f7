"""One user's history, read from the validated events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import EventColumn

_LEAST_TO_SHOW = 12


class History(NamedTuple):
    """A user's items, oldest first, and whether each one's event is context, i.e. below the target level."""

    items: list[str]
    is_context: list[bool]

    @property
    def positives(self) -> list[str]:
        """The items that are not context, each once, at its first place."""
        return list(dict.fromkeys(item for item, marked in zip(*self, strict=True) if not marked))


def history_of(config: Config, workdir: Workdir, user_id: str) -> History:
    """The user's events of the levels that a history holds.

    Raises:
        ValueError: the user has no event of these levels.
    """
    for table in _buckets(config, workdir):
        rows = table.filter(pc.equal(table[EventColumn.USER_ID], user_id))
        if rows.num_rows:
            levels = rows[EventColumn.FEEDBACK_LEVEL]
            is_context = pc.less(levels, config.data.feedback.target_level_index).to_pylist()
            return History(rows[EventColumn.ITEM_ID].to_pylist(), is_context)
    level = config.data.feedback.levels[config.data.feedback.history_level_index]
    raise ValueError(
        f"user {user_id!r} has no event of level {level!r} or above in {workdir.events.path}; ids are case-sensitive "
        "strings"
    )


def example_user(config: Config, workdir: Workdir) -> str:
    """The first user with enough items to show, else the one with the most."""
    longest, length = "", 0
    for table in _buckets(config, workdir):
        is_positive = pc.greater_equal(table[EventColumn.FEEDBACK_LEVEL], config.data.feedback.target_level_index)
        by_user = table.filter(is_positive).group_by(EventColumn.USER_ID, use_threads=False)
        counts = by_user.aggregate([(EventColumn.ITEM_ID, "count_distinct")])
        numbers = counts[f"{EventColumn.ITEM_ID}_count_distinct"]
        for user, count in zip(counts[EventColumn.USER_ID].to_pylist(), numbers.to_pylist(), strict=True):
            if count >= _LEAST_TO_SHOW:
                return user
            if count > length:
                longest, length = user, count
    return longest


def _buckets(config: Config, workdir: Workdir) -> Iterator[pa.Table]:
    """User and item ids, as strings, and levels of the events that a history holds, bucket by bucket."""
    ids = [EventColumn.USER_ID, EventColumn.ITEM_ID]
    is_held = pc.field(EventColumn.FEEDBACK_LEVEL) >= config.data.feedback.history_level_index
    for name in artifact.read_manifest(workdir.events.path).files:
        table = pq.read_table(workdir.events.path / name, columns=[*ids, EventColumn.FEEDBACK_LEVEL], filters=is_held)
        texts = {key: table[key].cast("string") for key in ids}
        yield pa.table({**texts, EventColumn.FEEDBACK_LEVEL: table[EventColumn.FEEDBACK_LEVEL]})
