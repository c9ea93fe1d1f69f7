"""Statistics of one ingest as TFX's statistics protos, which TensorFlow Data Validation and Facets show.

The events are one data set, and each feature table is another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import statistics_pb2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatistics as Statistics

from contracts.names import EventColumn
from contracts.storage import read_text, write_text

EVENTS = "events"
"""Name of the events' data set."""
LATE = 0.99
"""Share of events after which a log is nearly over: some clocks are always wrong, and put its end years ahead."""
_LATE = "late"
TOLD = "told"
"""Last part of the names of request features' histograms."""
MISSING, OTHER = "(missing)", "(other)"
"""Values of a histogram: rows without a value, and all values too rare to be listed."""


def dataset_statistics(name: str, rows: int, histograms: Mapping[str, Mapping[str, int]]) -> Statistics:
    """Builds a proto from histograms: feature name -> value -> count."""
    statistics = Statistics(name=name, num_examples=rows)
    for column, histogram in histograms.items():
        feature = statistics.features.add(name=column, type=statistics_pb2.FeatureNameStatistics.STRING)
        feature.string_stats.common_stats.num_non_missing = sum(histogram.values())
        present = [(value, count) for value, count in histogram.items() if count]
        feature.string_stats.unique = len(present)
        for rank, (value, count) in enumerate(sorted(present, key=lambda pair: (-pair[1], pair[0]))):
            feature.string_stats.rank_histogram.buckets.add(
                low_rank=rank, high_rank=rank, label=value, sample_count=count
            )
    return statistics


def event_statistics(
    events: int, histograms: Mapping[str, Mapping[str, int]], first: int, last: int, late: int, dead_letters: int
) -> Statistics:
    """Builds the proto of the log: `dataset_statistics`, plus the statistics of its timestamps.

    Args:
        events: valid events.
        histograms: feature name -> value -> count.
        first, last: microseconds of the earliest and the latest event.
        late: microseconds by which the share `LATE` of the events had happened.
        dead_letters: rows that were set aside.
    """
    statistics = dataset_statistics(EVENTS, events, histograms)
    times = statistics.features.add(name=EventColumn.TIMESTAMP, type=statistics_pb2.FeatureNameStatistics.INT)
    times.num_stats.min, times.num_stats.max = first, last
    times.custom_stats.add(name=_LATE, num=late)
    times.num_stats.common_stats.num_non_missing = events
    times.num_stats.common_stats.num_missing = dead_letters
    return statistics


def histograms_of(statistics: Statistics) -> dict[str, dict[str, float]]:
    """Feature name -> value -> share of the feature's values."""
    return {
        feature.name: {
            bucket.label: bucket.sample_count / feature.string_stats.common_stats.num_non_missing
            for bucket in feature.string_stats.rank_histogram.buckets
        }
        for feature in statistics.features
        if feature.HasField("string_stats")
    }


def last_event(statistics: Statistics) -> int | None:
    """Microseconds of the latest event; None for a feature table."""
    times = [int(feature.num_stats.max) for feature in statistics.features if feature.name == EventColumn.TIMESTAMP]
    return max(times, default=None)


def late_event(statistics: Statistics) -> int | None:
    """Microseconds by which the share `LATE` of the events had happened; None for a feature table."""
    times = [feature for feature in statistics.features if feature.name == EventColumn.TIMESTAMP]
    return next((int(each.num) for feature in times for each in feature.custom_stats if each.name == _LATE), None)


def write_statistics(statistics: Iterable[Statistics], path: Path) -> None:
    """Text form, as `tfdv.load_stats_text` reads it."""
    listed = statistics_pb2.DatasetFeatureStatisticsList(datasets=statistics)
    write_text(path, text_format.MessageToString(listed, as_utf8=True))


def read_statistics(path: Path) -> list[Statistics]:
    """Reads what `write_statistics` wrote.

    Raises:
        ValueError: the file is missing or does not hold statistics.
    """
    try:
        text = read_text(path)
        return list(text_format.Parse(text, statistics_pb2.DatasetFeatureStatisticsList()).datasets)
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path} cannot be read as statistics ({error}): run ingest again") from None
