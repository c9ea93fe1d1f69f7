"""Indexes stored with a servable, so that the next version need not rebuild those that did not change.

Their tensors are assets of the SavedModel, which its loader reads; a small file describes them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.layout import ASSETS_EXTRA
from contracts.storage import write_text
from serving.search.group_index import GroupIndex
from serving.search.index_tuning import SearchPoint
from serving.search.scann_resource import StoredIndexes

log = logging.getLogger(__name__)

INDEXES_FILE = ASSETS_EXTRA / "group_indexes.json"


def write_indexes(version: Path, indexes: Sequence[GroupIndex]) -> None:
    """Writes what `read_indexes` needs besides the SavedModel itself."""
    entries = [
        {**index.describe(), "fingerprint": index.fingerprint, "leaf_sizes": index.leaf_sizes.tolist()}
        for index in indexes
    ]
    path = version / INDEXES_FILE
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps({"groups": entries}))


def read_indexes(version: Path) -> dict[str, GroupIndex]:
    """Fingerprint -> index of a version directory; empty if its indexes are missing or damaged."""
    path = version / INDEXES_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not stored.get("groups"):
            return {}
        tensors = StoredIndexes(version)
        return {entry["fingerprint"]: _index(entry, tensors) for entry in stored["groups"]}
    except (ValueError, LookupError, TypeError, AttributeError, tf.errors.OpError) as error:
        log.warning("%s: its indexes cannot be read (%s); rebuilding those of all groups", version, error)
        return {}


def _index(entry: dict[str, Any], stored: StoredIndexes) -> GroupIndex:
    return GroupIndex(
        group_id=entry["group_id"],
        size=entry["size"],
        structure=entry["structure"],
        tensors=stored.tensors(entry["group_id"]),
        points=tuple(SearchPoint(**point) for point in entry["points"]),
        leaf_sizes=np.array(entry["leaf_sizes"], np.int64),
        fingerprint=entry["fingerprint"],
    )
