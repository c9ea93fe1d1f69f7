"""Jobs that are run one by one may find artifacts that were made from different events."""

from __future__ import annotations

from pathlib import Path

from contracts.artifact import read_manifest
from contracts.layout import Events, ItemStatistics


def require_same_events(events: Events, statistics: ItemStatistics) -> None:
    """Raises ValueError if the statistics were made from other events."""
    if read_manifest(statistics.path).details.get("counts_of_events") != read_manifest(events.path).counts:
        raise ValueError(of_other_events(f"{events.path} holds other events than", statistics.path))


def of_other_events(what: str, statistics: Path) -> str:
    """The message, for `what` does not fit the statistics."""
    return f"{what} {statistics}, which was made from others: run statistics and all later stages again"
