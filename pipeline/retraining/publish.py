"""Publish: versions appear whole below the base path that servers poll, and labels decide which of them serves."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from contracts.artifact import from_json, read_json, write_json
from contracts.layout import SAVED_MODEL, Workdir
from contracts.serving_labels import (
    CANARY,
    STABLE,
    ServingLabels,
    effective_labels,
    labels_or_none,
    read_labels,
    versions_on_disk,
    write_labels,
)
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.base_paths import base_paths, servables_of
from pipeline.retraining.catch_up import pushed_workdir
from pipeline.retraining.plan import read_plan
from pipeline.retraining.records import Record, read_pending, read_record, write_record
from pipeline.stages import exported_servable
from serving.versions import appearing

log = logging.getLogger(__name__)


def publish(
    names: Sequence[str],
    store: Store,
    workdir: Workdir,
    exported: Path,
    version: int,
    parent: int | None,
    *,
    held: bool,
) -> tuple[int, str]:
    """Makes the run's servables version `version`, and labels it.

    Every servable of the run gets the number, the main one last, so that what servers watch is complete when it
    appears. A repeated call continues where the last one ended, and changes nothing once a version is labelled or
    somebody has rolled back. A number that somebody has given to another servable since the plan is skipped.

    Args:
        names: of the run's servables, the main one first.
        exported: the main servable's version directory that the run's export wrote.
        version: the number that was planned.
        parent: the version that was stable when the run was planned; if another one is by now, somebody decided so.
        held: somebody already kept an older version stable then. In both cases, the new one becomes canary.

    Returns:
        the version's number, and the label that it got.
    """
    done = RetrainRun(workdir).push
    if (pushed := _finished_push(done)) is not None:
        return pushed
    sources = {store.servable(name): exported.parent.with_name(name) / exported.name for name in reversed(names)}
    version = next(
        number
        for number in itertools.count(version)
        if all(_is_free_for(source, base / str(number)) for base, source in sources.items())
    )
    for base, source in sources.items():
        _appear(source, base / str(version))
    with FileLock(store.labels_lock):
        if (pushed := _finished_push(done)) is not None:
            return pushed
        # The main servable's labels, written last, decide; those of one not exported for a while are behind.
        main = read_labels(store.servable(names[0]))
        held = main is not None and main.stable != version and (held or main.stable != parent)
        label = CANARY if held else STABLE
        write_json(done, {"version": version, "label": label, "is_done": False})
        for base in sources:
            write_labels(base, _with_pushed(read_labels(base), version, held=held))
        write_json(done, {"version": version, "label": label, "is_done": True})
    return version, label


def _with_pushed(labels: ServingLabels | None, version: int, *, held: bool) -> ServingLabels:
    """The labels after a push. An existing canary label moves to the new version: without it, its clients fail."""
    if labels is None:
        return ServingLabels(stable=version)
    if held and labels.stable != version:
        return ServingLabels(stable=labels.stable, canary=version)
    return ServingLabels(stable=version, canary=None if labels.canary is None else version)


def _finished_push(path: Path) -> tuple[int, str] | None:
    """Version and label of a finished push; None if it has not begun, or died while it wrote labels.

    Version 0.1.0 wrote the file only once all was done, and did not say so in it.
    """
    found = _read_push(path)
    return (int(found["version"]), str(found["label"])) if found and found.get("is_done", True) else None


def _read_push(path: Path) -> dict[str, Any] | None:
    """The state that a push has written; None if it has not begun.

    Raises:
        ValueError: the file is damaged.
    """

    def parse(text: str) -> dict[str, Any]:
        found = {**json.loads(text)}
        return found | {"version": int(found["version"]), "label": str(found["label"])}

    remedy = "restore it, or delete it so that the next `dnc retrain` starts that push over"
    return read_json(path, "the state of a push", parse, remedy) if path.exists() else None


def _decide(store: Store, *, held: bool) -> None:
    """Writes a decision about labels into unfinished runs, so that a call that continues them does not undo it.

    A push that died between its labels counts as done. A run that has not begun its push goes on. The labels show a
    decision only if it changes them, so `held` is written into the run's plan, too.
    """
    for path in store.runs.iterdir() if store.runs.is_dir() else ():
        run = RetrainRun(Workdir(path))
        try:
            push = _read_push(run.push)
        except ValueError:  # somebody must mend it before its run goes on, and then the plan decides
            push = None
        if push is not None:
            write_json(run.push, push | {"is_done": True})
        elif run.plan.exists():
            with contextlib.suppress(ValueError):  # no run goes on without its plan
                write_json(run.plan, asdict(replace(read_plan(run.plan), held=held)))


def push_blessed(store: Store, run_id: str) -> Record:
    """Pushes a run that the gate has blessed, or continues its push, and turns its pending record into its record."""
    run = RetrainRun(store.run(run_id))
    plan, pending = read_plan(run.plan), from_json(Record, run.pending.read_text(encoding="utf-8"))
    names, exported = servables_of(pending), exported_servable(pushed_workdir(run, pending.catch_up))
    version, label = publish(names, store, run.workdir, exported, plan.version, plan.parent, held=plan.held)
    if version != plan.version:
        log.warning("another servable took version %d during the run, so this one is version %d", plan.version, version)
    record = replace(pending, outcome="pushed", version=version, label=label)
    write_record(store, record)
    return record


def mend_records(store: Store) -> None:
    """Rewrites damaged records of pushed runs from their pending records and the states of their pushes."""
    for path in sorted(store.runs.iterdir()) if store.runs.is_dir() else ():
        run = RetrainRun(Workdir(path))
        if run.record.exists() and run.push.exists() and read_record(store, path.name) is None:
            with contextlib.suppress(ValueError):  # a damaged push says nothing
                pushed, pending = _finished_push(run.push), read_pending(store, path.name)
                if pushed and pending:
                    write_record(store, replace(pending, outcome="pushed", version=pushed[0], label=pushed[1]))
                    log.warning("%s has been rewritten from %s and %s", run.record, run.pending.name, run.push.name)


def push_left_over(store: Store) -> list[Record]:
    """Finishes the runs that died in their push, or between it and their record; returns their records.

    A newer span makes another run, so they may never be called again. A version that is on disk but not stable looks as
    if an older one were held, so every later one would become canary; and a version without a record has no weights to
    start from, no lineage, and a run that `retain` would delete.

    Raises:
        ValueError: a part of such a run is gone.
    """
    records = []
    for path in sorted(store.runs.iterdir()) if store.runs.is_dir() else ():
        if _died_in_push(store, path.name):
            try:
                records.append(record := push_blessed(store, path.name))
            except (ValueError, TypeError, KeyError, FileNotFoundError) as error:
                raise ValueError(
                    f"{path} passed the gate, but its unfinished push cannot continue ({error}): fix that, or "
                    "delete the directory"
                ) from error
            log.warning(
                "run %s died in its push, now finished: version %d is %s", path.name, record.version, record.label
            )
    return records


def _died_in_push(store: Store, run_id: str) -> bool:
    run = RetrainRun(store.run(run_id))
    if not run.pending.exists():
        return False
    record = read_record(store, run_id)
    # A record may be of an earlier verdict, under other limits; one that cannot be read may be restored.
    return record.outcome == "not_blessed" if record else not run.record.exists()


def set_stable(store: Store, version: int) -> list[str]:
    """Makes `version` the one that serves, in every servable of the store that has it.

    Returns:
        names of the servables that have other versions but not this one, and so keep serving what they did.

    Raises:
        ValueError: the main servable has no such version.
    """
    main, *others = _base_paths_or_error(store)
    without = []
    with FileLock(store.labels_lock):
        if version not in (found := versions_on_disk(main)):
            raise ValueError(f"{main} has no version {version}; it has {found}")
        _decide(store, held=version < found[-1])
        for base in (*others, main):
            versions = versions_on_disk(base)
            if version in versions:
                write_labels(base, _with_stable(labels_or_none(base), version))
            elif versions:
                without.append(base.name)
    return without


def _with_stable(labels: ServingLabels | None, version: int) -> ServingLabels:
    """The labels after a rollback. The canary stays, even if it becomes stable: without the label, its clients fail.

    A canary label on the old stable version tries nothing out, so it moves to the new one, too.
    """
    if labels is None or labels.canary is None:
        return ServingLabels(stable=version)
    return ServingLabels(stable=version, canary=version if labels.canary == labels.stable else labels.canary)


def version_before(store: Store) -> int:
    """The newest version of the main servable on disk that is older than the stable one.

    Raises:
        ValueError: there is none.
    """
    main = _base_paths_or_error(store)[0]
    labels = effective_labels(main)
    found = [version for version in versions_on_disk(main) if labels and version < labels.stable]
    if not found:
        raise ValueError(f"{main} holds no version before the stable one: nothing to roll back to")
    return found[-1]


def _base_paths_or_error(store: Store) -> list[Path]:
    bases = base_paths(store)
    if not bases:
        raise ValueError(f"{store.servables} holds no version: check -s, or push one with `dnc retrain`")
    return bases


def _is_free_for(source: Path, version: Path) -> bool:
    """Whether `version` does not exist, or is what an earlier attempt made from `source`."""
    if not os.path.lexists(version):  # a dangling link is in the way, too
        return True
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    if not files:  # the export is gone, so nothing was made from it
        return False
    return all((version / file).is_file() and filecmp.cmp(source / file, version / file) for file in files)


def _appear(source: Path, version: Path) -> None:
    """Copies `saved_model.pb` last: on any file system the version is whole when a server sees it."""
    if version.exists():
        return
    with appearing(version) as staging:
        shutil.copytree(source, staging, ignore=shutil.ignore_patterns(SAVED_MODEL), copy_function=_link_or_copy)
        _link_or_copy(str(source / SAVED_MODEL), str(staging / SAVED_MODEL))


def _link_or_copy(source: str, target: str) -> None:
    """A servable's files are never rewritten, so a hard link is as good as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
