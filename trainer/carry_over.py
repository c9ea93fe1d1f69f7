"""A trained model on another catalogue, without training: new items are placed by what is known of them."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tensorflow as tf

from contracts.artifact import Manifest, read_manifest, writing
from contracts.config import Config
from contracts.config_io import read_stored_config
from contracts.layout import MAIN_MODEL, Model, Workdir
from trainer.catalogue import Catalogue
from trainer.evaluation.exploration_share import EXPLORATION_SHARE, exploration_share
from trainer.models.build import build_model
from trainer.models.model_files import save_model
from trainer.training.warm_start import warm_start

log = logging.getLogger(__name__)


def carry_over(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the main model of the run `training.warm_start` as the main model of `workdir`, for its catalogue.

    Items that both runs know keep their vectors; `warm_start` says where the others start.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: the two models differ in more than items, groups and feature values. The message names weights;
            `dnc index` compares the settings beforehand.
    """
    tf.keras.utils.set_random_seed(config.seed)
    catalogue = Catalogue.for_config(config, workdir)
    model = build_model(config, catalogue)
    carried = warm_start(model, config, workdir, MAIN_MODEL, frozen=True)
    if carried.fresh:
        raise ValueError(
            f"the model in {carried.source} has no weights of the shape that this config needs for "
            f"{', '.join(carried.fresh)}, but an index refresh does not train: use that run's windows.length and "
            "groups.embedding_dim, or train with training.warm_start"
        )
    if carried.new_groups:
        log.warning(
            "index: the model in %s knows no item of %d of the %d groups. Their heads stay random, since nothing "
            "trains them, so the quotas and lists of these groups mean little. Train on this log (dnc run with "
            "training.warm_start), or train with groups.method=category, whose groups outlive their items",
            carried.source, carried.new_groups, carried.new_groups + carried.kept_groups,
        )  # fmt: skip
    final = workdir.model(MAIN_MODEL)
    with writing(final.path, Model.KIND, fingerprint) as artifact:
        artifact.counts |= {"kept_items": carried.kept_items, "new_items": carried.new_items}
        save_model(artifact, model, config, history=[])
        source = Workdir(Path(carried.source))
        # With "wb", NumPy gives no reason when it fails on a full disk.
        with Model(artifact.path).trained_items.open("w+b") as stream:
            np.save(stream, _trained_items(catalogue, source))
        artifact.files.append(final.trained_items.name)
        earlier = source.model(MAIN_MODEL)
        share = exploration_share(read_stored_config(earlier.config), read_manifest(earlier.path))
        artifact.details |= {"warm_start": asdict(carried), EXPLORATION_SHARE: share}
    return read_manifest(final.path)


def _trained_items(catalogue: Catalogue, source: Workdir) -> np.ndarray:
    """bool [num_items + 1]: which items the other run's model was trained on; this run's log does not say."""
    earlier = Catalogue.load(source).known_to(source.model(MAIN_MODEL))
    known = set(earlier.item_ids[earlier.is_trained[1:]])
    return np.array([False, *(item in known for item in catalogue.item_ids)])
