"""Which versions of a servable take traffic: a small file beside the versions, written by those who decide.

    SERVABLE_BASE/serving.json    {"stable": 7, "canary": 8}

`stable` answers requests that name no version, so writing a smaller number here is a rollback;
`canary` answers those that ask for it by label. Both may be the same version: clients keep asking for the canary after
it has become stable or was given up. Without the file, the newest version is stable.
"""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field, ValidationError

from contracts.artifact import write_json
from contracts.config import Section
from contracts.layout import SAVED_MODEL

log = logging.getLogger(__name__)

LABELS_FILE = "serving.json"
VERSIONS = f"directories named by numbers without leading zeros, each with a {SAVED_MODEL}"
"""What `versions_on_disk` finds, in words."""
MAX_VERSION = 2**63 - 1
STABLE, CANARY = "stable", "canary"
_REMEDY = "rewrite it, as `dnc rollback -s STORE VERSION` does"


class ServingLabels(Section):
    """The labelled versions of one servable."""

    stable: int = Field(ge=0, le=MAX_VERSION)
    canary: int | None = Field(None, ge=0, le=MAX_VERSION)

    def by_label(self) -> dict[str, int]:
        """Label -> version."""
        return {STABLE: self.stable} | ({} if self.canary is None else {CANARY: self.canary})


def read_labels(base: Path) -> ServingLabels | None:
    """The labels of the servable at `base`, the directory that holds its versions; None if there is no file.

    Raises:
        ValueError: the file does not have this form.
    """
    path = base / LABELS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}): {_REMEDY}") from None
    try:
        return ServingLabels.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ValueError(
            f"{path}: {field}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}; "
            f'it must hold {{"stable": VERSION}}, or {{"stable": VERSION, "canary": VERSION}}: {_REMEDY}'
        ) from None


def write_labels(base: Path, labels: ServingLabels) -> None:
    """Writes the labels of the servable at `base`; a polling server sees either the old file or the new one."""
    write_json(base / LABELS_FILE, labels.model_dump())


def versions_on_disk(base: Path) -> list[int]:
    """Numbers of the versions below `base`, ascending.

    Names with leading zeros, which TF Serving reads, do not count: all code here finds version 7 at `base/7`.
    A directory that cannot be read counts as a version: naming it gives the reason, and otherwise it does not matter.
    """
    return [number for number in numbers_on_disk(base) if _may_be_version(base / str(number))]


def _may_be_version(path: Path) -> bool:
    try:
        return (path / SAVED_MODEL).exists()
    except OSError:
        return True


def numbers_on_disk(base: Path) -> list[int]:
    """All numbers below `base`, ascending: of versions, and of directories that are in the way of one.

    Numbers of more than 64 bits do not count, as TF Serving's protos cannot hold them: a date of 20 digits is too long.
    Names with leading zeros do, as TF Serving would read them.
    """
    names = [path.name for path in base.iterdir()] if base.is_dir() else []
    numbers = {int(name) for name in names if name.isascii() and name.isdecimal()}
    return sorted(number for number in numbers if number <= MAX_VERSION)


def effective_labels(base: Path) -> ServingLabels | None:
    """The labels in the file, else the newest version as stable; None if there is no version either.

    Raises:
        ValueError: the file does not have the form that `read_labels` expects.
    """
    labels = read_labels(base)
    versions = versions_on_disk(base)
    return labels or (ServingLabels(stable=versions[-1]) if versions else None)


def labels_or_none(base: Path) -> ServingLabels | None:
    """Like `effective_labels`, but None, with a warning, if the file is malformed: for listing or rewriting it."""
    try:
        return effective_labels(base)
    except ValueError as error:
        log.warning("%s", error)
        return None
