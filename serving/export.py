"""Export: a trained model and the item groups become one version of a servable."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.artifact import Manifest, write_json
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from serving.features import ItemLookup, UserFeatures, user_feature_configs
from serving.group_index import GroupIndex, build_group_index
from serving.index_set import ScannIndexSet
from serving.requests import spaced_rows, user_requests
from serving.retriever import Retriever
from serving.warmup import WARMUP_FILE, write_warmup
from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers
from trainer.model import TwoTowerModel
from trainer.ranking import encode_users
from trainer.train import load_model

MANIFEST_FILE = Path("assets.extra") / "manifest.json"
FORMULA = "score(u, i) = <e_{u,g(i)}, v_i> + alpha * log max(p(g(i) | u), 1e-20)"

_TUNING_USERS = 256
_EMBEDDING_CHUNK = 16_384
_STAGING_MARK = ".staging-"


def export(config: Config, workdir: Workdir, model_name: str, fingerprint: str) -> Path:
    """Writes the next version of the servable of a trained model.

    Args:
        config: what the model was trained with.
        workdir: holds the model, the catalogue, the transform graphs and the windows.
        model_name: name of the model under `workdir.models`.
        fingerprint: identifies the inputs, for the manifest.

    Returns:
        The version directory below `workdir.servable(config.serving.model_name)`. It appears
        whole: it is written beside and renamed, so that a server that polls never sees a part.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: the model's embeddings cannot be indexed.
    """
    started = time.monotonic()
    catalogue = Catalogue.for_config(config, workdir)
    model = load_model(config, workdir, model_name)
    indexes, members = build_indexes(config, workdir, catalogue, model)
    retriever = Retriever(
        config,
        catalogue,
        model,
        ItemLookup(workdir.transform),
        UserFeatures(config, workdir.transform, catalogue),
        ScannIndexSet(indexes, members, catalogue.num_groups),
    )
    base = workdir.servable(config.serving.model_name)
    base.mkdir(parents=True, exist_ok=True)
    for left in base.parent.glob(f"{base.name}{_STAGING_MARK}*"):
        shutil.rmtree(left, ignore_errors=True)
    # Beside the base path, not below it: a server takes any numbered directory below for a version.
    staging = base.parent / f"{base.name}{_STAGING_MARK}{uuid.uuid4().hex[:8]}"
    try:
        save(retriever, staging)
        warmup = user_requests(workdir, catalogue, Split.VALIDATION, config.serving.warmup_requests)
        write_warmup(staging, warmup, config.serving.model_name)
        details = _details(config, catalogue, model_name, indexes)
        manifest = Manifest(
            kind="servable",
            fingerprint=fingerprint,
            counts={"items": catalogue.num_items, "groups": catalogue.num_groups, "warmup_requests": len(warmup)},
            files=["saved_model.pb", str(WARMUP_FILE)],
            details=details,
            seconds=round(time.monotonic() - started, 3),
        )
        write_json(staging / MANIFEST_FILE, asdict(manifest))
        version = base / str(next_version(base))
        os.rename(staging, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return version


def build_indexes(
    config: Config, workdir: Workdir, catalogue: Catalogue, model: TwoTowerModel
) -> tuple[list[GroupIndex], list[np.ndarray]]:
    """The index of every group that is not empty, and the item_index of its rows, int32 [size]."""
    users = EvaluationUsers.load(workdir, Split.VALIDATION)
    rows = spaced_rows(len(users), _TUNING_USERS)
    sample = EvaluationUsers(
        users.user_index[rows], users.history.take(rows), users.seen.take(rows), users.targets.take(rows)
    )
    queries, _ = encode_users(model, sample)
    embeddings = embed_catalogue(model, catalogue.num_items)
    indexes, members = [], []
    for group_id in range(catalogue.num_groups):
        items = np.flatnonzero(catalogue.group_id == group_id).astype(np.int32)
        if len(items):
            group_queries = np.ascontiguousarray(queries[:, group_id])
            indexes.append(build_group_index(group_id, embeddings[items], group_queries, config.serving))
            members.append(items)
    return indexes, members


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
    """One more than the last version, or 1."""
    return max((int(path.name) for path in base.iterdir() if path.name.isdigit()), default=0) + 1


def _details(config: Config, catalogue: Catalogue, model_name: str, indexes: list[GroupIndex]) -> dict[str, Any]:
    serving = config.serving
    return {
        "model": model_name,
        "embedding_dim": config.model.embedding_dim,
        "merge": serving.merge,
        "formula": FORMULA,
        "defaults": {"num_candidates": serving.num_candidates, "alpha": serving.alpha},
        "recall_target": serving.recall_target,
        "user_features": [feature.name for feature in user_feature_configs(config)],
        "empty_groups": sorted(set(range(catalogue.num_groups)) - {index.group_id for index in indexes}),
        "groups": [index.describe() for index in indexes],
    }
