"""Export: a trained model and the item groups become one version of a servable."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contracts.artifact import MANIFEST_NAME, Manifest, from_json, read_json, read_manifest, write_json
from contracts.config import Config
from contracts.layout import ASSETS_EXTRA, SAVED_MODEL, Workdir
from contracts.names import Split
from serving.graph.compact_graph import save_compact
from serving.graph.exploration import Exploration
from serving.graph.retriever import IndexSet, Retriever
from serving.graph.transform_graphs import UserFeatures, VocabularyLookup, user_feature_configs
from serving.search.exact_index_set import ExactIndexSet
from serving.search.group_index import GroupIndex
from serving.search.index_build import build_indexes, group_members, tuning_queries
from serving.search.index_store import read_indexes, write_indexes
from serving.search.scann_index_set import ScannIndexSet
from serving.signatures import require_compatible
from serving.user_requests import UserRequests, user_requests
from serving.versions import appearing, next_version, predecessor, unvalidated
from serving.warmup import WARMUP_FILE, write_warmup
from trainer.catalogue import Catalogue
from trainer.evaluation.exploration_share import EXPLORATION_SHARE, exploration_share
from trainer.evaluation.merge import MIN_PROBABILITY
from trainer.input.evaluation_users import EvaluationUsers
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel

MANIFEST_FILE = ASSETS_EXTRA / MANIFEST_NAME
FORMULA = "score(u, i) = <e_{u,g(i)}, v_i> + log group_boost_g(i)"
INTENT_TERM = f" + log max(p(g(i) | u), {MIN_PROBABILITY})"


def export(config: Config, workdir: Workdir, model_name: str, fingerprint: str) -> Path:
    """Writes a servable for each of `serving.indexes`; `admit` makes each of them the next version.

    Args:
        config: the config that the model was trained with.
        workdir: holds the model, the catalogue, the transform graphs and the windows.
        model_name: of the trained model, `workdir.model(model_name)`.
        fingerprint: identifies the inputs, for the manifest.

    Returns:
        The servable of the first index, below `workdir.servable(config.serving.model_name)`; `exported_versions`
        names the others. Each appears whole, and no server takes it for a version before it is validated.

    Raises:
        ArtifactError: an artifact is missing.
        ValueError: the model's embeddings cannot be indexed, or clients of the last version would break.
    """
    catalogue = Catalogue.for_config(config, workdir).known_to(workdir.model(model_name))
    model = load_model(config, workdir, model_name, catalogue)
    model.fix_candidates()
    embeddings, members = model.catalogue_embeddings(), group_members(catalogue)
    require_sound(embeddings, catalogue)
    share = exploration_share(config, read_manifest(workdir.model(model_name).path))
    parts = _Parts(
        config=config,
        workdir=workdir,
        model_name=model_name,
        catalogue=catalogue,
        model=model,
        item_lookup=VocabularyLookup(workdir.item_statistics.item_vocabulary, catalogue.num_items),
        user_features=UserFeatures(config, workdir, catalogue),
        exploration=Exploration(embeddings, members, ~catalogue.is_trained, share),
        embeddings=embeddings,
        members=members,
        warmup=user_requests(
            workdir, catalogue, EvaluationUsers.load(workdir, Split.VALIDATION, config.serving.warmup_requests)
        ),
    )
    names = config.serving.servable_names()
    number = max(next_version(workdir.servable(name)) for name in names.values())
    for index, name in names.items():
        _write_version(parts, index, name, number, fingerprint)
    return unvalidated(workdir.servable(config.serving.model_name) / str(number))


def require_sound(embeddings: np.ndarray, catalogue: Catalogue) -> None:
    """Raises ValueError if an item's inner products may not be numbers, which cannot be ranked.

    ScaNN ends the process, with its own message, if the square of a distance is beyond a float.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("id,id->i", embeddings, embeddings)
        broken = np.flatnonzero(~np.isfinite(4 * squares[1:]))
    if broken.size:
        item, vector = str(catalogue.item_ids[broken[0]]), embeddings[1 + broken[0]]
        raise ValueError(
            f"the embeddings of {len(broken):,} of {catalogue.num_items:,} items are too large or not numbers, e.g. "
            f"that of {item!r}, {vector[:4]}.... If only a few are, check their features for a value far beyond all "
            "others. If most are, training diverged: lower training.learning_rate and train again"
        )


def _write_version(parts: _Parts, index: str, name: str, number: int, fingerprint: str) -> None:
    """Writes one servable's directory, whole or not at all."""
    started, warmup = time.monotonic(), parts.warmup
    before = predecessor(parts.config, parts.workdir, name)
    index_set, built, about = parts.indexes(index, before)
    with appearing(unvalidated(parts.workdir.servable(name) / str(number))) as staging:
        save(parts.retriever(index_set), staging)
        if before:
            require_compatible(before, staging, name)
        write_warmup(staging, warmup, name)
        write_indexes(staging, built)
        manifest = Manifest(
            kind=Workdir.SERVABLE_KIND,
            fingerprint=fingerprint,
            counts={
                "items": parts.catalogue.num_items,
                "groups": parts.catalogue.num_groups,
                "warmup_requests": len(warmup),
            },
            files=[SAVED_MODEL, str(WARMUP_FILE)],
            details={"model": parts.model_name, "index": index, **_details(parts.config, parts.exploration), **about},
            seconds=round(time.monotonic() - started, 3),
        )
        write_json(staging / MANIFEST_FILE, asdict(manifest))


def read_servable_manifest(version: Path) -> Manifest:
    """The manifest of a version directory.

    Raises:
        ValueError: the file is damaged.
    """
    remedy = "restore it, or, if a store serves the version, roll back to one that works (dnc rollback)"
    return read_json(version / MANIFEST_FILE, "a manifest", lambda text: from_json(Manifest, text), remedy)


@dataclass(frozen=True)
class _Parts:
    """What all servables of an export share."""

    config: Config
    workdir: Workdir
    model_name: str
    catalogue: Catalogue
    model: TwoTowerModel
    item_lookup: VocabularyLookup
    user_features: UserFeatures
    exploration: Exploration
    embeddings: np.ndarray  # [num_items + 1, dim], by item_index
    members: list[np.ndarray]
    warmup: UserRequests

    def indexes(self, index: str, before: Path | None) -> tuple[IndexSet, list[GroupIndex], dict[str, Any]]:
        """Returns the index set, the ScaNN indexes in it, and their description for the manifest.

        Args:
            index: one of `serving.indexes`.
            before: the last version, whose unchanged indexes are reused.
        """
        if index == "exact":
            sizes = [{"group_id": group, "size": len(items)} for group, items in enumerate(self.members) if len(items)]
            return ExactIndexSet(self.embeddings, self.members), [], {"groups": sizes}
        queries, earlier = tuning_queries(self.workdir, self.model), read_indexes(before) if before else {}
        found = build_indexes(self.config.serving, queries, self.embeddings, self.members, earlier)
        index_set = ScannIndexSet(found.indexes, self.catalogue.num_groups)
        groups = [built.describe() for built in found.indexes]
        return index_set, found.indexes, {"groups": groups, "rebuilt_groups": found.rebuilt}

    def retriever(self, index_set: IndexSet) -> Retriever:
        return Retriever(
            self.config,
            self.catalogue,
            self.model,
            self.item_lookup,
            self.user_features,
            self.members,
            index_set,
            self.exploration,
        )


def save(retriever: Retriever, path: Path) -> None:
    """Writes the SavedModel. The signature functions are attached to the module while it is saved."""
    signatures = retriever.signatures()
    retriever.exported = signatures
    save_compact(retriever, path, signatures)


def _details(config: Config, exploration: Exploration) -> dict[str, Any]:
    serving = config.serving
    return {
        "embedding_dim": config.model.embedding_dim,
        "merge": serving.merge,
        "formula": FORMULA + INTENT_TERM * config.intent_in_score,
        "defaults": {
            "num_candidates": serving.num_candidates,
            "alpha": serving.alpha,
            EXPLORATION_SHARE: exploration.share,
        },
        "recall_target": serving.recall_target,
        "user_features": [feature.name for feature in user_feature_configs(config)],
        "request_features": [feature.name for feature in config.data.request_features],
    }
