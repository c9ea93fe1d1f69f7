"""How models differ from one of them on the same users: relative changes with paired bootstrap intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contracts.storage import write_whole
from trainer.evaluation.metrics import bootstrap_changes

PerUser = dict[str, dict[str, np.ndarray]]
"""Merge -> metric -> float [num_users]."""

Lists = tuple[str, str, str]
"""Data set, model and merge."""

Change = dict[str, float]
"""{"value", "low", "high"}."""

_SEPARATOR = "/"
CONFIDENCE = 0.95
_SAMPLES, _SEED = 2000, 0


def write_per_user(folder: Path, fingerprint: str, per_user: PerUser) -> None:
    """Stores a run's metrics of each user, as float32."""
    columns = {
        f"{label}{_SEPARATOR}{metric}": values.astype(np.float32)
        for label, metrics in per_user.items()
        for metric, values in metrics.items()
    }
    write_whole(_path(folder, fingerprint), lambda staging: _save(staging, columns))


def read_per_user(folder: Path, fingerprint: str) -> PerUser:
    """The metrics that `write_per_user` stored."""
    found: PerUser = defaultdict(dict)
    with np.load(_path(folder, fingerprint)) as columns:
        for name in columns.files:
            label, _, metric = name.partition(_SEPARATOR)
            found[label][metric] = columns[name].astype(np.float64)
    return dict(found)


def paired_changes(reference: str, results: list[dict[str, Any]], folder: Path) -> dict[Lists, dict[str, Change]]:
    """Changes of each metric's mean against the reference's, on the same users.

    A user's metric is its mean over seeds, for the model and the reference alike; the intervals are over users.

    Args:
        reference: a model, whose first lists are compared with.
        results: of `run_benchmark`, which stored the users' metrics in `folder`.

    Returns:
        Metric -> mean(model) / mean(reference) - 1, for every other model's lists. A metric is left out if it is 0 for
        all users of the reference, or was not measured for it, e.g. because `evaluation.ks` differ.
    """
    users: dict[Lists, list[dict[str, np.ndarray]]] = defaultdict(list)
    for result in results:
        for label, metrics in read_per_user(folder, result["fingerprint"]).items():
            users[result["dataset"], result["model"], label].append(metrics)
    means = {
        key: {name: np.mean([metrics[name] for metrics in seeds], axis=0) for name in seeds[0]}
        for key, seeds in users.items()
    }
    references: dict[str, dict[str, np.ndarray]] = {}
    for (dataset, model, _), metrics in means.items():
        if model == reference:
            references.setdefault(dataset, metrics)
    return {
        (dataset, model, label): _changes(metrics, references[dataset])
        for (dataset, model, label), metrics in means.items()
        if model != reference
    }


def _changes(metrics: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, Change]:
    names = [name for name in metrics if name in reference and reference[name].any()]
    if not names:
        return {}
    ours, theirs = (np.stack([of[name] for name in names], axis=1) for of in (metrics, reference))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(bootstrap_changes(ours, theirs, _SAMPLES, _SEED), [tail, 1 - tail], axis=0)
    return {
        name: {
            "value": float(metrics[name].mean() / reference[name].mean() - 1),
            "low": float(low[column]),
            "high": float(high[column]),
        }
        for column, name in enumerate(names)
    }


def _save(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **columns)  # type: ignore[arg-type]


def _path(folder: Path, fingerprint: str) -> Path:
    return folder / f"{fingerprint}.npz"
