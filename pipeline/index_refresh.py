"""`dnc index`: a new version of the servable for today's items and groups, from a model that is already trained."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contracts import artifact
from contracts.config import Config
from contracts.config_io import read_stored_config
from contracts.layout import MAIN_MODEL, Workdir
from pipeline.applied_transform import apply_transform, require_same_features
from pipeline.runner import run_stages
from pipeline.stage import Stage
from pipeline.stages import STAGES, VALIDATE_ALONE, exported_servable, manifest_of


@dataclass(frozen=True)
class Refreshed:
    """The outcome of an index refresh.

    Attributes:
        version: the version directory.
        kept_items, new_items: how many items of the catalogue the model knows, and does not know.
        num_groups: K.
        rebuilt_groups: groups whose index was rebuilt; the others' indexes were taken from the last version. None if
            search is exact and has no index.
    """

    version: Path
    kept_items: int
    new_items: int
    num_groups: int
    rebuilt_groups: list[int] | None

    @property
    def indexed(self) -> str:
        """What has become of the groups' indexes, in words."""
        if self.rebuilt_groups is None:
            return f"groups searched exactly, without an index: {self.num_groups}"
        return f"{len(self.rebuilt_groups)} of {self.num_groups} groups reindexed"


def refresh_index(config: Config, workdir: Workdir, trained: Workdir) -> Refreshed:
    """Runs the stages up to the windows on the config's data, and exports `trained`'s model for its catalogue.

    Args:
        config: its sections data and groups say which items there are and where they belong; the model's sections
            must be those that it was trained with. Without `groups.previous`, groups continue the trained run's.
        workdir: where every artifact goes.
        trained: the run that holds the model. It is not changed.

    Raises:
        ValueError: `workdir` holds a trained run; a stage refused its input; the model does not fit; clients of the
            last version would break.
    """
    if trained.path.resolve() == workdir.path.resolve():
        raise ValueError(
            f"-w and --model both name {workdir.path}: an index refresh reads a trained run and must write to another "
            "one"
        )
    if workdir.metrics.exists():
        raise ValueError(
            f"-w {workdir.path} holds a trained run, in place of whose model an index refresh would put that of "
            f"{trained.path}: name another directory"
        )
    artifact.require_this_version(trained.model(MAIN_MODEL).path)
    run_stages(_stages(trained), _continuing(config, trained), workdir)
    return _outcome(workdir)


def _continuing(config: Config, trained: Workdir) -> Config:
    """The config with the model and the groups of the trained run: if numbered anew, all groups would change."""
    training = config.training.model_copy(update={"warm_start": str(trained.path.absolute())})
    groups = config.groups
    if groups.previous is None:
        artifact.read_manifest(trained.item_groups.path)
        groups = groups.model_copy(update={"previous": str(trained.item_groups.path.absolute())})
    return config.model_copy(update={"training": training, "groups": groups})


def _stages(trained: Workdir) -> tuple[Stage, ...]:
    """The stages of a run, with the transform and the model taken over instead of fitted, and no evaluation."""
    by_name = {stage.name: stage for stage in STAGES}
    transform = replace(
        by_name["transform"],
        summary=f"apply the transform graphs of {trained.path} to this catalogue",
        rooms=("trainer", "serving", "pipeline"),
        run=functools.partial(apply_transform, trained),
        check=functools.partial(require_same_features, trained),
        sources=lambda config: manifest_of(str(trained.transform.path)),
    )
    carry = replace(
        by_name["train"],
        name="carry",
        summary=f"take the model of {trained.path} for this catalogue",
        outputs=lambda config, workdir: (workdir.model(MAIN_MODEL).path,),
        run=_carry,
        check=functools.partial(_require_same_model, trained),
        sources=lambda config: manifest_of(str(trained.model(MAIN_MODEL).path)),
    )
    export = replace(by_name["export"], after=("carry",), summary="write the next version; rebuild changed groups")
    data = [by_name[name] for name in ("ingest", "statistics", "groups")]
    windows = replace(by_name["windows"], run=_windows)
    return (*data, transform, windows, carry, export, VALIDATE_ALONE)


def _require_same_model(trained: Workdir, config: Config) -> None:
    """Weights of the right shapes are not enough: with other heads, or without a layer, they mean something else."""
    earlier = read_stored_config(trained.model(MAIN_MODEL).config)
    known, wanted = _of_model(earlier), _of_model(config)
    wanted["windows.length"] = max(wanted["windows.length"], known["windows.length"])  # all of a shorter one is trained
    differing = [
        f"{key}={value!r} (trained with {known.get(key)!r})" for key, value in wanted.items() if value != known.get(key)
    ]
    if earlier.data.feedback.has_context != config.data.feedback.has_context:
        differing.append(
            "data.feedback.history_level (histories hold events below target_level in only one of the runs)"
        )
    if earlier.data.request_features != config.data.request_features:
        differing.append("data.request_features")
    if differing:
        raise ValueError(
            f"{', '.join(differing)}: the model in {trained.path} was trained with other settings, and an index "
            "refresh trains nothing: use that run's settings, or train with training.warm_start"
        )


def _of_model(config: Config) -> dict[str, Any]:
    """The settings that determine which weights a model has and what they mean: name -> value.

    For features, only what `require_same_features` does not know: how the graph parses a cell.
    """
    sections = {"model": config.model.model_dump(), "training.loss": config.training.loss.model_dump()}
    settings = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    embedding_dim = config.groups.embedding_dim if config.model.use_cooccurrence else None
    settings |= {"groups.embedding_dim": embedding_dim, "windows.length": config.windows.length}
    settings["windows.repeats"] = config.windows.repeats
    for name, table in (("item_features", config.data.item_features), ("user_features", config.data.user_features)):
        for feature in table.features if table else ():
            settings[f"data.{name}: kind of {feature.name}"] = feature.kind
            if feature.kind == "tokens":
                settings[f"data.{name}: separator of {feature.name}"] = feature.separator
    return settings


def _windows(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from beam_jobs import windows

    windows.run(config, workdir, fingerprint, advises=False)


def _carry(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from trainer.carry_over import carry_over

    carry_over(config, workdir, fingerprint)


def _outcome(workdir: Workdir) -> Refreshed:
    from serving.export import read_servable_manifest

    version = exported_servable(workdir)
    counts = artifact.read_manifest(workdir.model(MAIN_MODEL).path).counts
    manifest = read_servable_manifest(version)
    return Refreshed(
        version=version,
        kept_items=counts["kept_items"],
        new_items=counts["new_items"],
        num_groups=manifest.counts["groups"],
        rebuilt_groups=manifest.details.get("rebuilt_groups"),
    )
