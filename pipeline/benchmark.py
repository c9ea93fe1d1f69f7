"""`dnc benchmark`: data sets x models x seeds -> one JSON file and one Markdown table.

Resumable: each run's result lies in the workdir under the fingerprint of what made it; data stages
and unfinished trainings continue where they stopped.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contracts import artifact
from contracts.config import Config
from contracts.config_io import ConfigError, load_config
from contracts.layout import Workdir
from contracts.lock import holding
from contracts.names import Split
from pipeline.benchmark_config import BenchmarkConfig, BenchmarkDataset, BenchmarkMerge, BenchmarkModel, Overrides
from pipeline.datasets import sequences
from pipeline.paired_changes import write_per_user
from pipeline.runner import run_stages
from pipeline.shared_data import data_workdir
from pipeline.stages import STAGES
from pipeline.training_processes import training_processes
from trainer.evaluation.baselines import UNTRAINED, baseline_config
from trainer.evaluation.metric_names import metric_names

log = logging.getLogger(__name__)

_DATA_SEED = 0
"""Seed of the data, which all models and seeds of a table share, whichever of them one call trains."""

_BASELINE_MERGES = (BenchmarkMerge(merge="score", alpha=0.0),)

Key = tuple[str, str, int]
"""Data set, model and seed of a run."""


@dataclass(frozen=True)
class Run:
    """A model on a data set with a seed.

    Attributes:
        config: the config to train the model with: the product's, or a baseline's.
        data_config: the product's config, which the data is made with.
        workdir: of the data; models of the same data share it.
        merges: how the model's lists are merged.
        seconds_of: the model whose time to its best epoch limits this one's training; None without a limit.
        untrained: the baseline, if it is one that needs no training.
    """

    dataset: str
    model: str
    seed: int
    config: Config
    data_config: Config
    workdir: Workdir
    merges: tuple[BenchmarkMerge, ...]
    seconds_of: str | None
    untrained: str | None

    def __str__(self) -> str:
        return f"{self.dataset}, {self.model}, seed {self.seed}"

    @property
    def key(self) -> Key:
        return self.dataset, self.model, self.seed

    @property
    def name(self) -> str:
        """Name of the model in the workdir."""
        label = "".join(letter if letter.isalnum() else "_" for letter in self.model)
        return f"{label}-{artifact.fingerprint(self.model)[:6]}-seed{self.seed}"


def run_benchmark(benchmark: BenchmarkConfig, workdir: Path, overrides: Overrides, jobs: int) -> list[dict[str, Any]]:
    """Runs whatever has no result yet.

    Args:
        overrides: config keys of every run, which override those of the file.
        jobs: number of models trained at a time, each in its own process.

    Returns:
        One result per run: {"dataset", "model", "seed", "config", "epochs", "best_epoch", "seconds",
        "positives_per_second", "lists": {merge: {metric: {"value", "low", "high"}}}, "fingerprint"}; the
        file for `read_per_user` is stored beside it under that fingerprint.

    Raises:
        ValueError: another benchmark holds the workdir, a config or a metric's name is not valid, the data cannot be
            prepared, or runs failed; those that did not are finished first.
        RuntimeError: runs failed, at least one of them not by a user's mistake.
    """
    with holding(Workdir(workdir)):
        runs = [
            _plan(benchmark, workdir, dataset, name, model, seed, overrides)
            for dataset in benchmark.datasets
            for seed in benchmark.seeds
            for name, model in benchmark.all_models().items()
        ]
        _require_measured(benchmark, runs)
        for run in {str(run.workdir.path): run for run in runs}.values():
            run_stages(STAGES, run.data_config, run.workdir, last="windows")
        results: dict[Key, dict[str, Any]] = {}
        errors = _run_all([run for run in runs if run.seconds_of is None], run_results(workdir), jobs, results)
        # A model whose time limit comes from another model follows it.
        followers = [_with_budget(run, run.seconds_of, results) for run in runs if run.seconds_of is not None]
        errors += _run_all([run for run in followers if run is not None], run_results(workdir), jobs, results)
    missing = [run for run in runs if run.key not in results]
    if missing:
        kind = ValueError if all(isinstance(error, ValueError) for error in errors) else RuntimeError
        raise kind(
            f"no table was written, since {len(missing)} of {len(runs)} runs have no result, for the reasons above: "
            f"{'; '.join(map(str, missing))}. The results of the others are kept in {workdir}; run again, or restrict "
            "the runs with --dataset, --model and --seed"
        ) from errors[0]
    return [results[run.key] for run in runs]


def run_results(workdir: Path) -> Path:
    """Directory of the results of a benchmark's runs, a file per run."""
    return workdir / "results"


def _require_measured(benchmark: BenchmarkConfig, runs: list[Run]) -> None:
    """Refuses metrics that the file names but no run measures; the default ones are shown if they are measured."""
    ks = sorted({k for run in runs for k in run.config.evaluation.ks})
    measured = metric_names(ks)
    unknown = [name for name in benchmark.metrics if name not in measured]
    if unknown and "metrics" in benchmark.model_fields_set:
        raise ValueError(
            f"metrics: no run measures {', '.join(unknown)}; with evaluation.ks={ks}, runs measure "
            f"{', '.join(sorted(measured))}"
        )


def _plan(
    benchmark: BenchmarkConfig,
    workdir: Path,
    dataset: str,
    name: str,
    model: BenchmarkModel,
    seed: int,
    overrides: Overrides,
) -> Run:
    for keys in (benchmark.set, benchmark.datasets[dataset].set, model.set, overrides):
        if "seed" in keys:
            raise ValueError(f"seed={keys['seed']} is set as a config key: set seeds with `seeds` or --seed instead")
    keys = {**benchmark.set, **model.set, **overrides, "seed": seed}
    try:
        config = dataset_config(benchmark.datasets[dataset], workdir / "datasets" / dataset, keys)
    except ConfigError as error:
        raise ConfigError(f"model {name!r} on {dataset}: {error}") from None
    untrained = model.baseline if model.baseline in UNTRAINED else None
    of_trained_baseline = model.baseline is not None and untrained is None
    return Run(
        dataset=dataset,
        model=name,
        seed=seed,
        config=baseline_config(config, str(model.baseline)) if of_trained_baseline else config,
        data_config=config.model_copy(update={"seed": _DATA_SEED}),
        workdir=data_workdir(config, workdir / dataset),
        merges=_BASELINE_MERGES if model.baseline is not None else benchmark.merges,
        seconds_of=model.seconds_of,
        untrained=untrained,
    )


def dataset_config(dataset: BenchmarkDataset, converted: Path, keys: Mapping[str, Any]) -> Config:
    """The config that reads a data set, with `keys` over it. A sequence file is converted into `converted`."""
    own = {
        key: value.replace("{path}", dataset.path) if isinstance(value, str) else value
        for key, value in dataset.set.items()
    }
    if dataset.sequences is not None:
        sequences.convert(Path(dataset.path) / dataset.sequences, converted)
        own = {"data.events": str(converted.absolute() / sequences.EVENTS), **own}
    assignments = [f"{key}={json.dumps(value)}" for key, value in {**own, **keys}.items()]
    return load_config(Path(dataset.config) if dataset.config else None, assignments)


def _with_budget(run: Run, seconds_of: str, results: Mapping[Key, dict[str, Any]]) -> Run | None:
    """The run, with the time of the run `seconds_of` as its limit; None if that run failed."""
    leader = results.get((run.dataset, seconds_of, run.seed))
    if leader is None:
        log.error("benchmark: %s: not run, since its time limit comes from %s, which failed", run, seconds_of)
        return None
    training = run.config.training.model_copy(update={"max_seconds": leader["seconds"]})
    return replace(run, config=run.config.model_copy(update={"training": training}))


def _run_all(runs: list[Run], folder: Path, jobs: int, results: dict[Key, dict[str, Any]]) -> list[Exception]:
    """Adds to `results`; returns the errors of the runs that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    waiting, errors = {}, []
    with training_processes(jobs) as submit:
        for run in runs:
            path = folder / f"{_fingerprint(run)}.json"
            if path.exists():
                results[run.key] = json.loads(path.read_text(encoding="utf-8"))
            else:
                waiting[submit(train_and_measure, run, _fingerprint(run), folder)] = run, path
        for number, future in enumerate(as_completed(waiting), 1):
            run, path = waiting[future]
            try:
                results[run.key] = future.result()
            except Exception as error:
                errors.append(error)
                traceback = None if isinstance(error, ValueError) else error
                log.error("benchmark: %d of %d failed: %s: %s", number, len(waiting), run, error, exc_info=traceback)
            else:
                artifact.write_json(path, results[run.key])
                log.info("benchmark: %d of %d done: %s", number, len(waiting), run)
    return errors


def _fingerprint(run: Run) -> str:
    """Fingerprint of a result: of the model and of what is measured on it."""
    lists = [merge.model_dump() for merge in run.merges], run.config.serving.exploration_share
    return _fingerprint_of(run, ("seed", "model", "groups", "training", "evaluation"), lists, run.untrained)


def _model_fingerprint(run: Run) -> str:
    """Fingerprint of what training reads. Other ks and merges are not part of it: the existing model is measured."""
    return _fingerprint_of(run, ("seed", "model", "groups", "training"))


def _fingerprint_of(run: Run, sections: tuple[str, ...], *parts: object) -> str:
    windows = artifact.read_manifest(run.workdir.windows.path).fingerprint
    tree = run.config.model_dump(mode="json")
    settings = {section: tree[section] for section in sections}
    # The windows' fingerprint holds the code before it. A table of models by two codes would compare the codes.
    return artifact.fingerprint(artifact.code_of("trainer"), run.dataset, run.model, windows, settings, *parts)


def train_and_measure(run: Run, fingerprint: str, folder: Path) -> dict[str, Any]:
    """Trains a run's model, unless it exists, and measures it on the test split; metrics per user go into `folder`."""
    from trainer.evaluate import evaluate_lists
    from trainer.train import train

    history: list[dict[str, Any]] = []
    best = 0
    if run.untrained is None:
        model, wanted = run.workdir.model(run.name), _model_fingerprint(run)
        if not artifact.find_current(model.path, wanted):
            train(run.config, run.workdir, run.name, wanted)
        history = json.loads(model.history.read_text(encoding="utf-8"))
        best = artifact.read_manifest(model.path).details["best"]["epoch"]
    pairs = [(merge.merge, merge.alpha) for merge in run.merges]
    found = evaluate_lists(run.config, run.workdir, run.untrained or run.name, Split.TEST, pairs)
    lists = {merge.label: metrics for merge, metrics in zip(run.merges, found, strict=True)}
    write_per_user(folder, fingerprint, {label: metrics.per_user for label, metrics in lists.items()})
    return {
        "dataset": run.dataset,
        "model": run.model,
        "seed": run.seed,
        "config": run.config.model_dump(mode="json"),
        "epochs": sum(entry["epoch"] > 0 for entry in history),  # 0: a warm start's first validation
        "best_epoch": best,
        "seconds": sum(entry["seconds"] for entry in history if 0 < entry["epoch"] <= best),
        "positives_per_second": history[-1]["positives_per_second"] if history else None,
        "lists": {label: metrics.table for label, metrics in lists.items()},
        "fingerprint": fingerprint,
    }
