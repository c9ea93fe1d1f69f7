"""Running a job's steps on the configured runner, and getting small results back from any runner."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import pydoc
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from contracts import storage
from contracts.config import BeamConfig

_WITH_OWN_OPTIONS = frozenset({"PortableRunner", "FlinkRunner", "SparkRunner"})
"""Runners whose job server knows options that Beam's Python does not."""


def collect(config: BeamConfig, inputs: Sequence[Any], steps: beam.PTransform, scratch: Path) -> list[Any]:
    """Runs `steps` over `inputs`, each of which may go to another worker, and returns what they yield.

    Args:
        config: runner and its options.
        inputs: paths and numbers, not data: Beam ships them inside the pipeline's definition.
        steps: a transform that yields small JSON values.
        scratch: directory that the workers can write to. The values come back through a file in it, since
            not every runner returns elements.

    Returns:
        the values, in no particular order.

    Raises:
        ValueError: Beam refuses the runner or its options, a package that the runner needs is missing, or its workers
            cannot reach `scratch`.
    """
    path = scratch / f"collected-{uuid.uuid4().hex[:8]}.jsonl"
    try:
        with _pipeline(config, scratch) as pipeline:
            (
                pipeline
                | "Inputs" >> beam.Create(list(enumerate(inputs)))
                | "Spread" >> beam.GroupByKey()
                | "Single" >> beam.FlatMap(_single)
                | steps
                | "EncodeResults" >> beam.Map(_encode_result)
                | "GatherResults" >> beam.GroupByKey()
                | "WriteResults" >> beam.Map(_write_lines, path)
            )
    except ImportError as error:
        raise ValueError(f"beam.runner={config.runner} needs a package that is missing ({error}): install it") from None
    lines = storage.read_text(path).splitlines() if storage.exists(path) else []
    storage.remove(path)
    return [json.loads(line) for line in lines]


def _pipeline(config: BeamConfig, scratch: Path) -> beam.Pipeline:
    """An empty pipeline.

    Raises:
        ValueError: the runner's workers cannot reach `scratch`, or Beam refuses the runner or its options.
    """
    if _full_name(config.runner) == "DataflowRunner" and not storage.is_remote(scratch):
        raise ValueError(
            f"beam.runner=DataflowRunner: its workers cannot reach {scratch.parent}: give a workdir in Cloud Storage, "
            "e.g. --workdir gs://bucket/run, and gs:// URLs for the log and the tables, too"
        )
    return beam.Pipeline(options=pipeline_options(config))


def pipeline_options(config: BeamConfig) -> PipelineOptions:
    """Beam's options. Beam would skip unknown ones with a warning, which may show a key to an object store.

    Raises:
        ValueError: Beam has no such runner, or one of `beam.options` is unknown to Beam or has an unsuitable value.
    """
    runner = _full_name(config.runner)
    # Type checks find mistakes in these jobs' own code, and make up a fifth of a pipeline's cost on a small log.
    options = PipelineOptions([f"--runner={runner}", "--no_pipeline_type_check", *config.options])
    words = [word.partition("=")[0] for word in config.options]
    for place, word in enumerate(words):
        is_value = place and words[place - 1].startswith("--") and "=" not in config.options[place - 1]
        if not word.startswith("--") and not is_value:
            shown = repr(word) if "=" in config.options[place] else f"number {place + 1}"
            raise ValueError(f"beam.options: {shown} is not an option: write each as --name=value")
    if "--runner" in words:
        raise ValueError(f"beam.options: --runner is not allowed: set beam.runner (now {config.runner}) instead")
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            given = options.get_all_options(retain_unknown_options=True)
    except SystemExit:  # Beam parses the options like a program's command line
        reason = said.getvalue().strip().rpartition("error: ")[2]
        raise ValueError(f"beam.options: {reason}") from None
    known = PipelineOptions([]).get_all_options().keys()
    unknown = sorted(given.keys() - known)
    if unknown and runner not in _WITH_OWN_OPTIONS and "--beam_plugins" not in words:
        near = difflib.get_close_matches(unknown[0], known, 1)
        raise ValueError(
            f"beam.options: Beam has no option --{unknown[0]}: "
            + (f"did you mean --{near[0]}?" if near else "check its name, or leave it out")
        )
    return options


def _full_name(runner: str) -> str:
    """The runner as Beam lists it (in any case, "runner" may be left out), or a class named in full.

    Raises:
        ValueError: there is no such runner, or no such class is installed.
    """
    known = StandardOptions.KNOWN_RUNNER_NAMES
    lower = {name.lower(): name for name in known}
    for name in (runner.lower(), f"{runner.lower()}runner"):
        if name in lower:
            return lower[name]
    if "." in runner:
        try:
            found = pydoc.locate(runner)
        except pydoc.ErrorDuringImport as error:  # for example of a package that the module needs
            raise ValueError(f"beam.runner={runner} cannot be imported: {error}: install what it needs") from None
        if found is None:
            raise ValueError(
                f"beam.runner={runner} cannot be imported: check its name, and that its package is installed"
            )
        return runner
    near = difflib.get_close_matches(runner.lower(), lower, 1)
    raise ValueError(
        f"beam.runner={runner} is not one of Beam's runners: "
        + (f"did you mean {lower[near[0]]}?" if near else f"choose one of {', '.join(known)}, or name a class in full")
    )


def _single(element: tuple[int, Iterable[Any]]) -> Iterable[Any]:
    """(number, the one input) -> the input. `Reshuffle` would need three times as many steps."""
    return element[1]


def _encode_result(value: Any) -> tuple[int, str]:
    return 0, json.dumps(value)


def _write_lines(element: tuple[int, Iterable[str]], path: Path) -> None:
    """(0, lines) -> a file; there is none without lines."""
    storage.write_text(path, "\n".join(element[1]))
