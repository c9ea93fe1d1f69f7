"""What a benchmark runs: data sets x models x seeds, as a YAML file below configs/benchmark/."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from contracts.config import BaselineName, Section
from contracts.config_io import ConfigError, explain, read_yaml
from contracts.names import ScoredMerge
from trainer.evaluation.baselines import UNTRAINED
from trainer.evaluation.metric_names import COVERAGE, NDCG, recall_name

Overrides = dict[str, Any]
"""`section.key` -> value."""


class BenchmarkDataset(Section):
    """A data set: the config that reads it, or a sequence file (see `pipeline/datasets/sequences.py`)."""

    path: str = Field(description="its directory; `dnc benchmark --data NAME=PATH` replaces it")
    config: str | None = Field(None, description="YAML config")
    sequences: str | None = Field(None, description="file below `path`")
    set: Overrides = Field({}, description='config keys; "{path}" in a value stands for `path`')


class BenchmarkModel(Section):
    """A row of the table."""

    baseline: BaselineName | None = Field(None, description="None: the product's own model")
    set: Overrides = Field({}, description="config keys")
    seconds_of: str | None = Field(
        None, description="another model: train at most as long as it took to its best epoch, on the same data and seed"
    )


class BenchmarkMerge(Section):
    """How the groups' results become one list."""

    merge: ScoredMerge = "score"
    alpha: float = Field(1.0, ge=0)

    @property
    def label(self) -> str:
        """For tables: "score" or "quota", and alpha."""
        return f"{self.merge} {self.alpha:g}"


class BenchmarkConfig(Section):
    """A table. Its models are those of `models`, then the product of `axes`."""

    title: str
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    set: Overrides = Field({}, description="config keys of every run")
    datasets: dict[str, BenchmarkDataset]
    models: dict[str, BenchmarkModel] = Field({}, description="label -> model")
    axes: tuple[dict[str, Overrides], ...] = Field((), description="each: label -> config keys")
    merges: tuple[BenchmarkMerge, ...] = Field((BenchmarkMerge(),), description="of the product's own models")
    reference: str | None = Field(
        None, description="a model: the others' changes against it are shown, paired over users"
    )
    metrics: tuple[str, ...] = (*map(recall_name, (10, 50, 100, 500, 1000)), NDCG, COVERAGE)

    @model_validator(mode="after")
    def _names_are_known(self) -> BenchmarkConfig:
        models = self.all_models()
        if not models or not self.datasets:
            raise ValueError("a benchmark needs datasets, and models or axes")
        _require_distinct("seeds", self.seeds)
        timed = {name for name, model in models.items() if model.seconds_of is None and model.baseline not in UNTRAINED}
        for name, model in models.items():
            if model.seconds_of is not None and model.seconds_of not in timed:
                raise ValueError(
                    f"models.{name}.seconds_of names {model.seconds_of!r}, which has no training time of its own"
                )
        if self.reference is not None and self.reference not in models:
            raise ValueError(f"reference names {self.reference!r}, which is not one of the models: {', '.join(models)}")
        return self

    def all_models(self) -> dict[str, BenchmarkModel]:
        """Label -> model, in the table's order."""
        result = dict(self.models)
        for labels in itertools.product(*self.axes) if self.axes else ():
            overrides: Overrides = {}
            for axis, label in zip(self.axes, labels, strict=True):
                overrides |= axis[label]
            result[", ".join(labels)] = BenchmarkModel(set=overrides)
        return result

    def restricted_to(self, datasets: Sequence[str], models: Sequence[str], seeds: Sequence[int]) -> BenchmarkConfig:
        """The same table with only these data sets, models and seeds; an empty sequence stands for all.

        Raises:
            ConfigError: there is no such data set or model, or a seed is named twice.
        """
        everything = self.all_models()
        _require_known("--dataset", datasets, self.datasets)
        _require_known("--model", models, everything)
        _require_distinct("--seed", seeds)
        needed = {everything[name].seconds_of for name in models} | set(models or everything)
        return self.model_copy(
            update={
                "datasets": {name: value for name, value in self.datasets.items() if not datasets or name in datasets},
                "models": {name: value for name, value in everything.items() if name in needed},
                "axes": (),
                "seeds": tuple(seeds) or self.seeds,
                "reference": self.reference if self.reference in needed else None,
            }
        )

    def with_paths(self, paths: Sequence[str]) -> BenchmarkConfig:
        """The same table with directories of data sets from `NAME=PATH` texts.

        Raises:
            ConfigError: one has another form, or names no data set.
        """
        replaced = dict(path.partition("=")[::2] for path in paths)
        _require_known("--data", list(replaced), self.datasets)
        for name, place in replaced.items():
            if not place:
                raise ConfigError(f"--data {name!r} must have the form NAME=PATH, e.g. --data {name}=data/{name}")
        datasets = {
            name: value.model_copy(update={"path": replaced.get(name, value.path)})
            for name, value in self.datasets.items()
        }
        return self.model_copy(update={"datasets": datasets})


def _require_known(option: str, names: Sequence[str], known: Mapping[str, object]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"{option} {unknown[0]!r} is not in the benchmark file, which has {', '.join(known)}")


def _require_distinct(field: str, seeds: Sequence[int]) -> None:
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{field} {', '.join(map(str, seeds))} lists a seed twice: list each once")


def load_benchmark(path: Path) -> BenchmarkConfig:
    """Reads a benchmark's YAML file.

    Raises:
        ConfigError: it is missing, not YAML, or a key or value is not valid.
    """
    try:
        return BenchmarkConfig.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(explain(path, error, "see configs/benchmark/")) from None
