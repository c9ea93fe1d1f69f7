"""Ingest: validates an event log into columnar buckets of users, malformed rows set aside with reasons."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from statistics import median_low
from typing import Any

import apache_beam as beam

from beam_jobs.common.beam_run import collect
from beam_jobs.event_log.dead_letter_remedies import remedy
from beam_jobs.event_log.event_files import find_event_files
from beam_jobs.event_log.id_shapes import SHAPE, merge_shapes
from beam_jobs.event_log.ingest_advice import (
    say_what_counts,
    warn_of_a_busy_user,
    warn_of_lists_of_ids,
    warn_of_nothing_held_out,
    warn_of_odd_ids,
    warn_of_order_by_item,
    warn_of_tied_times,
    warn_of_unlikely_times,
    warn_of_unlisted_values,
)
from beam_jobs.event_log.previous_span import PreviousSpan
from beam_jobs.event_log.span_schema import infer_schema, write_schema
from beam_jobs.event_log.span_statistics import OTHER, TOLD, Statistics, event_statistics, write_statistics
from beam_jobs.event_log.timestamps import as_text, parse_time
from beam_jobs.features.feature_statistics import feature_statistics
from beam_jobs.ingest_steps import (
    ReadEvents,
    SplitPlan,
    TargetSeconds,
    WriteBucket,
    empty_payload,
    merge_seconds,
    merge_told,
    quantiles_of,
)
from contracts.artifact import Manifest, read_manifest, writing
from contracts.config import Config
from contracts.layout import Events, Workdir
from contracts.names import EventColumn, Split

log = logging.getLogger(__name__)

VALIDATION_QUANTILE, TEST_QUANTILE = 0.8, 0.9
_SHOWN_EXAMPLES = 3


class ValidateAndBucket(beam.PTransform):
    """(number, path) -> one Parquet file per bucket and the dead letters; yields summaries of files and buckets."""

    def __init__(self, config: Config, events: Events, plan: SplitPlan) -> None:
        super().__init__()
        self._config = config
        self._events = events
        self._plan = plan

    def expand(self, files: beam.PCollection) -> beam.PCollection:
        num_buckets = self._config.data.num_buckets
        read = files | "Read" >> beam.ParDo(ReadEvents(self._config.data, self._events)).with_outputs(
            ReadEvents.SUMMARIES, main="events"
        )
        # Every bucket gets a file, even one without users, so that readers need not ask which exist.
        seeds = files.pipeline | "EveryBucket" >> beam.Create(
            [(bucket, empty_payload()) for bucket in range(num_buckets)]
        )
        buckets = (
            (read.events, seeds)
            | "WithEmpty" >> beam.Flatten()
            | "ByBucket" >> beam.GroupByKey()
            | "WriteBuckets" >> beam.ParDo(WriteBucket(self._events, num_buckets, self._plan))
        )
        return (read[ReadEvents.SUMMARIES], buckets) | "AllSummaries" >> beam.Flatten()


class CountTargetSeconds(beam.PTransform):
    """Paths -> the seconds at which validation and test begin: quantiles of the target-level events' times.

    They are one list; beside it, {"error": why} for each file that cannot be read.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config

    def expand(self, paths: beam.PCollection) -> beam.PCollection:
        target_seconds = beam.ParDo(TargetSeconds(self._config.data))
        read = paths | "ReadTimes" >> target_seconds.with_outputs(TargetSeconds.ERRORS, main="seconds")
        quantiles = (
            read.seconds
            | "MergeTimes" >> beam.CombineGlobally(merge_seconds)
            | "AtQuantiles" >> beam.Map(quantiles_of, (VALIDATION_QUANTILE, TEST_QUANTILE))
        )
        return (quantiles, read[TargetSeconds.ERRORS]) | "WithErrors" >> beam.Flatten()


def run(config: Config, workdir: Workdir, fingerprint: str, is_span: bool = False) -> Manifest:
    """Writes the `Events` artifact.

    Args:
        is_span: whether the log is a span of a rolling window. What is held out, and whether events have an order, is
            then decided for the window (`merge_spans`): all that a user bought on one day may be one basket.

    Raises:
        ValueError: a file or a feature table is missing, damaged or lacks a column; no row is valid; more rows than
            `data.max_dead_letter_fraction` are malformed; log or tables break the schema of `data.previous` or drift
            from it; or a split by time leaves a part without events.
    """
    paths = find_event_files(config.data)
    previous = PreviousSpan.read(config.data.previous)
    of_tables = list(feature_statistics(config.data))  # before the log, since this takes only a moment
    # A window's spans are ingested one by one: this says which of them the warnings below are about.
    log.info("ingest: %s", paths[0] if len(paths) == 1 else f"{len(paths):,} files, {paths[0]} to {paths[-1]}")
    with writing(workdir.events.path, Events.KIND, fingerprint) as writer:
        plan = _split_plan(config, paths, writer.path)
        staged = Events(writer.path)
        files_of_log = list(enumerate(paths))
        summaries = collect(config.beam, files_of_log, ValidateAndBucket(config, staged, plan), writer.path)
        files = [summary for summary in summaries if summary["kind"] == "file"]
        buckets = [summary for summary in summaries if summary["kind"] == "bucket"]
        reasons = _check_files(files, config)
        writer.counts.update(_counts(files, buckets))
        shapes, levels, times = _id_shapes(buckets), _level_counts(config, buckets), _time_range(buckets)
        _require_targets(config, paths, levels)
        warn_of_odd_ids(shapes)
        warn_of_lists_of_ids(shapes[f"{EventColumn.ITEM_ID}.{SHAPE}"])
        told = {
            feature.name: merge_told([file["told"][feature.name] for file in files if file["told"]])
            for feature in config.data.request_features
        }
        warn_of_unlisted_values(writer.counts, told)
        values_told = {f"{name}.{TOLD}": counts for name, (counts, _) in told.items()}
        histograms = {**shapes, EventColumn.FEEDBACK_LEVEL: levels, **values_told}
        statistics = [_statistics(writer.counts, histograms, buckets, **times), *of_tables]
        schema = infer_schema(statistics) if previous is None else previous.checked_schema(statistics, config.data)
        write_statistics(statistics, staged.statistics)
        write_schema(schema, staged.schema)
        _check_times(plan, writer.counts, **times)
        warn_of_unlikely_times(config, writer.counts, sum(bucket["unlikely"] for bucket in buckets), **times)
        if not is_span:
            warn_of_nothing_held_out(config, writer.counts)
            warn_of_tied_times(config, writer.counts, sum(bucket["tied"] for bucket in buckets))
            warn_of_order_by_item([bucket["steps"] for bucket in buckets])
        warn_of_a_busy_user(config, writer.counts, [tuple(bucket["busiest"]) for bucket in buckets])
        writer.details.update(
            levels=levels,
            unlisted_request_values={name: counts[OTHER] for name, (counts, _) in told.items()},
            dead_letter_reasons=dict(sorted(reasons.items())),
            **times,
            sources=paths,
            split={"protocol": config.split.protocol, **plan.describe()},
        )
        writer.files = [
            staged.bucket(bucket, config.data.num_buckets).name for bucket in range(config.data.num_buckets)
        ]
        log.info("ingest: %s events of %s users", f"{writer.counts['events']:,}", f"{writer.counts['users']:,}")
        say_what_counts(config, levels)
    return read_manifest(workdir.events.path)


def _split_plan(config: Config, paths: list[str], scratch: Path) -> SplitPlan:
    split = config.split
    target_level = config.data.feedback.target_level_index
    if split.protocol == "leave_one_out":
        return SplitPlan(target_level, split.min_user_events)
    texts = {"validation_start": split.validation_start, "test_start": split.test_start}
    # Before the log is read, which may take a long time.
    given = {name: parse_time(text, f"split.{name}") for name, text in texts.items() if text is not None}
    quantiles: dict[str, int] = {}
    if len(given) < len(texts):
        found = collect(config.beam, paths, CountTargetSeconds(config), scratch)
        _require_readable([one for one in found if isinstance(one, dict)])
        [seconds] = found
        if not seconds:  # what is wrong with the rows is known once all are read
            return SplitPlan(target_level, split.min_user_events, 0, 0)
        quantiles = {name: second * 1_000_000 for name, second in zip(texts, seconds, strict=True)}
    validation_start, test_start = ({**quantiles, **given}[name] for name in texts)
    if validation_start > test_start:
        shares = {"validation_start": VALIDATION_QUANTILE, "test_start": TEST_QUANTILE}
        said = {
            name: f"{as_text(start)}{'' if name in given else f' (the {shares[name]:.0%} quantile of time)'}"
            for name, start in zip(texts, (validation_start, test_start), strict=True)
        }
        raise ValueError(
            f"split.validation_start={said['validation_start']} is after split.test_start={said['test_start']}: set "
            "both, with validation_start the earlier one"
        )
    return SplitPlan(target_level, split.min_user_events, validation_start, test_start)


def _require_readable(files: list[dict[str, Any]]) -> None:
    if broken := [file["error"] for file in files if file["error"]]:
        raise ValueError("data.events: " + "; ".join(sorted(broken)))


def _check_files(files: list[dict[str, Any]], config: Config) -> Counter[str]:
    """Dead letters per reason; raises if the log as a whole cannot be used."""
    _require_readable(files)
    reasons: Counter[str] = Counter()
    for file in files:
        reasons.update(file["reasons"])
    rows, dead = sum(file["rows"] for file in files), sum(reasons.values())
    listing = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.most_common())
    cure = remedy(reasons, config.data, len(files), [example for file in files for example in file["examples"]])
    if dead == rows:
        sources = ", ".join(sorted(file["source"] for file in files)[:3])
        raise ValueError(
            f"data.events: no valid row among the {rows:,} in {sources}"
            + (f" ({listing}; {_examples(files)})" if rows else " (there are only headers, if anything)")
            + f": {cure or 'check data.columns, data.feedback and data.timestamp_unit'}"
        )
    said, advice = f"{dead:,} of {rows:,} ({dead / rows:.1%})", cure and f"; {cure}"
    limit = config.data.max_dead_letter_fraction
    if dead > limit * rows:
        raise ValueError(
            f"data.events: malformed rows: {said}, more than data.max_dead_letter_fraction={limit}: {listing}. "
            f"{_examples(files)}. Fix the log or the column names, or raise that limit{advice}"
        )
    if dead:
        log.warning("ingest: malformed rows set aside: %s: %s. %s%s", said, listing, _examples(files, 1), advice)
    return reasons


def _id_shapes(buckets: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """Feature -> shape -> how many ids have it, see `id_shapes`."""
    return {
        f"{name}.{SHAPE}": merge_shapes([bucket["shapes"][name] for bucket in buckets])
        for name in (EventColumn.USER_ID, EventColumn.ITEM_ID)
    }


def _statistics(
    counts: dict[str, int],
    histograms: dict[str, dict[str, int]],
    buckets: list[dict[str, Any]],
    first_event: int,
    last_event: int,
) -> Statistics:
    # Buckets hold random users, so the middle bucket's moment is about that of the whole log.
    late = median_low(bucket["late"] for bucket in buckets if bucket["late"] is not None)
    return event_statistics(counts["events"], histograms, first_event, last_event, late, counts["dead_letters"])


def _level_counts(config: Config, buckets: list[dict[str, Any]]) -> dict[str, int]:
    of_level: Counter[str] = Counter()
    for bucket in buckets:
        of_level.update(dict(zip(config.data.feedback.levels, bucket["levels"], strict=False)))
    return dict(of_level)


def _require_targets(config: Config, paths: list[str], levels: dict[str, int]) -> None:
    """Raises ValueError if a split by time has nothing to go by."""
    names, target = config.data.feedback.levels, config.data.feedback.target_level_index
    if config.split.protocol == "time" and not any(levels.get(name) for name in names[target:]):
        raise ValueError(
            f"no event in {', '.join(paths[:3])} reaches the level {names[target]!r}: check data.feedback, or lower "
            "data.feedback.target_level"
        )


def _time_range(buckets: list[dict[str, Any]]) -> dict[str, int]:
    """Microseconds of the first and the last event."""
    return {
        "first_event": min(bucket["first"] for bucket in buckets if bucket["first"] is not None),
        "last_event": max(bucket["last"] for bucket in buckets if bucket["last"] is not None),
    }


def _check_times(plan: SplitPlan, counts: dict[str, int], first_event: int, last_event: int) -> None:
    """Refuses a split by time that leaves one of its parts without events."""
    if plan.validation_start is None or plan.test_start is None:
        return
    times = (first_event, last_event, plan.validation_start, plan.test_start)
    first, last, validation_start, test_start = map(as_text, times)
    if first_event == last_event:
        raise ValueError(
            f"all events have the time {first}, so split.protocol=time has nothing to hold out: set split.protocol="
            "leave_one_out, or check the time column"
        )
    if not counts["train_events"]:
        raise ValueError(
            f"split.validation_start={validation_start} leaves no event to train on: the "
            f"log runs from {first} to {last}; set a later one, or split.protocol=leave_one_out"
        )
    if not counts["test_events"]:
        raise ValueError(
            f"split.test_start={test_start} leaves no test event: the log runs from {first} to {last}; set an earlier "
            "one, or split.protocol=leave_one_out"
        )
    if not counts["validation_events"]:
        raise ValueError(
            f"no event is between split.validation_start={validation_start} and split.test_start={test_start}, so none "
            f"is left for validation: the log runs from {first} to {last}; set an earlier validation_start or a later "
            "test_start, or split.protocol=leave_one_out"
        )


def _examples(files: list[dict[str, Any]], most: int = _SHOWN_EXAMPLES) -> str:
    examples = [example for file in sorted(files, key=lambda file: file["source"]) for example in file["examples"]]
    return "e.g. " + "; ".join(examples[:most])


def _counts(files: list[dict[str, Any]], buckets: list[dict[str, Any]]) -> dict[str, int]:
    totals: Counter[str] = Counter()
    for bucket in buckets:
        totals.update(bucket["counts"])
    names = ["events", "users", "duplicates", *(f"{split.name.lower()}_events" for split in Split)]
    dead = sum(sum(file["reasons"].values()) for file in files)
    return {"rows": sum(file["rows"] for file in files), "dead_letters": dead, **{name: totals[name] for name in names}}


if __name__ == "__main__":
    from beam_jobs.common.command import main

    main("beam_jobs.ingest")
