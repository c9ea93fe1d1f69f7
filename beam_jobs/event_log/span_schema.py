"""The schema of the log and the feature tables, inferred by the first run and enforced by runs that name it.

It is TFX's schema proto in text form, so it can be read, edited and reviewed like code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_metadata.proto.v0.schema_pb2 import Schema

from beam_jobs.event_log.id_shapes import SHAPE, are_random
from beam_jobs.event_log.span_statistics import LATE, OTHER, TOLD, Statistics, histograms_of, last_event, late_event
from beam_jobs.event_log.timestamps import as_text
from contracts.storage import read_text, write_text

_LEAST_DOMAIN_MASS = 0.95
"""Share of a feature's values that must be in its domain, in an inferred schema that nobody has edited."""


def infer_schema(statistics: Sequence[Statistics]) -> Schema:
    """Infers that every feature must be present, with the values that occur as its domain unless too many to list.

    A table without rows sets no requirements: neither that the next one has values, nor which.
    Request features are left out, since the config lists their values, including those that no request has sent yet.
    Shapes of random ids form no domain, however few there are: a false alarm would stop a daily run, and
    `drift_anomalies` notices if most of them change.
    """
    schema = Schema()
    for name, shares in _histograms(statistics).items():
        feature = schema.feature.add(name=name, type=schema_pb2.BYTES)
        if not shares:
            continue
        feature.presence.min_count = 1
        if OTHER not in shares and not (name.endswith(f".{SHAPE}") and are_random(shares)):
            feature.distribution_constraints.min_domain_mass = _LEAST_DOMAIN_MASS
            feature.string_domain.value.extend(sorted(shares))
    return schema


def _histograms(statistics: Sequence[Statistics]) -> dict[str, dict[str, float]]:
    """The histograms of all features that a schema covers."""
    of_all = (histogram for dataset in statistics for histogram in histograms_of(dataset).items())
    return {name: shares for name, shares in of_all if not name.endswith(f".{TOLD}")}


def schema_anomalies(schema: Schema, statistics: Sequence[Statistics]) -> list[str]:
    """Each way in which the data break the schema, in words."""
    found = _histograms(statistics)
    anomalies = []
    for feature in schema.feature:
        shares = found.get(feature.name)
        if not shares:
            if feature.presence.min_count:
                anomalies.append(f"{feature.name} is absent")
            continue
        if not feature.HasField("string_domain"):
            continue
        strange = {value: share for value, share in shares.items() if value not in feature.string_domain.value}
        if 1 - sum(strange.values()) < feature.distribution_constraints.min_domain_mass - 1e-9:
            shown = ", ".join(f"{value!r} {share:.1%}" for value, share in _largest(strange))
            anomalies.append(f"{feature.name}: {sum(strange.values()):.1%} of values are not in its domain ({shown})")
    unknown = found.keys() - {feature.name for feature in schema.feature}
    return anomalies + [f"{name} is not in the schema" for name in sorted(unknown)]


def drift_anomalies(now: Statistics, before: Statistics, max_drift: float, min_volume: float) -> list[str]:
    """Each way in which a data set differs too much from the last span's, in words.

    Args:
        now: of this span.
        before: of the last one.
        max_drift: greatest L-infinity distance between the shares of any value.
        min_volume: least number of events or rows as a share of the last span's.
    """
    anomalies = []
    earlier = histograms_of(before)
    for name, shares in histograms_of(now).items():
        old = earlier.get(name, {})
        change = {value: abs(shares.get(value, 0.0) - old.get(value, 0.0)) for value in shares.keys() | old.keys()}
        value, distance = _largest(change)[0] if change else ("", 0.0)
        if old and distance > max_drift:
            anomalies.append(
                f"{name}: the share of {value!r} went from {old.get(value, 0.0):.1%} to {shares.get(value, 0.0):.1%}"
            )
    if now.num_examples < min_volume * before.num_examples:
        anomalies.append(f"{now.name}: {now.num_examples:,}, after {before.num_examples:,} in the last span")
    last, late_before = last_event(now), late_event(before)
    if last is not None and late_before is not None and last < late_before:
        anomalies.append(
            f"timestamp: the last event is at {as_text(last)}, but by {as_text(late_before)} {LATE:.0%} of the last "
            "span's had happened: check that this is not an old log"
        )
    return anomalies


def _largest(shares: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))[:3]


def write_schema(schema: Schema, path: Path) -> None:
    """Text form, as `tfdv.load_schema_text` reads it."""
    write_text(path, text_format.MessageToString(schema, as_utf8=True))


def read_schema(path: Path) -> Schema:
    """Reads what `write_schema` wrote, perhaps edited since.

    Raises:
        ValueError: the file is missing or is not a schema.
    """
    try:
        return text_format.Parse(read_text(path), Schema())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path} cannot be read as a schema ({error}): fix it") from None
