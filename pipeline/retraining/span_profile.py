"""The profile of one ingested span, measured once, and whether a model may be trained on the span."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, time, timezone
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from contracts.config import Config, DataConfig, SpanLimits
from contracts.config.data import LIMITS_OF_DATA
from contracts.layout import Workdir
from contracts.names import EventColumn, ItemColumn
from contracts.store_layout import SpanParts, Store
from pipeline.retraining.spans import Span

log = logging.getLogger(__name__)

_DAY = 86_400 * 1_000_000
LEAST_EARLIER = 3
"""Earlier spans needed to say what is usual. On the drifting log's second day, 30% of the events are on items that the
first day lacks; with three earlier days, 15 to 23%. With one alone, a healthy log's second day might be refused."""
_EARLY = 0.01
"""A span begins once this share of its events has happened, so that a few late ones do not move its start."""


@dataclass(frozen=True)
class SpanProfile:
    """Numbers of one span.

    Attributes:
        max_user_share: share of the events that are the busiest user's.
        stray_share: share of a dated span's events that lie more than a day outside its date.
        start: microseconds; the moment by which 1% of the events had happened.
        items: Parquet file, see `SpanParts.items`.
        first, last: microseconds of the span's earliest and latest event.
    """

    key: str
    events: int
    users: int
    max_user_share: float
    stray_share: float
    start: int
    items: str
    first: int
    last: int


def profile_span(config: Config, span: Span, parts: SpanParts, before: SpanParts | None = None) -> SpanProfile:
    """Ingests, measures and counts the span into `parts`, or reads what an earlier run left there.

    Args:
        before: the previous span: when this one arrives, that schema is carried on, and drift from it is refused.

    Raises:
        ValueError: the span cannot be ingested (a column is missing, rows are malformed, there are none), or it
            breaks the schema.
    """
    from beam_jobs import ingest

    own, wanted = Config(data=_data_of(config, span), beam=config.beam), _fingerprint(config, span)
    found = artifact.find_current(parts.events.path, wanted)
    if found is None:
        # `before` is not in the fingerprint: which span comes first changes nothing in what is written.
        found = ingest.run(_compared(own, before), Workdir(parts.path), wanted, is_span=True)
    profile = artifact.find_current(parts.profile, wanted)
    if profile is None:
        files = [parts.events.path / name for name in found.files]
        counted = _count(files, config.data.feedback.target_level_index)
        with artifact.writing(parts.profile, SpanParts.PROFILE_KIND, wanted) as writer:
            for counts, path in ((counted.items, parts.items), (counted.users, parts.users)):
                pq.write_table(counts, writer.path / path.name)
                writer.files.append(path.name)
            writer.details = _measure(span, counted)
        profile = artifact.read_manifest(parts.profile)
    return SpanProfile(items=str(parts.items), **profile.details)


def starts(profiles: Sequence[SpanProfile]) -> list[int]:
    """Microseconds at which each span begins, oldest first: with its first event after all those of earlier spans.

    If that comes after 1% of the events had happened, the first of them are late ones, or an earlier span holds events
    of this one's time, and it begins with `SpanProfile.start`. A run that holds a span out knows what came before it.
    Were that the first 1% of each day, new items that all come at midnight would be known to it, but hardly.
    """
    found = []
    for place, profile in enumerate(profiles):
        after = max((earlier.last for earlier in profiles[:place]), default=profile.start) + 1
        found.append(max(profile.first, min(profile.start, after)))
    return found


def forget_damaged(parts: SpanParts) -> None:
    """Forgets those artifacts of a span that have a missing or truncated file: the log still has the events."""
    for path in (parts.events.path, parts.profile, parts.cooccurrences):
        manifest = artifact.find_manifest(path)
        for name in manifest.files if manifest else ():
            try:
                pq.read_metadata(path / name)  # it is at the end of the file
            except (OSError, pa.ArrowException) as error:
                log.warning("%s cannot be read (%s): %s is rebuilt from the log", path / name, error, path)
                artifact.forget(path)
                break


def require_tables_like_the_last(config: Config, window: Sequence[Span], store: Store) -> None:
    """Compares today's feature tables with those of the newest ingested span, before spans are ingested anew.

    New code ingests all spans of the window anew, each with today's tables: if spans were only compared with each
    other, as they are on arrival, these would never differ.

    Raises:
        ValueError: the tables differ too much.
    """
    from beam_jobs.event_log.previous_span import PreviousSpan
    from beam_jobs.features.feature_statistics import feature_statistics

    ingested = [span for span in window if artifact.find_manifest(store.span(span.key).events.path)]
    if all(artifact.find_current(store.span(span.key).events.path, _fingerprint(config, span)) for span in ingested):
        return
    last = PreviousSpan.read(str(store.span(ingested[-1].key).events.path))
    if last is not None:
        last.require_no_drift(list(feature_statistics(config.data)), config.data)


def _data_of(config: Config, span: Span) -> DataConfig:
    return config.data.model_copy(update={"events": tuple(span.files)})


def _fingerprint(config: Config, span: Span) -> str:
    """Fingerprint of what is ingested of the span."""
    data = _data_of(config, span).model_dump(mode="json", exclude=set(LIMITS_OF_DATA))
    return artifact.fingerprint(artifact.code_of("contracts", "beam_jobs"), data, span.identity())


def _compared(config: Config, before: SpanParts | None) -> Config:
    if before is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"previous": str(before.events.path)})})


class EarlierSpans:
    """What is usual in a window, built span by span: a span's items are not read again for later spans."""

    def __init__(self, profiles: Iterable[SpanProfile] = ()) -> None:
        self.events: list[int] = []
        self._keys: dict[tuple[int, int, int], str] = {}
        self._known = pa.array([], pa.string())
        for profile in profiles:
            self.add(profile)

    def add(self, profile: SpanProfile) -> None:
        self.events.append(profile.events)
        self._keys[_extent(profile)] = profile.key
        new = self._new_items(profile)[ItemColumn.ITEM_ID].combine_chunks()
        self._known = pa.concat_arrays([self._known, new.cast(pa.string())])

    def same_as(self, profile: SpanProfile) -> str | None:
        """Key of an earlier span with the same number of events and users and the same start."""
        return self._keys.get(_extent(profile))

    def new_item_share(self, profile: SpanProfile) -> float:
        """Share of the span's events on items that no earlier span holds."""
        new = self._new_items(profile)[ItemColumn.TOTAL_COUNT].to_numpy()
        return float(np.sum(new) / max(profile.events, 1))

    def _new_items(self, profile: SpanProfile) -> pa.Table:
        items = pq.read_table(profile.items, columns=[ItemColumn.ITEM_ID, ItemColumn.TOTAL_COUNT])
        return items.filter(pc.invert(pc.is_in(items[ItemColumn.ITEM_ID], self._known)))


def _extent(profile: SpanProfile) -> tuple[int, int, int]:
    return profile.events, profile.users, profile.start


def refusals(profile: SpanProfile, earlier: EarlierSpans, limits: SpanLimits) -> list[str]:
    """Why the span is not fit to train on, in words; empty if it is."""
    found = []
    if profile.events < limits.min_events:
        found.append(f"{profile.events:,} events, fewer than retrain.span.min_events={limits.min_events:,}")
    if (same := earlier.same_as(profile)) is not None:
        found.append(
            f"it has as many events and users as span {same}, and starts at the same moment: that span's file may "
            "have been delivered again under this name"
        )
    if profile.max_user_share > limits.max_user_share:
        found.append(
            f"one user has {profile.max_user_share:.1%} of the events, more than "
            f"retrain.span.max_user_share={limits.max_user_share}: possibly a bot or a wrong user id, or the limit is "
            f"too low for the {profile.users:,} users of this span"
        )
    if profile.stray_share > limits.max_stray_share:
        found.append(
            f"{profile.stray_share:.0%} of the events lie more than a day outside the date, more than "
            f"retrain.span.max_stray_share={limits.max_stray_share}: possibly a clock that jumped or a wrong unit of "
            "time"
        )
    if len(earlier.events) >= LEAST_EARLIER:
        usual = float(np.median(earlier.events))
        ratio = max(profile.events, 1) / usual
        if not 1 / limits.max_volume_ratio <= ratio <= limits.max_volume_ratio:
            found.append(
                f"{profile.events:,} events instead of the usual {usual:,.0f}, off by more than a factor of "
                f"retrain.span.max_volume_ratio={limits.max_volume_ratio}"
            )
        share = earlier.new_item_share(profile)
        if share > limits.max_new_item_share:
            found.append(
                f"{share:.0%} of the events are on items that are new to the window, more than "
                f"retrain.span.max_new_item_share={limits.max_new_item_share}: possibly item ids were renamed, or "
                "the limit is too low for items as short-lived as these"
            )
    return found


def unchecked(key: str, num_earlier: int, window_spans: int) -> list[str]:
    """A note if a span was not compared with what is usual, as too few spans of the window precede it."""
    if num_earlier >= LEAST_EARLIER:
        return []
    wider = f"; to check them, set retrain.window_spans to {LEAST_EARLIER + 1} or more"
    remedy = wider if window_spans <= LEAST_EARLIER else ""
    return [
        f"retrain.span.max_volume_ratio and retrain.span.max_new_item_share were not checked for span {key}: they need "
        f"{LEAST_EARLIER} other usable spans in the window, which has {num_earlier}{remedy}"
    ]


@dataclass(frozen=True)
class _Counted:
    """A span's counts of items and of users, [num_events] times, and the busiest user's number of events."""

    items: pa.Table
    users: pa.Table
    times: npt.NDArray[np.int64]
    busiest: int


def _count(files: Iterable[Path], target_level: int) -> _Counted:
    """Counts one bucket at a time, keeping no more of a span's events than their times."""
    from beam_jobs.statistics_steps import count_events, sum_items

    items, users, times, busiest = [], [], [], 0
    for path in files:
        events = pq.read_table(path, use_threads=False)
        of_items, of_users = count_events(events, events[EventColumn.FEEDBACK_LEVEL].to_numpy() >= target_level)
        items.append(of_items)
        users.append(of_users)
        times.append(events[EventColumn.TIMESTAMP].to_numpy())
        per_user = events[EventColumn.USER_ID].value_counts().field("counts")
        busiest = max(busiest, pc.max(per_user).as_py() or 0)
    return _Counted(sum_items(pa.concat_tables(items)), pa.concat_tables(users), np.concatenate(times), busiest)


def _measure(span: Span, counted: _Counted) -> dict[str, object]:
    num_events = len(counted.times)
    return {
        "key": span.key,
        "events": num_events,
        "users": counted.users.num_rows,
        "max_user_share": counted.busiest / max(num_events, 1),
        "stray_share": _stray_share(span, counted.times),
        "start": int(np.quantile(counted.times, _EARLY, method="lower")),
        "first": int(counted.times.min()),
        "last": int(counted.times.max()),
    }


def _stray_share(span: Span, times: np.ndarray) -> float:
    if span.day is None:
        return 0.0
    start = int(datetime.combine(span.day, time(), timezone.utc).timestamp() * 1e6)
    return float(np.mean((times < start - _DAY) | (times >= start + 2 * _DAY)))


def as_json(profile: SpanProfile) -> dict[str, object]:
    """The profile for a record, without the path."""
    return {name: value for name, value in asdict(profile).items() if name != "items"}
