"""Version directories, numbered, below a servable's base path: whole and validated, or not there at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.config import Config
from contracts.layout import Workdir
from contracts.serving_labels import numbers_on_disk, versions_on_disk
from contracts.storage import remove_leftovers, rename_durably, staging_path

_UNVALIDATED = "unvalidated-"
"""Prefix of directories that no server may take for versions yet: versions have numbers as names."""


def unvalidated(version: Path) -> Path:
    """Where the export writes what `admit` turns into `version`."""
    return version.with_name(f"{_UNVALIDATED}{version.name}")


def version_of(exported: Path) -> Path:
    """The version that `exported` is, or becomes."""
    return exported.with_name(exported.name.removeprefix(_UNVALIDATED))


def exported_as(version: Path) -> Path:
    """Where the version is now: its own path, or `unvalidated` while it is not validated."""
    return before if (before := unvalidated(version)).exists() else version


def last_version(base: Path) -> Path | None:
    """The version with the highest number in `base`."""
    found = versions_on_disk(base)
    return base / str(found[-1]) if found else None


def next_version(base: Path) -> int:
    """One more than the highest number in `base`, unvalidated ones included, or 1."""
    waiting = [version_of(path).name for path in base.glob(f"{_UNVALIDATED}*")]
    return max([*numbers_on_disk(base), *(int(name) for name in waiting if name.isdecimal())], default=0) + 1


def predecessor(config: Config, workdir: Workdir, name: str) -> Path | None:
    """The version that a servable's next one replaces: this run's last, or the earlier run's."""
    earlier = config.training.warm_start
    bases = [workdir.servable(name)] + ([Workdir(Path(earlier)).servable(name)] if earlier else [])
    return next((version for base in bases if (version := last_version(base))), None)


def exported_versions(config: Config, workdir: Workdir, exported: Path) -> dict[str, Path]:
    """Index -> directory of every servable that was exported together with `exported`, validated or not."""
    return {
        index: exported
        if name == config.serving.model_name
        else exported_as(workdir.servable(name) / version_of(exported).name)
        for index, name in config.serving.servable_names().items()
    }


def admit(config: Config, workdir: Workdir, exported: Path) -> None:
    """Turns servables exported together into versions, the main one last; those that are versions already stay."""
    for path in reversed(exported_versions(config, workdir, exported).values()):
        if path != version_of(path):
            rename_durably(path, version_of(path))


def remove_unvalidated(config: Config, workdir: Workdir, but: Path | None) -> None:
    """Removes what was exported but never admitted, except what was exported together with `but`."""
    kept = exported_versions(config, workdir, but).values() if but else ()
    for name in config.serving.servable_names().values():
        for left in workdir.servable(name).glob(f"{_UNVALIDATED}*"):
            if left not in kept:
                shutil.rmtree(left, ignore_errors=True)


def followed(base: Path) -> Path:
    """The base path or, if it is a link (say, to a larger disk), its target: renaming does not work across disks."""
    return Path(os.path.realpath(base))


@contextmanager
def appearing(version: Path) -> Iterator[Path]:
    """Yields a directory to write to, renamed to `version` at the end.

    It lies beside the base path, or beside its target if that is a link, where no server looks; a failure removes it.
    """
    base = followed(version.parent)
    base.mkdir(parents=True, exist_ok=True)
    remove_leftovers(base)
    staging = staging_path(base)
    try:
        yield staging
        rename_durably(staging, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
