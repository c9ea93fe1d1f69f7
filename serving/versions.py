"""Version directories: numbered, below a servable's base path, there whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contracts.config import Config
from contracts.layout import Workdir
from contracts.serving_labels import numbers_on_disk, versions_on_disk
from contracts.storage import STAGING_MARK, rename_durably


def last_version(base: Path) -> Path | None:
    """The version of the highest number below `base`."""
    found = versions_on_disk(base)
    return base / str(found[-1]) if found else None


def next_version(base: Path) -> int:
    """One more than the highest number below `base`, or 1."""
    return max(numbers_on_disk(base), default=0) + 1


def predecessor(config: Config, workdir: Workdir, name: str) -> Path | None:
    """The version that the next one of a servable takes the place of: this run's last, or the earlier run's."""
    earlier = config.training.warm_start
    bases = [workdir.servable(name)] + ([Workdir(Path(earlier)).servable(name)] if earlier else [])
    return next((version for base in bases if (version := last_version(base))), None)


def exported_versions(config: Config, workdir: Workdir, version: Path) -> dict[str, Path]:
    """Index -> version directory of every servable that was exported together with `version`."""
    return {
        index: version if name == config.serving.model_name else workdir.servable(name) / version.name
        for index, name in config.serving.servable_names().items()
    }


@contextmanager
def appearing(version: Path) -> Iterator[Path]:
    """A directory to write to, renamed to `version` at the end.

    It lies beside the base path, not below it: a server takes any numbered directory below for a version.
    """
    base = version.parent
    base.mkdir(parents=True, exist_ok=True)
    for left in base.parent.glob(f"{base.name}{STAGING_MARK}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = base.parent / f"{base.name}{STAGING_MARK}{uuid.uuid4().hex[:8]}"
    try:
        yield staging
        rename_durably(staging, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
