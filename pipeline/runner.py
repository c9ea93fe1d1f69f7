"""Runs stages in order, skips what is current, refuses a second run on the same workdir."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from filelock import FileLock, Timeout

from contracts import artifact
from contracts.config import Config
from contracts.config_io import dump_config
from contracts.layout import Workdir
from pipeline.stage import Stage, fingerprints

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What happened to a stage: `seconds` is 0 where its result was already current."""

    name: str
    ran: bool
    seconds: float


def run_stages(
    stages: tuple[Stage, ...], config: Config, workdir: Workdir, first: str | None = None, last: str | None = None
) -> list[StageResult]:
    """Runs `stages` from `first` to `last`, both included.

    A stage whose outputs carry the fingerprint of its inputs and config is skipped; naming it as
    `first` runs it anyway.

    Raises:
        ValueError: `first` comes after `last`, another run holds the workdir, an input of `first` is missing, or a
            stage refused its input.
    """
    selected = _between(stages, first, last)
    workdir.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workdir.lock)
    try:
        with lock.acquire(timeout=0):
            artifact.write_text(workdir.config, dump_config(config))
            _require_inputs(stages, selected, config, workdir)
            wanted = fingerprints(stages, config)
            results = []
            for stage in selected:
                position = f"[{stages.index(stage) + 1}/{len(stages)}]"
                forced = stage.name == first
                results.append(_run_stage(stage, position, config, workdir, wanted[stage.name], forced=forced))
            return results
    except Timeout:
        raise ValueError(
            f"another run holds {workdir.path}: wait for it, or give this one its own directory (-w)"
        ) from None


def _between(stages: tuple[Stage, ...], first: str | None, last: str | None) -> tuple[Stage, ...]:
    names = [stage.name for stage in stages]
    start = names.index(first) if first else 0
    stop = names.index(last) + 1 if last else len(names)
    if start >= stop:
        raise ValueError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    return stages[start:stop]


def _run_stage(
    stage: Stage, position: str, config: Config, workdir: Workdir, wanted: str, *, forced: bool
) -> StageResult:
    label = f"{position} {stage.name}"
    if not forced and stage.is_current(config, workdir, wanted):
        log.info("%s: up to date, skipped", label)
        return StageResult(stage.name, ran=False, seconds=0.0)
    log.info("%s: %s", label, stage.summary)
    started = time.monotonic()
    stage.run(config, workdir, wanted)
    seconds = time.monotonic() - started
    log.info("%s: done in %.1f s%s", label, seconds, _counts(stage, config, workdir))
    return StageResult(stage.name, ran=True, seconds=seconds)


def _require_inputs(stages: tuple[Stage, ...], selected: tuple[Stage, ...], config: Config, workdir: Workdir) -> None:
    by_name = {stage.name: stage for stage in stages}
    for stage in selected:
        for upstream in (by_name[name] for name in stage.after):
            missing = [path for path in upstream.outputs(config, workdir) if artifact.find_manifest(path) is None]
            if upstream not in selected and missing:
                raise ValueError(
                    f"stage {stage.name} needs {missing[0]}, which is not there: run --from {upstream.name}"
                )


def _counts(stage: Stage, config: Config, workdir: Workdir) -> str:
    counts = artifact.read_manifest(stage.outputs(config, workdir)[0]).counts
    return f" ({', '.join(f'{value:,} {name}' for name, value in counts.items())})" if counts else ""
