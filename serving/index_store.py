"""Indexes kept beside a servable, so that the next version need not build again what did not change.

The large tensors of an index are variables of the SavedModel and are read from there; the rest, which
the graph holds as constants, is in one small file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from serving.group_index import GroupIndex, SearchPoint
from serving.index_set import is_constant

INDEXES_FILE = Path("assets.extra") / "group_indexes.npz"
_VARIABLE = "_index_set/_variables/{position}/{tensor}/.ATTRIBUTES/VARIABLE_VALUE"
"""Where `Retriever` and `ScannIndexSet` put a tensor of an index, as a checkpoint names it."""
_ENTRIES = "entries"
_FORMAT_KEY, _FORMAT = "format", 1
"""A file of another format is as none: its groups are built anew."""


def write_indexes(version: Path, indexes: Sequence[GroupIndex]) -> None:
    """Writes what `read_indexes` needs beside the saved model itself."""
    entries = []
    arrays: dict[str, Any] = {}
    for index in indexes:
        stored = {name: tensor for name, tensor in index.tensors.items() if is_constant(tensor)}
        entries.append(
            {
                "group_id": index.group_id,
                "size": index.size,
                "structure": index.structure,
                "points": [asdict(point) for point in index.points],
                "fingerprint": index.fingerprint,
                "tensors": list(index.tensors),
                "texts": {name: tensor.shape for name, tensor in stored.items() if tensor.dtype.kind in "OS"},
            }
        )
        arrays[f"{index.group_id}/leaf_sizes"] = index.leaf_sizes
        for name, tensor in stored.items():
            arrays[f"{index.group_id}/{name}"] = _as_bytes(tensor) if tensor.dtype.kind in "OS" else tensor
    path = version / INDEXES_FILE
    path.parent.mkdir(exist_ok=True)
    arrays |= {_ENTRIES: np.array(json.dumps(entries)), _FORMAT_KEY: np.array(_FORMAT)}
    np.savez(path, **arrays)


def read_indexes(version: Path) -> dict[str, GroupIndex]:
    """Fingerprint -> index of a version directory; none if it holds no such file."""
    if not (version / INDEXES_FILE).exists():
        return {}
    checkpoint = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    found = {}
    with np.load(version / INDEXES_FILE) as stored:
        if _FORMAT_KEY not in stored or stored[_FORMAT_KEY] != _FORMAT:
            return {}
        for position, entry in enumerate(json.loads(str(stored[_ENTRIES]))):
            tensors: dict[str, Any] = {}
            for name in entry["tensors"]:
                key = f"{entry['group_id']}/{name}"
                if name in entry["texts"]:
                    tensors[name] = np.full(entry["texts"][name], stored[key].tobytes(), object)
                elif key in stored:
                    tensors[name] = stored[key]
                else:
                    tensors[name] = checkpoint.get_tensor(_VARIABLE.format(position=position, tensor=name))
            found[entry["fingerprint"]] = GroupIndex(
                group_id=entry["group_id"],
                size=entry["size"],
                structure=entry["structure"],
                tensors=tensors,
                points=tuple(SearchPoint(**point) for point in entry["points"]),
                leaf_sizes=stored[f"{entry['group_id']}/leaf_sizes"],
                fingerprint=entry["fingerprint"],
            )
    return found


def _as_bytes(text: np.ndarray) -> np.ndarray:
    """A string tensor of one protocol buffer, which may hold any byte, as uint8."""
    (value,) = text.ravel()
    return np.frombuffer(value, np.uint8)
