"""Runs stages in order, skips what is current, refuses a second run on the same workdir."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from contracts import artifact, storage
from contracts.config import BeamConfig, Config
from contracts.config_io import dump_config
from contracts.layout import Workdir
from contracts.lock import holding
from contracts.log_lines import sign_of_life
from pipeline.stage import Stage, fingerprints
from serving.versions import followed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What happened to a stage: `seconds` is 0 if its result was already current."""

    name: str
    ran: bool
    seconds: float


def run_stages(
    stages: tuple[Stage, ...],
    config: Config,
    workdir: Workdir,
    first: str | None = None,
    last: str | None = None,
    part_of: str = "",
) -> list[StageResult]:
    """Runs `stages` from `first` to `last`, both included; `part_of` names the stage that runs them, for the log.

    A stage whose outputs carry the fingerprint of its code, inputs and config is skipped. The stage named as `first`
    always runs, and so do the stages that read its outputs, which need not be the same to the bit. Those after `last`
    are left to a later run, and their outputs are no artifacts until then. The outputs of the stages before `first` are
    taken as they are; if this config would make others, a later run from the start will.

    Raises:
        ValueError: `first` comes after `last`, another run holds the workdir, an input of `first` is missing, Beam has
            no such runner or options, or a stage refused its input.
    """
    selected = _between(stages, first, last)
    if any(stage.remote for stage in selected):
        require_beam_options(config)  # first of all: they say how to reach a workdir in an object store
    storage.require_literal(workdir.path)
    _require_reach(selected, workdir)
    with holding(workdir):
        _require_inputs(stages, selected, config, workdir)
        for stage in selected:
            stage.check(config)
            for path in stage.outputs(config, workdir):
                artifact.require_ours(path)  # now, not after hours of earlier stages
            require_bases(stage.bases(config, workdir))
        wanted = fingerprints(stages, config, _taken_as_they_are(stages, selected, config, workdir))
        if first is not None:
            _forget(stages, first, config, workdir)
        results = []
        for stage in selected:
            position = f"{part_of} [{stages.index(stage) + 1}/{len(stages)}]".lstrip()
            results.append(_run_stage(stage, position, config, workdir, wanted[stage.name]))
            if results[-1].ran or stage is selected[-1]:
                # The config that made the artifacts: one that no stage accepts does not replace a finished run's.
                storage.write_text(workdir.config, dump_config(config))
        return results


def require_bases(bases: Iterable[Path]) -> None:
    """Raises ArtifactError if no version can appear below one of the base paths."""
    for base in bases:
        artifact.require_no_mount(followed(base), "versions are made beside it and renamed into it")


def require_beam_options(config: Config) -> None:
    """Raises ValueError if Beam has no such runner, would refuse `beam.options`, or would ignore one of them."""
    if config.beam != BeamConfig():  # else Beam need not be imported, e.g. if all is up to date
        with suppress(ImportError):  # on a machine that only trains, no job runs
            from beam_jobs.common.beam_run import pipeline_options

            pipeline_options(config.beam)


def _forget(stages: tuple[Stage, ...], first: str, config: Config, workdir: Workdir) -> None:
    """Forgets the outputs of `first` and everything made from them.

    This happens all at once, last stage first, and includes stages after `--to`: a run that is killed, stops there or
    finds the disk full in between leaves nothing that the next run would wrongly take as made from its current inputs.
    That run continues, and keeps what this one has finished.
    """
    forced, outputs = {first}, list[Path]()
    for stage in stages:
        if forced & {stage.name, *stage.after}:
            forced.add(stage.name)
            outputs += stage.outputs(config, workdir)
    for path in reversed(outputs):
        artifact.forget(path)


def _require_reach(selected: tuple[Stage, ...], workdir: Workdir) -> None:
    near = [stage.name for stage in selected if not stage.remote]
    if near and storage.is_remote(workdir.path):
        raise ValueError(
            f"stage {near[0]} needs a local workdir, but {workdir.path} is in an object store: run the Beam stages "
            f"there (--to windows), copy their outputs with `dnc fetch {workdir.path} -w DIR`, and continue in DIR"
        )


def fetch_artifacts(stages: tuple[Stage, ...], source: Workdir, workdir: Workdir) -> dict[str, artifact.Manifest]:
    """Copies the outputs of the stages that run on object stores to a local workdir; returns manifests by stage.

    Raises:
        ValueError: `source` is not a URL or holds nothing, or another run holds the workdir.
    """
    if not storage.is_remote(source.path):
        raise ValueError(
            f"{source.path} is not a URL of an object store: name the workdir of a run there, e.g. gs://bucket/run"
        )
    fetched = {}
    with holding(workdir):
        for stage in stages:
            if stage.remote:
                [remote], [here] = (stage.outputs(Config(), place) for place in (source, workdir))
                if artifact.find_manifest(remote) is not None:
                    with sign_of_life(f"fetch {stage.name}"):
                        fetched[stage.name] = artifact.fetch(remote, here)
    if not fetched:
        raise ValueError(f"{source.path} holds no artifact: name the workdir of a run of `dnc run` or `beam_jobs`")
    return fetched


def _between(stages: tuple[Stage, ...], first: str | None, last: str | None) -> tuple[Stage, ...]:
    names = [stage.name for stage in stages]
    start = names.index(first) if first else 0
    stop = names.index(last) + 1 if last else len(names)
    if start >= stop:
        raise ValueError(f"--from {first} comes after --to {last}; the order is {', '.join(names)}")
    return stages[start:stop]


def _run_stage(stage: Stage, position: str, config: Config, workdir: Workdir, wanted: str) -> StageResult:
    label = f"{position} {stage.name}"
    if stage.is_current(config, workdir, wanted):
        log.info("%s: up to date, skipped", label)
        return StageResult(stage.name, ran=False, seconds=0.0)
    log.info("%s: %s", label, stage.summary)
    started = time.monotonic()
    with sign_of_life(label):
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
                    f"stage {stage.name} needs {missing[0]}, which does not exist: run --from {upstream.name}"
                )


def _taken_as_they_are(
    stages: tuple[Stage, ...], selected: tuple[Stage, ...], config: Config, workdir: Workdir
) -> dict[str, str]:
    """Fingerprints of the outputs of the stages before the selected ones, which depend on them, current or not."""
    found = {}
    for stage in stages[: stages.index(selected[0])]:
        manifests = [artifact.find_manifest(path) for path in stage.outputs(config, workdir)]
        made_of = sorted({manifest.fingerprint for manifest in manifests if manifest is not None})
        if made_of:  # several if a run died in between, e.g. between a model and its baselines
            found[stage.name] = made_of[0] if len(made_of) == 1 else artifact.fingerprint(made_of)
    current = fingerprints(stages, config) if found else {}
    stale = [name for name, fingerprint in found.items() if fingerprint != current[name]]
    if stale:
        log.warning(
            "%s: made from another log, by other code or under another config, and used as is; to rebuild, run "
            "--from %s",
            ", ".join(stale), stale[0],
        )  # fmt: skip
    return found


def _counts(stage: Stage, config: Config, workdir: Workdir) -> str:
    counts = artifact.read_manifest(stage.outputs(config, workdir)[0]).counts
    shown = ", ".join(f"{value:,} {name}" for name, value in counts.items() if value)
    return f" ({shown})" if shown else ""
