"""The last run's schema and statistics, which this run's log must agree with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from beam_jobs.event_log.span_schema import Schema, drift_anomalies, read_schema, schema_anomalies
from beam_jobs.event_log.span_statistics import EVENTS, Statistics, read_statistics
from contracts.artifact import current, read_manifest
from contracts.config import DataConfig
from contracts.errors import Differs
from contracts.layout import Events
from contracts.storage import as_path

log = logging.getLogger(__name__)

_ANEW = "set data.previous=null for one run (dnc retrain: retrain.span.schema_of_last=false)"


@dataclass(frozen=True)
class PreviousSpan:
    """The contents of `data.previous`, which `dnc retrain` sets to the previous span."""

    path: str
    schema: Schema
    statistics: Sequence[Statistics]

    @classmethod
    def read(cls, path: str | None) -> PreviousSpan | None:
        """Reads an events artifact, if one is named.

        Raises:
            ValueError: it is not an events artifact, or is damaged.
        """
        if path is None:
            return None
        events = Events(current(as_path(path)))
        try:
            read_manifest(events.path, Events.KIND)
            return cls(path, read_schema(events.schema), read_statistics(events.statistics))
        except ValueError as error:
            raise ValueError(f"data.previous: {error}; or {_ANEW}") from None

    def checked_schema(self, statistics: Sequence[Statistics], data: DataConfig) -> Schema:
        """Checks the data, and returns the schema to carry on.

        Raises:
            Differs: the data break it, or differ too much from the last span's.
        """
        anomalies = schema_anomalies(self.schema, statistics)
        if anomalies:
            raise Differs(
                f"the data break the schema {Events(current(as_path(self.path))).schema}: {'; '.join(anomalies)}. "
                f"Fix the data; or, if they are correct, edit the schema, or {_ANEW}"
            )
        self.require_no_drift(statistics, data)
        return self.schema

    def require_no_drift(self, statistics: Sequence[Statistics], data: DataConfig) -> None:
        """Compares each data set with the last span's data set of the same name; warns of a table that has lost rows.

        Raises:
            Differs: they differ too much.
        """
        before = {dataset.name: dataset for dataset in self.statistics}
        for table in statistics:
            rows = before[table.name].num_examples if table.name in before and table.name != EVENTS else 0
            if table.num_examples < (1 - data.max_drift) * rows:
                log.warning(
                    "data.%s: %s rows, after %s in the last span; was the table delivered whole?",
                    table.name, f"{table.num_examples:,}", f"{rows:,}",
                )  # fmt: skip
        drift = [
            anomaly
            for dataset in statistics
            if dataset.name in before
            for anomaly in drift_anomalies(dataset, before[dataset.name], data.max_drift, data.min_volume)
        ]
        if drift:
            raise Differs(
                f"the data differ from data.previous={self.path}: {'; '.join(drift)}. Fix the data; or, if they "
                f"are correct, raise data.max_drift={data.max_drift}, lower data.min_volume={data.min_volume}, or "
                f"{_ANEW}"
            )
