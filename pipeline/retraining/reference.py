"""The reference that the gate compares a candidate with, and what it has already learnt of the holdout's events."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from contracts.artifact import find_manifest, read_manifest
from contracts.config import Config
from contracts.names import EventColumn
from contracts.store_layout import Store
from pipeline.retraining.plan import Plan
from pipeline.retraining.records import Record, read_record
from pipeline.stages import exported_servable

_FEW_KNOWN = 0.01
"""Share of the holdout's events that the reference may have learnt: every log has a few late events."""


def served_version(config: Config, store: Store, plan: Plan) -> Path | None:
    """The version that the candidate would replace; None before there is one."""
    return None if plan.parent is None else store.servable(config.serving.model_name) / str(plan.parent)


def compared_version(config: Config, store: Store, plan: Plan) -> tuple[Path | None, str]:
    """The servable that the gate compares the candidate with, and its name; before anything is served, popularity.

    This is the served version or, if catching up has shown it the events that judge now, its model from before that.
    The same holds for versions from `dnc index`: that model lacks newer items, but nothing was trained on these.
    """
    record = _caught_up(store, plan)
    if record is not None and (knows_holdout(store, plan) or _reaches_into_holdout(store, plan, record)):
        workdir = store.run(record.run_id)
        if find_manifest(workdir.export):
            return exported_servable(workdir), f"version {record.version} as it was judged"
    served = served_version(config, store, plan)
    return served, "popularity" if served is None else f"version {plan.parent}"


def knows_holdout(store: Store, plan: Plan) -> bool:
    """Whether the served version has caught up with the very span that is the holdout, e.g. if that was mended."""
    record = _caught_up(store, plan)
    return record is not None and record.spans[-1]["key"] == plan.spans[-1]


def _caught_up(store: Store, plan: Plan) -> Record | None:
    """The record of the run whose weights are served, directly or through `dnc index`, if it has caught up."""
    record = read_record(store, plan.parent_run) if plan.parent_run else None
    return record if record is not None and record.catch_up.get("is_pushed") else None


def _reaches_into_holdout(store: Store, plan: Plan, record: Record) -> bool:
    """Whether more than a few events of the holdout came with the span that the served version has caught up with.

    This happens if spans are by arrival and many events are late: the holdout begins when its span's events do.
    """
    last = record.spans[-1]["key"]
    if last not in plan.spans:  # it is not in the window, so it judges nothing
        return False
    of_last, of_holdout = (_events_since(store, key, plan.holdout_start) for key in (last, plan.spans[-1]))
    return of_last > _FEW_KNOWN * (of_last + of_holdout)


def _events_since(store: Store, key: str, start: int) -> int:
    path = store.span(key).events.path
    files = (path / name for name in read_manifest(path).files)
    times = (pq.read_table(file, columns=[EventColumn.TIMESTAMP])[EventColumn.TIMESTAMP] for file in files)
    return sum(int(np.count_nonzero(column.to_numpy() >= start)) for column in times)
