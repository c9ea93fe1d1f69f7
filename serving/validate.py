"""Infrastructure validation: a fresh process checks that a servable is right before anything serves it."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import contracts
from contracts.artifact import Manifest, read_manifest, write_json, writing
from contracts.config import Config
from contracts.config_io import dump_config
from contracts.errors import Unfit
from contracts.layout import SERVED_MODEL, Workdir
from contracts.storage import write_text
from serving.versions import admit

log = logging.getLogger(__name__)

_OF_THE_MACHINE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), " (TMPDIR sets where temporary files go)"),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ETIMEDOUT), ""),
}
"""Errors that say nothing about the servable, each with a hint."""


def validate(
    config: Config,
    workdir: Workdir,
    servable: Path,
    fingerprint: str,
    metrics: dict[str, dict[str, float]] | None = None,
) -> Manifest:
    """Loads the servable, and those exported with it, in a fresh process and checks them against brute force.

    Only if they pass do they become versions. The report is `workdir.validation_report`; the servable's metrics are
    stored beside it, as `workdir.served_metrics`.

    Args:
        config: the config that the servable was exported with.
        workdir: holds the catalogue and the test users.
        servable: the directory that the export wrote, whether it is a version already or not.
        fingerprint: of the stage.
        metrics: of the servable, if they were measured: metric -> {"value", "low", "high"}.

    Raises:
        Unfit: a check failed, or the servable cannot be loaded; the message names it.
        ValueError: there is no user to ask for.
        RuntimeError: the machine failed (no room for temporary files, a disk), which says nothing about the servable.
    """
    with writing(workdir.validation, Workdir.VALIDATION_KIND, fingerprint) as artifact:
        report_path = artifact.path / workdir.validation_report.name
        config_path = artifact.path / workdir.config.name
        write_text(config_path, dump_config(config))
        report = _check_in_fresh_process(workdir, servable, config_path, report_path)
        if report["failures"]:
            write_json(workdir.failed_validation, report)
            raise Unfit(
                f"{servable} is not fit to serve:\n  "
                + "\n  ".join(report["failures"])
                + f"\nThe report is in {workdir.failed_validation}."
            )
        artifact.counts["requests"] = report["requests"]
        artifact.files += [report_path.name, config_path.name]
        if metrics is not None:
            write_json(artifact.path / workdir.served_metrics.name, {SERVED_MODEL: metrics})
            artifact.files.append(workdir.served_metrics.name)
        artifact.details.update(servables=report["servables"])
        admit(config, workdir, servable)
    return read_manifest(workdir.validation)


def _check_in_fresh_process(workdir: Workdir, servable: Path, config: Path, report: Path) -> dict[str, Any]:
    """Runs `serving.validation.validate_process` and returns what it wrote to `report`.

    Raises:
        Unfit: it failed, or was killed; the message is the end of what it wrote to stderr.
        ValueError: it cannot use what it was given, and says so.
        RuntimeError: the machine failed, which says nothing about the servable.
    """
    arguments = [str(path.absolute()) for path in (workdir.path, servable, config, report)]
    # In memory: a full disk might have no room for the message that says so.
    with os.fdopen(os.memfd_create("errors"), "w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "serving.validation.validate_process", *arguments],
            cwd=Path(contracts.__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        with process:
            for line in process.stdout or ():
                log.info("validate: %s", line.rstrip())
        if process.returncode:
            errors.seek(0)
            text = errors.read()
            # Without a traceback, it ended with its own message, about what it was given.
            said, fault = text[-2000:], Unfit if "Traceback" in text or process.returncode < 0 else ValueError
            for line in reversed(said.splitlines()):
                hint = next((hint for number, hint in _OF_THE_MACHINE.items() if os.strerror(number) in line), None)
                if hint is not None:
                    raise RuntimeError(f"{servable} could not be queried in a fresh process: {line}{hint}")
            if process.returncode == -signal.SIGKILL:
                said = "it was killed, usually for lack of memory: run it again, or on a machine with more memory"
            raise fault(f"{servable} cannot be loaded and queried in a fresh process:\n{said}")
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found
