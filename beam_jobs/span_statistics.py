"""Statistics of one ingest as TFX's statistics proto, which TensorFlow Data Validation and Facets show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import statistics_pb2
from tensorflow_metadata.proto.v0.statistics_pb2 import DatasetFeatureStatistics as Statistics

from contracts.artifact import write_text

TIMESTAMP = "timestamp"


def span_statistics(
    events: int, histograms: Mapping[str, Mapping[str, int]], first: int, last: int, dead_letters: int
) -> Statistics:
    """Builds the proto.

    Args:
        events: valid events.
        histograms: feature name -> value -> count.
        first, last: microseconds of the earliest and the latest event.
        dead_letters: rows that were set aside.
    """
    statistics = Statistics(name="events", num_examples=events)
    for name, histogram in histograms.items():
        feature = statistics.features.add(name=name, type=statistics_pb2.FeatureNameStatistics.STRING)
        feature.string_stats.common_stats.num_non_missing = sum(histogram.values())
        feature.string_stats.unique = len(histogram)
        for rank, (value, count) in enumerate(sorted(histogram.items(), key=lambda pair: (-pair[1], pair[0]))):
            feature.string_stats.rank_histogram.buckets.add(
                low_rank=rank, high_rank=rank, label=value, sample_count=count
            )
    times = statistics.features.add(name=TIMESTAMP, type=statistics_pb2.FeatureNameStatistics.INT)
    times.num_stats.min, times.num_stats.max = first, last
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


def last_event(statistics: Statistics) -> int:
    """Microseconds of the latest event."""
    return max(int(feature.num_stats.max) for feature in statistics.features if feature.name == TIMESTAMP)


def write_statistics(statistics: Statistics, path: Path) -> None:
    """Text form of a list of one, as `tfdv.load_stats_text` reads it."""
    listed = statistics_pb2.DatasetFeatureStatisticsList(datasets=[statistics])
    write_text(path, text_format.MessageToString(listed, as_utf8=True))


def read_statistics(path: Path) -> Statistics:
    """What `write_statistics` wrote.

    Raises:
        ValueError: the file is missing or is none.
    """
    try:
        text = path.read_text(encoding="utf-8")
        return text_format.Parse(text, statistics_pb2.DatasetFeatureStatisticsList()).datasets[0]
    except (OSError, UnicodeDecodeError, text_format.ParseError, IndexError) as error:
        raise ValueError(f"{path} holds no statistics ({error}): run ingest again, or unset data.previous") from None
