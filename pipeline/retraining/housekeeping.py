"""Housekeeping: frees a store of versions, runs and spans that nothing needs, and of leftovers of killed processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from pathlib import Path

from filelock import FileLock

from contracts.artifact import remove_directory
from contracts.config import Config
from contracts.layout import Workdir
from contracts.serving_labels import labels_or_none, versions_on_disk
from contracts.storage import staging_of, staging_path
from contracts.store_layout import RetrainRun, SpanParts, Store
from pipeline.retraining.base_paths import base_paths
from pipeline.retraining.plan import gone_on_from
from pipeline.retraining.records import all_records
from serving.versions import followed

_LONGEST_WRITE = 3600.0
"""Seconds after which staged files are a dead process's: servers and rollbacks write labels during a retrain, too."""


def retain(config: Config, store: Store) -> None:
    """Deletes old versions, and runs that no remaining version needs, except for their records.

    A version is old if it precedes the main servable's newest `retrain.keep_versions` and no servable's label names it.
    A remaining version needs the run that the next one would continue from while it is served.
    """
    bases = [store.servable(name) for name in config.serving.servable_names().values()]
    with FileLock(store.labels_lock):
        # The labels of all servables: one that this config does not export may still be in use.
        labels = [found for base in {*bases, *base_paths(store)} if (found := labels_or_none(base))]
        newest = versions_on_disk(bases[0])[-config.retrain.keep_versions :]
        kept = {version for found in labels for version in found.by_label().values()} | {*newest}
        # The versions of each servable: the main one may have lost, for any reason, a version that another has.
        older = {version for base in bases for version in versions_on_disk(base) if version < min(newest, default=0)}
        gone = [_moved_away(base / str(version)) for version in older - kept for base in bases]
    for path in gone:
        shutil.rmtree(path, ignore_errors=True)
    records = all_records(store)
    runs = {run.run_id for version in kept if (run := gone_on_from(records, version))}
    # The newest run stays, whatever its outcome: somebody will want to look at it, or have it judged again.
    for record in records[:-1]:
        if record.run_id not in runs:
            _keep_only_record(store, record.run_id)


def _moved_away(version: Path) -> Path:
    """Renames a version, if it is there, so that no server finds it half deleted; returns the new path."""
    gone = staging_path(followed(version.parent))
    if version.exists():
        os.rename(version, gone)
    return gone


def _keep_only_record(store: Store, run_id: str) -> None:
    run = RetrainRun(store.run(run_id))
    for path in list(run.workdir.path.iterdir()):
        if path.is_dir():
            remove_directory(path)
        elif path != run.record:
            path.unlink(missing_ok=True)


def make_room(store: Store, run_id: str, span_keys: set[str]) -> None:
    """Deletes runs without a record other than `run_id`, ingested spans not in `span_keys`, and what a kill left.

    This happens before a run begins, not at its end: otherwise, failed days would pile up, and once they had filled the
    disk, no later day could free it. The caller holds the lock and has finished the pushes that were left over, so only
    a call with the same input would resume such a run, and it can begin anew. Directories that no retrain has made
    stay: `-s` may name one that holds other `runs/` or `spans/`.
    """
    for path in _directories(store.runs):
        run = RetrainRun(Workdir(path))
        # A record that cannot be read may be restored. A plan is the first thing that a run writes.
        if path.name != run_id and not run.record.exists() and (run.plan.exists() or _is_staged(path)):
            remove_directory(path)
    for path in _directories(store.spans):
        if path.name not in span_keys and (_is_staged(path) or _holds_span(path)):
            remove_directory(path)
    _delete_half_written(store)


def _directories(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _is_staged(path: Path) -> bool:
    return staging_of(path.name) is not None


def _holds_span(path: Path) -> bool:
    """Whether a directory holds parts of an ingested span, whole or half written, or nothing, as of a refused one."""
    parts = SpanParts(path)
    names = {part.name for part in (parts.events.path, parts.profile, parts.cooccurrences)}
    found = list(path.iterdir())
    return not found or any((staging_of(part.name) or part.name) in names for part in found)


def _delete_half_written(store: Store) -> None:
    """Deletes what a killed process has staged, or moved away, outside of runs and spans.

    The next push deletes only staged versions beside its own base paths, not those of a servable that is no longer
    exported; nothing else would delete small files such as labels.
    """
    for folder in (store.path, *store.path.glob("*"), *store.servables.glob("*")):
        for path in filter(_is_staged, folder.glob("*")):
            with contextlib.suppress(OSError):  # its owner has renamed it in the meantime
                if time.time() - path.stat().st_mtime > _LONGEST_WRITE:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
