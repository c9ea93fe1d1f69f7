"""HandleReloadConfigRequest: sets labels remotely.

TF Serving keeps a reloaded config until it restarts. Here it is written to `serving.json`, so that there is one place
to look, and a restart changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tensorflow_serving.apis import model_pb2

from contracts.serving_labels import CANARY, LABELS_FILE, STABLE, ServingLabels, versions_on_disk, write_labels
from serving.server.errors import Code, RequestError, invalid
from serving.server.model import ServedModel
from serving.server.models import Models


async def reload_labels(models: Models, config: Any) -> None:
    """Applies a ModelServerConfig: each model's labels.

    A single `specific` version without labels becomes `stable`. `latest`, the default, without labels unpins the model:
    its newest version is stable. Versions are served only under labels, so no other policy can be met.

    Raises:
        RequestError: INVALID_ARGUMENT or NOT_FOUND, or FAILED_PRECONDITION if a model's directory may not be written,
            with nothing loaded or changed; FAILED_PRECONDITION if a version of a model cannot be loaded, or its file
            cannot be written or has been written by others meanwhile: neither that model nor those after it are
            changed.
    """
    if not config.HasField("model_config_list") or not config.model_config_list.config:
        raise invalid("the config must have a model_config_list with the models to relabel")
    names = Counter(one.name for one in config.model_config_list.config)
    if repeated := [name for name, times in names.items() if times > 1]:
        raise invalid(f"the config lists {repeated[0]} {names[repeated[0]]} times: list each model only once")
    changes = [(models.model(model_pb2.ModelSpec(name=one.name)), one) for one in config.model_config_list.config]
    planned = []
    for model, one in changes:
        before = await asyncio.to_thread(_written, model.base)
        planned.append((model, await asyncio.to_thread(_labels, model, one), before))
    for model, labels, _ in planned:
        await asyncio.to_thread(_require_writable, model.base, labels)
    for model, labels, before in planned:
        await model.relabel(labels, partial(_write, model.base, before))


def _require_writable(base: Path, labels: ServingLabels | None) -> None:
    """Raises RequestError if `_write` is bound to fail: a load may take minutes, and memory for two versions."""
    to_write = labels is not None or (base / LABELS_FILE).exists()
    if to_write and not os.access(base, os.W_OK):
        remedy = "mount it writable, and let the server's user write to it; or have the file written elsewhere"
        raise RequestError(Code.FAILED_PRECONDITION, f"cannot write {base / LABELS_FILE}: {remedy}")


def _written(base: Path) -> bytes | None:
    """What the labels' file holds, be it labels or not; None if there is none, or none that can be read."""
    try:
        return (base / LABELS_FILE).read_bytes()
    except OSError:
        return None


def _write(base: Path, before: bytes | None, labels: ServingLabels | None) -> None:
    """Writes the labels, unless others, such as `dnc retrain`, have written theirs while versions were loaded."""
    if _written(base) != before:
        said = f"{base / LABELS_FILE} has been written meanwhile: look at it, and ask again if the labels should change"
        raise RequestError(Code.FAILED_PRECONDITION, said)
    if labels is None:
        (base / LABELS_FILE).unlink(missing_ok=True)
    else:
        write_labels(base, labels)


def _labels(model: ServedModel, config: Any) -> ServingLabels | None:
    if config.base_path and Path(config.base_path).absolute() != model.base.absolute():
        raise invalid(f"{model.name} is served from {model.base}; a reload cannot move it to {config.base_path}")
    labels = _wanted_labels(model.name, config)
    if not labels:
        return None
    if not {STABLE} <= set(labels) <= {STABLE, CANARY}:
        raise invalid(f"{model.name}: version_labels must be {STABLE} and, optionally, {CANARY}; got {sorted(labels)}")
    on_disk = versions_on_disk(model.base)
    for label, version in labels.items():
        if version not in on_disk:
            raise invalid(f"{model.name}: label {label} names version {version}; the versions on disk are {on_disk}")
    try:
        return ServingLabels(**labels)
    except ValueError as error:
        raise invalid(f"{model.name}: {error}") from None


def _wanted_labels(name: str, config: Any) -> dict[str, int]:
    """Label -> version of a ModelConfig; empty for the newest version, whichever that will be."""
    policy, labels = config.model_version_policy, dict(config.version_labels)
    kind = policy.WhichOneof("policy_choice") or "latest"
    if kind == "latest" and policy.latest.num_versions <= 1:
        return labels
    versions = set(policy.specific.versions)
    if kind == "specific" and len(versions) == 1 and not labels:
        return {STABLE: versions.pop()}
    if kind == "specific" and versions and versions == set(labels.values()):
        return labels
    raise invalid(
        f"{name}: model_version_policy {{{text_format.MessageToString(policy, as_one_line=True)}}} with version_labels "
        f"{labels} cannot be served: ask for the latest version, for one specific version, or for specific versions, "
        "each with a label"
    )
