"""Export: a trained model and the item groups become one version of a servable."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from contracts.artifact import Manifest, write_json
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from serving.exact_index import ExactIndexSet
from serving.exploration import Exploration
from serving.features import UserFeatures, VocabularyLookup, user_feature_configs
from serving.group_index import GroupIndex
from serving.index_build import build_indexes, embed_catalogue, group_members, tuning_queries
from serving.index_set import ScannIndexSet
from serving.index_store import read_indexes, write_indexes
from serving.requests import user_requests
from serving.retriever import IndexSet, Retriever
from serving.signatures import require_compatible
from serving.versions import appearing, next_version, predecessor
from serving.warmup import WARMUP_FILE, write_warmup
from trainer.catalogue import Catalogue
from trainer.input_pipeline import EvaluationUsers
from trainer.model import TwoTowerModel
from trainer.train import load_model

MANIFEST_FILE = Path("assets.extra") / "manifest.json"
FORMULA = "score(u, i) = <e_{u,g(i)}, v_i> + log group_boost_g(i)"
INTENT_TERM = " + log max(p(g(i) | u), 1e-20)"


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
        ValueError: the model's embeddings cannot be indexed, or clients of the last version would break.
    """
    catalogue = Catalogue.for_config(config, workdir)
    model = load_model(config, workdir, model_name)
    model.fix_candidates()
    embeddings = embed_catalogue(model, catalogue.num_items)
    parts = _Parts(
        config=config,
        catalogue=catalogue,
        model=model,
        item_lookup=VocabularyLookup(workdir.item_statistics.item_vocabulary),
        user_features=UserFeatures(config, workdir, catalogue),
        exploration=Exploration(embeddings, catalogue.group_id, catalogue.train_count == 0, catalogue.num_groups),
    )
    warmup = user_requests(
        workdir, catalogue, EvaluationUsers.load(workdir, Split.VALIDATION, config.serving.warmup_requests)
    )
    members = group_members(catalogue)
    names = config.serving.servable_names()
    number = max(next_version(workdir.servable(name)) for name in names.values())
    for index, name in names.items():
        started = time.monotonic()
        before = predecessor(config, workdir, name)
        details: dict[str, Any] = {"model": model_name, "index": index, **_details(config)}
        built: list[GroupIndex] = []
        index_set: IndexSet
        if index == "scann":
            queries, earlier = tuning_queries(workdir, model), read_indexes(before) if before else {}
            found = build_indexes(config.serving, queries, embeddings, members, earlier)
            built = found.indexes
            index_set = ScannIndexSet(built, [m for m in members if len(m)], catalogue.num_groups)
            details |= {"groups": [index.describe() for index in built], "rebuilt_groups": found.rebuilt}
        else:
            index_set = ExactIndexSet(embeddings, members)
            details["groups"] = [{"group_id": g, "size": len(items)} for g, items in enumerate(members) if len(items)]
        with appearing(workdir.servable(name) / str(number)) as staging:
            save(parts.retriever(index_set), staging)
            if before:
                require_compatible(before, staging, name)
            write_warmup(staging, warmup, name)
            write_indexes(staging, built)
            manifest = Manifest(
                kind="servable",
                fingerprint=fingerprint,
                counts={"items": catalogue.num_items, "groups": catalogue.num_groups, "warmup_requests": len(warmup)},
                files=["saved_model.pb", str(WARMUP_FILE)],
                details=details,
                seconds=round(time.monotonic() - started, 3),
            )
            write_json(staging / MANIFEST_FILE, asdict(manifest))
    return workdir.servable(config.serving.model_name) / str(number)


def read_servable_manifest(version: Path) -> Manifest:
    """The manifest of a version directory."""
    return Manifest(**json.loads((version / MANIFEST_FILE).read_text(encoding="utf-8")))


@dataclass(frozen=True)
class _Parts:
    """What all servables of one export have in common."""

    config: Config
    catalogue: Catalogue
    model: TwoTowerModel
    item_lookup: VocabularyLookup
    user_features: UserFeatures
    exploration: Exploration

    def retriever(self, index_set: IndexSet) -> Retriever:
        return Retriever(
            self.config,
            self.catalogue,
            self.model,
            self.item_lookup,
            self.user_features,
            index_set,
            self.exploration,
        )


def save(retriever: Retriever, path: Path) -> None:
    """Writes the SavedModel. The functions hang on the module for as long as it is saved."""
    signatures = retriever.signatures()
    retriever.exported = signatures
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(retriever, str(path), signatures=signatures, options=options)


def _details(config: Config) -> dict[str, Any]:
    serving = config.serving
    return {
        "embedding_dim": config.model.embedding_dim,
        "merge": serving.merge,
        "formula": FORMULA + INTENT_TERM * config.intent_in_score,
        "defaults": {"num_candidates": serving.num_candidates, "alpha": serving.alpha},
        "recall_target": serving.recall_target,
        "user_features": [feature.name for feature in user_feature_configs(config)],
    }
