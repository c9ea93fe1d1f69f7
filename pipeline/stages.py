"""The stages in their order. Heavy libraries are imported when a stage runs, not before."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import beam_jobs  # noqa: F401  (with it, workdirs and logs may be in object stores)
from contracts import artifact
from contracts.config import Config
from contracts.config.data import MEASURE_NEW_USERS
from contracts.errors import TooFewEvents
from contracts.layout import MAIN_MODEL, Workdir
from contracts.patterns import matching
from contracts.storage import as_path
from pipeline.stage import Stage
from serving.versions import exported_as, remove_unvalidated, version_of


def _job(name: str) -> Callable[[Config, Workdir, str], None]:
    """The run function of a Beam job."""

    def run(config: Config, workdir: Workdir, fingerprint: str) -> None:
        importlib.import_module(f"beam_jobs.{name}").run(config, workdir, fingerprint)

    return run


def _model_configs(config: Config) -> dict[str, Config]:
    """The models to train: the product, and the baselines that it is measured against."""
    from trainer.evaluation.baselines import baseline_configs

    return {MAIN_MODEL: config, **baseline_configs(config)}


def _require_users(config: Config, workdir: Workdir) -> None:
    """Raises TooFewEvents before training if the model could not be measured."""
    counts = artifact.read_manifest(workdir.windows.path).counts
    for split in ("validation", "test"):
        if not counts[f"{split}_users"]:
            know_all, have_nothing = counts[f"{split}_repeat_targets"], counts[f"{split}_users_without_history"]
            why = f"{know_all:,} of its users have no item that is new to them, {have_nothing:,} no event before it"
            if not know_all + have_nothing:
                why = "it has no users, e.g. as no history reaches split.min_user_events or data.columns is wrong"
            elif have_nothing > know_all and config.split.new_users == "leave_out":
                why += f" (if they come only once, {MEASURE_NEW_USERS})"
            raise TooFewEvents(
                f"no user can be measured on the {split} split: {why}; change the section split, or add more events "
                "(in a retrain: raise retrain.window_spans, change retrain.validation_users, or wait for the next span)"
            )


def _train(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from trainer.train import train

    _require_users(config, workdir)
    for name, model_config in _model_configs(config).items():
        if not artifact.find_current(workdir.model(name).path, fingerprint):
            train(model_config, workdir, name, fingerprint)


def _trained_models(config: Config, workdir: Workdir) -> tuple[Path, ...]:
    return tuple(workdir.model(name).path for name in _model_configs(config))


def _evaluate(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from trainer.evaluate import write_evaluation

    write_evaluation(config, workdir, fingerprint)


def _export(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from serving.export import export

    with artifact.writing(workdir.export, Workdir.EXPORT_KIND, fingerprint) as writer:
        # Leftovers of exports that died, e.g. by filling the disk: each new try would find less room.
        named = exported_servable(workdir) if artifact.find_manifest(workdir.export) else None
        remove_unvalidated(config, workdir, but=named)
        exported = export(config, workdir, MAIN_MODEL, fingerprint)
        version = version_of(exported)
        writer.details.update(model_name=version.parent.name, version=int(version.name))
    remove_unvalidated(config, workdir, but=exported)  # not before the manifest names another one


def _validate(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from serving.validate import validate
    from serving.validation.servable_evaluation import evaluate_servable

    servable = exported_servable(workdir)
    validate(config, workdir, servable, fingerprint, evaluate_servable(config, workdir, servable))


def _validate_alone(config: Config, workdir: Workdir, fingerprint: str) -> None:
    from serving.validate import validate

    validate(config, workdir, exported_servable(workdir), fingerprint)


def exported_servable(workdir: Workdir) -> Path:
    """The directory that the last export wrote: a version once it is validated.

    Raises:
        ArtifactError: nothing was exported yet.
    """
    details = artifact.read_manifest(workdir.export).details
    return exported_as(workdir.servable(details["model_name"]) / str(details["version"]))


def _warm_start_model(config: Config) -> str | None:
    source = config.training.warm_start
    return None if source is None else str(Workdir(Path(source)).model(MAIN_MODEL).path)


def _require_what_training_takes(config: Config) -> None:
    from trainer.losses.enough_negatives import require_negatives

    for model_config in _model_configs(config).values():
        # The catalogue does not exist yet, but will have at least one item.
        groups_match_windows = model_config.groups.num_groups == config.groups.num_groups
        require_negatives(model_config, 1, groups_match_windows)
    if config.training.warm_start is not None:
        for name in _model_configs(config):
            source = Workdir(Path(config.training.warm_start)).model(name).path
            if artifact.find_manifest(source) is None:
                raise ValueError(
                    f"training.warm_start={config.training.warm_start!r} has no model {source}: name "
                    "the workdir of a finished run with the same evaluation.baselines, or omit it"
                )
            artifact.require_this_version(source)
    if config.training.replicas > 1:
        from trainer.replicas import strategy_of

        # Now, as stages that run earlier in this process fix TensorFlow's devices.
        strategy_of(config.training.replicas)


def _require_previous_groups(config: Config) -> None:
    if config.groups.previous is not None:
        from beam_jobs.grouping.stable_groups import previous_manifest

        previous_manifest(config.groups.previous)


def _require_mined_from(config: Config) -> None:
    mined_from = config.windows.mined_from
    if not config.windows.mined_negatives or not mined_from:
        return
    if not matching(glob.escape(mined_from)):
        raise ValueError(
            f"windows.mined_from={mined_from!r} does not exist: write it with `python -m trainer.item_embeddings`"
        )
    from beam_jobs.sampling.mined_neighbors import require_item_embeddings

    require_item_embeddings(mined_from)


def _feature_tables(config: Config) -> tuple[str, ...]:
    tables = (config.data.user_features, config.data.item_features)
    return tuple(table.path for table in tables if table is not None)


def manifest_of(previous: str | None) -> tuple[str, ...]:
    """The file that shows whether the artifact of another run has changed."""
    # Escaped, since sources are patterns: the directory is one path, whatever characters are in it.
    if previous is None:
        return ()
    return (glob.escape(str(artifact.current(as_path(previous)) / artifact.MANIFEST_NAME)),)


_OF_CATALOGUE = ("statistics", "groups", "transform", "windows")
"""Stages that training and all later ones read from: each may have been run anew while the model was not."""

STAGES = (
    Stage(
        "ingest",
        "validate the log into columnar events",
        after=(),
        sections=("data", "split"),
        rooms=("beam_jobs",),
        outputs=lambda config, workdir: (workdir.events.path,),
        run=_job("ingest"),
        remote=True,
        sources=lambda config: (
            *config.data.events,
            *_feature_tables(config),
            *manifest_of(config.data.previous),
        ),
    ),
    Stage(
        "statistics",
        "count items and users, fix the vocabularies",
        after=("ingest",),
        sections=("data", "windows.popularity_exponent"),
        rooms=("beam_jobs",),
        outputs=lambda config, workdir: (workdir.item_statistics.path,),
        run=_job("statistics"),
        remote=True,
        sources=_feature_tables,
    ),
    Stage(
        "groups",
        "embed items by co-occurrence, partition them into groups",
        after=("ingest", "statistics"),
        sections=("data", "groups", "seed"),
        rooms=("beam_jobs",),
        outputs=lambda config, workdir: (workdir.item_groups.path,),
        run=_job("groups"),
        remote=True,
        check=_require_previous_groups,
        sources=lambda config: manifest_of(config.groups.previous),
    ),
    Stage(
        "transform",
        "fit and apply the TFT graphs of user and item features",
        after=("statistics",),
        sections=("data",),
        rooms=("beam_jobs",),
        outputs=lambda config, workdir: (workdir.transform.path,),
        run=_job("transform"),
        remote=True,
    ),
    Stage(
        "windows",
        "write group-tagged TFRecords with in-group negatives",
        after=("ingest", "statistics", "groups"),
        sections=("windows", "seed"),
        rooms=("beam_jobs",),
        outputs=lambda config, workdir: (workdir.windows.path,),
        run=_job("windows"),
        remote=True,
        check=_require_mined_from,
        sources=lambda config: () if config.windows.mined_from is None else (glob.escape(config.windows.mined_from),),
    ),
    Stage(
        "train",
        "train the model and its baselines",
        after=_OF_CATALOGUE,
        sections=("model", "training", "seed"),
        rooms=("trainer",),
        outputs=_trained_models,
        run=_train,
        check=_require_what_training_takes,
        sources=lambda config: manifest_of(_warm_start_model(config)),
    ),
    Stage(
        "evaluate",
        "rank the whole catalogue for every test user",
        after=(*_OF_CATALOGUE, "train"),
        sections=("evaluation", "serving.merge", "serving.alpha", "serving.exploration_share", "seed"),
        rooms=("trainer",),
        outputs=lambda config, workdir: (workdir.evaluation,),
        run=_evaluate,
    ),
    Stage(
        "export",
        "write one SavedModel with an index per group",
        after=(*_OF_CATALOGUE, "train"),
        sections=("serving", "seed"),
        rooms=("serving",),
        outputs=lambda config, workdir: (workdir.export,),
        bases=lambda config, workdir: tuple(map(workdir.servable, config.serving.servable_names().values())),
        run=_export,
    ),
    Stage(
        "validate",
        "replay requests in a fresh process against brute force",
        after=(*_OF_CATALOGUE, "train", "evaluate", "export"),
        sections=("serving",),
        rooms=("serving",),
        outputs=lambda config, workdir: (workdir.validation,),
        run=_validate,
    ),
)

VALIDATE_ALONE = replace(STAGES[-1], after=(*_OF_CATALOGUE, "export"), run=_validate_alone)
"""The last stage of runs that do not evaluate: it leaves the servable's metrics out."""
