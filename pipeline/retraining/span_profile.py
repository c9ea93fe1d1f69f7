"""What one ingested span looks like, measured once, and whether a model may be trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, time, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from contracts.config import Config, SpanLimits
from contracts.layout import Workdir
from contracts.names import EventColumn
from pipeline.retraining.spans import Span

KIND = "span_profile"
_ITEMS = "items.parquet"
_DAY = 86_400 * 1_000_000
_LEAST_EARLIER = 3
"""Spans that it takes to say what is usual."""
_EARLY = 0.01
"""The span begins where this share of its events has happened: a few late ones do not move its start."""


@dataclass(frozen=True)
class SpanProfile:
    """Numbers of one span.

    Attributes:
        max_user_share: share of the events that are the busiest user's.
        stray_share: of a dated span, share of the events more than a day outside its date.
        start: microseconds; the moment by which 1% of the events had happened.
        items: Parquet file (item_id, count).
    """

    key: str
    events: int
    users: int
    max_user_share: float
    stray_share: float
    start: int
    items: str


def profile_span(config: Config, span: Span, workdir: Workdir) -> SpanProfile:
    """Ingests and measures the span into `workdir`, or reads what an earlier run left there.

    Raises:
        ValueError: the span cannot be ingested: a column is missing, rows are malformed, there are none.
    """
    from beam_jobs import ingest

    data = config.data.model_copy(update={"events": span.files, "user_features": None, "item_features": None})
    own = Config(data=data, beam=config.beam)
    wanted = artifact.fingerprint(data.model_dump(mode="json"), span.identity())
    found = artifact.find_manifest(workdir.events.path)
    if found is None or found.fingerprint != wanted:
        found = ingest.run(own, workdir, wanted)
    path = workdir.path / "profile"
    profile = artifact.find_manifest(path)
    if profile is None or profile.fingerprint != wanted:
        with artifact.writing(path, KIND, wanted) as writer:
            writer.details = _measure(span, [workdir.events.path / name for name in found.files], writer.path / _ITEMS)
            writer.files.append(_ITEMS)
        profile = artifact.read_manifest(path)
    return SpanProfile(items=str(path / _ITEMS), **profile.details)


def refusals(profile: SpanProfile, earlier: Sequence[SpanProfile], limits: SpanLimits) -> list[str]:
    """Why the span is not fit to train on, in words; empty if it is."""
    found = []
    if profile.events < limits.min_events:
        found.append(f"{profile.events:,} events, fewer than retrain.span.min_events={limits.min_events:,}")
    if profile.max_user_share > limits.max_user_share:
        found.append(
            f"one user has {profile.max_user_share:.1%} of the events, more than "
            f"retrain.span.max_user_share={limits.max_user_share}: a bot, or a wrong user id"
        )
    if profile.stray_share > limits.max_stray_share:
        found.append(
            f"{profile.stray_share:.0%} of the events lie more than a day outside the date, more than "
            f"retrain.span.max_stray_share={limits.max_stray_share}: a clock that jumped, or a wrong unit of time"
        )
    if len(earlier) >= _LEAST_EARLIER:
        usual = float(np.median([span.events for span in earlier]))
        ratio = max(profile.events, 1) / usual
        if not 1 / limits.max_volume_ratio <= ratio <= limits.max_volume_ratio:
            found.append(
                f"{profile.events:,} events against a usual {usual:,.0f}, beyond "
                f"retrain.span.max_volume_ratio={limits.max_volume_ratio} either way"
            )
        share = new_item_share(profile, earlier)
        if share > limits.max_new_item_share:
            found.append(
                f"{share:.0%} of the events are on items that no earlier span of the window has, more than "
                f"retrain.span.max_new_item_share={limits.max_new_item_share}: were item ids renamed?"
            )
    return found


def new_item_share(profile: SpanProfile, earlier: Sequence[SpanProfile]) -> float:
    """Share of the span's events on items that no `earlier` span holds."""
    known = pa.chunked_array([pq.read_table(span.items)["item_id"].combine_chunks() for span in earlier])
    items = pq.read_table(profile.items)
    new = items.filter(pc.invert(pc.is_in(items["item_id"], known)))
    return float(np.sum(new["count"].to_numpy()) / max(profile.events, 1))


def _measure(span: Span, files: Sequence[Path], items_path: Path) -> dict[str, object]:
    columns = [EventColumn.USER_ID, EventColumn.ITEM_ID, EventColumn.TIMESTAMP]
    parts = [pq.read_table(path, columns=columns) for path in files]
    texts = [pa.table([part[name].cast("string") for name in columns[:2]], columns[:2]) for part in parts]
    # A user is in one bucket only, so the busiest of each bucket are enough.
    busiest = max(_counts(text, EventColumn.USER_ID).to_numpy().max(initial=0) for text in texts)
    users = sum(len(_counts(text, EventColumn.USER_ID)) for text in texts)
    items = pa.concat_tables(texts).group_by(EventColumn.ITEM_ID).aggregate([([], "count_all")])
    items = items.rename_columns(["item_id", "count"]).sort_by("item_id")
    pq.write_table(items, items_path)
    times = np.concatenate([part[EventColumn.TIMESTAMP].to_numpy() for part in parts])
    return {
        "key": span.key,
        "events": len(times),
        "users": users,
        "max_user_share": float(busiest) / max(len(times), 1),
        "stray_share": _stray_share(span, times),
        "start": int(np.quantile(times, _EARLY, method="lower")),
    }


def _counts(table: pa.Table, column: str) -> pa.ChunkedArray:
    return table.group_by(column).aggregate([([], "count_all")])["count_all"]


def _stray_share(span: Span, times: np.ndarray) -> float:
    if span.day is None:
        return 0.0
    start = int(datetime.combine(span.day, time(), timezone.utc).timestamp() * 1e6)
    return float(np.mean((times < start - _DAY) | (times >= start + 2 * _DAY)))


def as_json(profile: SpanProfile) -> dict[str, object]:
    """The profile for a record, without the path."""
    return {name: value for name, value in asdict(profile).items() if name != "items"}
