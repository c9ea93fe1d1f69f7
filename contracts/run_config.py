"""The config that a run has left in its workdir, whichever code ran it."""

from __future__ import annotations

from pathlib import Path

from contracts import artifact, storage
from contracts.layout import Workdir

_EARLIER_NAME = "config.yaml"
"""What code up to November 2026 called it."""


def find_run_config(workdir: Workdir) -> Path | None:
    """The file; None where no run has come that far.

    A config.yaml may be its owner's, as where that is what a run is told to read. It is taken for a run's only where
    there is none of today's name, and an export: then code of before has written it.
    """
    if storage.exists(workdir.config):
        return workdir.config
    earlier = workdir.path / _EARLIER_NAME
    exported = artifact.find_manifest(workdir.export) is not None
    return earlier if exported and storage.exists(earlier) else None
