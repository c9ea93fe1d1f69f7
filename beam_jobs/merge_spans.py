"""Merge: the ingested spans of a rolling window become one `Events` artifact, without reading the log again.

The newest span is the holdout. Some of its users serve for early stopping and the others for evaluating the model, so
that training can use all events up to the very start of the newest span.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_jobs.buckets.bucket_file import num_tied, write_bucket
from beam_jobs.common.arrays import Int8
from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_parquet
from beam_jobs.common.hashing import hash_strings
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.ingest_advice import warn_of_tied_times
from beam_jobs.grouping.merge_cooccurrences import LEARNT_SINCE, SPANS
from beam_jobs.grouping.span_cooccurrences import count_new_cooccurrences, identity_of
from contracts.artifact import Manifest, read_manifest, writing
from contracts.config import Config
from contracts.errors import TooFewEvents
from contracts.layout import Events, Workdir
from contracts.names import EventColumn, Split
from contracts.store_layout import SpanParts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HoldoutPlan:
    """Holds out events from `start` (microseconds): for a share `validation_users` of users as validation, else test.

    To catch up, the test users' events are trained on, and the validation users are divided into validation and test:
    no user whose events judged a model that had not seen them then judges one that has.
    """

    start: int
    validation_users: float
    catches_up: bool = False

    def assign(self, events: pa.Table) -> Int8:
        """[num_events] `Split` of ordered events."""
        users, times = one_array(events[EventColumn.USER_ID]), events[EventColumn.TIMESTAMP].to_numpy()
        # Buckets are cut by the hash's remainder; its upper half is independent of that.
        uniform = (hash_strings(users.dictionary) >> np.uint64(32)).astype(np.float64) / 2.0**32
        held_out = np.where(uniform < self.validation_users, int(Split.VALIDATION), int(Split.TEST))
        if self.catches_up:
            learnt_or_test = np.where(uniform < self.validation_users, int(Split.TEST), int(Split.TRAIN))
            held_out = np.where(uniform < self.validation_users / 2, int(Split.VALIDATION), learnt_or_test)
        return np.where(times >= self.start, held_out[users.indices.to_numpy()], int(Split.TRAIN)).astype(np.int8)


class MergeBucket(beam.DoFn):
    """Bucket number -> its Parquet file, merged from the spans' files of that bucket; yields its summary."""

    def __init__(self, spans: Sequence[Events], events: Events, num_buckets: int, plan: HoldoutPlan) -> None:
        self._spans = tuple(spans)
        self._events = events
        self._num_buckets = num_buckets
        self._plan = plan

    def process(self, bucket: int) -> Iterator[dict[str, Any]]:
        parts = [read_parquet(span.bucket(bucket, self._num_buckets)) for span in self._spans]
        # Spans may overlap: an event that two of them hold is one event.
        events = pa.concat_tables([part.drop_columns(EventColumn.SPLIT) for part in parts])
        merged, counts = write_bucket(self._events.bucket(bucket, self._num_buckets), events, self._plan)
        yield {"counts": counts, "tied": num_tied(merged)}


def run(
    config: Config,
    workdir: Workdir,
    fingerprint: str,
    spans: Sequence[SpanParts],
    holdout_start: int,
    catches_up: bool = False,
) -> Manifest:
    """Writes the `Events` artifact of a window of spans, and beside each new span the co-occurrence that it adds.

    The artifact's details say where to find statistics and co-occurrence without counting again: "counts" lists
    sources of `CountBucket`, `SPANS` names each span's co-occurrence.

    Args:
        spans: oldest first, all with the config's number of buckets.
        holdout_start: microseconds; the first moment of the holdout.
        catches_up: whether to train on the holdout, too, see `HoldoutPlan`. The spans' own counts do not include it, so
            statistics, and what co-occurs since its start, are then counted in the merged events.

    Raises:
        ArtifactError: a span is missing.
        TooFewEvents: no event lies before the holdout's start, or none of validation or of test users after it.
    """
    sources = [read_manifest(span.events.path) for span in spans]
    num_buckets = config.data.num_buckets
    with writing(workdir.events.path, Events.KIND, fingerprint) as writer:
        staged = Events(writer.path)
        plan = HoldoutPlan(holdout_start, config.retrain.validation_users, catches_up)
        merge = MergeBucket([span.events for span in spans], staged, num_buckets, plan)
        totals: Counter[str] = Counter()
        buckets = collect(config.beam, list(range(num_buckets)), beam.ParDo(merge), writer.path)
        for bucket in buckets:
            totals.update(bucket["counts"])
        empty = [split.name.lower() for split in Split if not totals[f"{split.name.lower()}_events"]]
        if empty:
            raise TooFewEvents(
                f"the window of {len(spans)} spans leaves no {' and no '.join(empty)} events: give it more spans "
                "(retrain.window_spans), change retrain.validation_users, or wait for the next span"
            )
        writer.counts.update(totals)
        warn_of_tied_times(config, totals, sum(bucket["tied"] for bucket in buckets))
        counted = count_new_cooccurrences(config, spans, holdout_start, writer.path)
        writer.details[SPANS] = _cooccurrences(spans, counted)
        writer.details[LEARNT_SINCE] = holdout_start if catches_up else None
        if not catches_up:
            # An event that two spans hold is one event: their counts do not add up.
            writer.details["counts"] = [] if totals["duplicates"] else _counts(spans, sources, holdout_start)
        writer.files = [staged.bucket(bucket, num_buckets).name for bucket in range(num_buckets)]
        log.info("merge: %s events of %d spans", f"{totals['events']:,}", len(spans))
    return read_manifest(workdir.events.path)


def _cooccurrences(spans: Sequence[SpanParts], counted: Sequence[Path]) -> list[dict[str, Any]]:
    """What `sources_of` reads: each span's co-occurrence, where the span starts, and the identity of the count."""
    starts = [read_manifest(span.profile).details["start"] for span in spans]
    return [
        {"cooccurrences": str(path), "start": start, "identity": identity_of(path)}
        for path, start in zip(counted, starts, strict=True)
    ]


def _counts(spans: Sequence[SpanParts], events: Sequence[Manifest], holdout_start: int) -> list[dict[str, Any]]:
    """Sources of `CountBucket`: the counts of spans that end before the holdout, and the files of those that do not."""
    found: list[dict[str, Any]] = []
    for span, manifest in zip(spans, events, strict=True):
        if manifest.details["last_event"] < holdout_start:
            found.append({"items": str(span.items), "users": str(span.users)})
        else:
            paths = [str(span.events.path / name) for name in manifest.files]
            found += [{"events": path, "before": holdout_start} for path in paths]
    return found
