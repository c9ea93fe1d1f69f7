"""Export: a trained model and the item groups become one version of a servable."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.artifact import Manifest, write_json
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from serving.exact_index import ExactIndexSet
from serving.exploration import Exploration
from serving.features import ItemLookup, UserFeatures, user_feature_configs
from serving.group_index import GroupIndex, build_group_index
from serving.index_set import ScannIndexSet
from serving.requests import spaced_rows, user_requests
from serving.retriever import IndexSet, Retriever
from serving.warmup import WARMUP_FILE, write_warmup
from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers
from trainer.model import TwoTowerModel
from trainer.ranking import encode_users
from trainer.train import load_model

MANIFEST_FILE = Path("assets.extra") / "manifest.json"
FORMULA = "score(u, i) = <e_{u,g(i)}, v_i> + alpha * log max(p(g(i) | u), 1e-20) + log group_boost_g(i)"

_TUNING_USERS = 256
_EMBEDDING_CHUNK = 16_384
_STAGING_MARK = ".staging-"


def export(config: Config, workdir: Workdir, model_name: str, fingerprint: str) -> Path:
    """Writes the next version of each servable of a trained model, one for each of `serving.indexes`.

    Args:
        config: what the model was trained with.
        workdir: holds the model, the catalogue, the transform graphs and the windows.
        model_name: name of the model under `workdir.models`.
        fingerprint: identifies the inputs, for the manifest.

    Returns:
        The version directory of the first index, below `workdir.servable(config.serving.model_name)`;
        `exported_versions` names the others. Each appears whole: it is written beside and renamed,
        so that a server that polls never sees a part.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: the model's embeddings cannot be indexed.
    """
    catalogue = Catalogue.for_config(config, workdir)
    model = load_model(config, workdir, model_name)
    embeddings = embed_catalogue(model, catalogue.num_items)
    members = [np.flatnonzero(catalogue.group_id == group).astype(np.int32) for group in range(catalogue.num_groups)]
    item_lookup = ItemLookup(workdir.transform)
    user_features = UserFeatures(config, workdir.transform, catalogue)
    warmup = user_requests(workdir, catalogue, Split.VALIDATION, config.serving.warmup_requests)
    exploration = Exploration(embeddings, catalogue.group_id, catalogue.train_count == 0, catalogue.num_groups)
    names = config.serving.servable_names()
    number = max(next_version(workdir.servable(name)) for name in names.values())
    for index, name in names.items():
        started = time.monotonic()
        index_set: IndexSet
        if index == "scann":
            indexes = build_indexes(config, tuning_queries(workdir, model), embeddings, members)
            index_set = ScannIndexSet(indexes, [m for m in members if len(m)], catalogue.num_groups)
            groups = [index.describe() for index in indexes]
        else:
            index_set = ExactIndexSet(embeddings, members)
            groups = [{"group_id": group, "size": len(items)} for group, items in enumerate(members) if len(items)]
        retriever = Retriever(config, catalogue, model, item_lookup, user_features, index_set, exploration)
        with _appearing(workdir.servable(name) / str(number)) as staging:
            save(retriever, staging)
            write_warmup(staging, warmup, name)
            manifest = Manifest(
                kind="servable",
                fingerprint=fingerprint,
                counts={"items": catalogue.num_items, "groups": catalogue.num_groups, "warmup_requests": len(warmup)},
                files=["saved_model.pb", str(WARMUP_FILE)],
                details={"model": model_name, "index": index, **_details(config), "groups": groups},
                seconds=round(time.monotonic() - started, 3),
            )
            write_json(staging / MANIFEST_FILE, asdict(manifest))
    return workdir.servable(config.serving.model_name) / str(number)


def exported_versions(config: Config, workdir: Workdir, version: Path) -> dict[str, Path]:
    """Index -> version directory of every servable that was exported together with `version`."""
    return {
        index: version if name == config.serving.model_name else workdir.servable(name) / version.name
        for index, name in config.serving.servable_names().items()
    }


@contextmanager
def _appearing(version: Path) -> Iterator[Path]:
    """A directory to write to, renamed to `version` at the end.

    It lies beside the base path, not below it: a server takes any numbered directory below for a version.
    """
    base = version.parent
    base.mkdir(parents=True, exist_ok=True)
    for left in base.parent.glob(f"{base.name}{_STAGING_MARK}*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = base.parent / f"{base.name}{_STAGING_MARK}{uuid.uuid4().hex[:8]}"
    try:
        yield staging
        os.rename(staging, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def tuning_queries(workdir: Workdir, model: TwoTowerModel) -> np.ndarray:
    """float32 [num_queries, num_groups, dim], of validation users, evenly spaced."""
    users = EvaluationUsers.load(workdir, Split.VALIDATION)
    rows = spaced_rows(len(users), _TUNING_USERS)
    sample = EvaluationUsers(
        users.user_index[rows], users.history.take(rows), users.seen.take(rows), users.targets.take(rows)
    )
    return encode_users(model, sample)[0]


def build_indexes(
    config: Config, queries: np.ndarray, embeddings: np.ndarray, members: Sequence[np.ndarray]
) -> list[GroupIndex]:
    """The ScaNN index of every group that is not empty.

    Args:
        config: thresholds and the recall target.
        queries: float32 [num_queries, num_groups, dim] to tune on.
        embeddings: float32 [num_items + 1, dim], by item_index.
        members: of each group, int32 [size], its items.
    """
    return [
        build_group_index(group, embeddings[items], np.ascontiguousarray(queries[:, group]), config.serving)
        for group, items in enumerate(members)
        if len(items)
    ]


def embed_catalogue(model: TwoTowerModel, num_items: int) -> np.ndarray:
    """float32 [num_items + 1, dim], row 0 being padding."""
    starts = range(0, num_items + 1, _EMBEDDING_CHUNK)
    chunks = [tf.range(start, min(start + _EMBEDDING_CHUNK, num_items + 1), dtype=tf.int64) for start in starts]
    return np.concatenate([model.candidate_embeddings(chunk).numpy() for chunk in chunks])


def save(retriever: Retriever, path: Path) -> None:
    """Writes the SavedModel. The functions hang on the module for as long as it is saved."""
    signatures = retriever.signatures()
    retriever.exported = signatures
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(retriever, str(path), signatures=signatures, options=options)


def next_version(base: Path) -> int:
    """One more than the last version below `base`, or 1."""
    found = base.iterdir() if base.exists() else ()
    return max((int(path.name) for path in found if path.name.isdigit()), default=0) + 1


def _details(config: Config) -> dict[str, Any]:
    serving = config.serving
    return {
        "embedding_dim": config.model.embedding_dim,
        "merge": serving.merge,
        "formula": FORMULA,
        "defaults": {"num_candidates": serving.num_candidates, "alpha": serving.alpha},
        "recall_target": serving.recall_target,
        "user_features": [feature.name for feature in user_feature_configs(config)],
    }
