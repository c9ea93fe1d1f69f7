"""ScaNN indexes as resources: made when a servable is loaded, their handles kept in a variable for requests."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

from serving.search.group_index import HANDLE_ARGUMENTS, as_array

_CHECKPOINT = "scann"
_CHECKPOINT_FILES = (f"{_CHECKPOINT}.index", f"{_CHECKPOINT}.data-00000-of-00001")
"""TensorFlow's checkpoint format, whose reader restores all tensors of many indexes in one op."""
_READ_AT_ONCE = 2**24
"""Bytes, unless a single index has more. TensorFlow never gives back the memory into which it reads them, though it
uses it for other tensors, and ScaNN copies them. Fewer would mean more ops, which the loader takes time to optimize."""


class ScannResources(tf.saved_model.experimental.TrackableResource):
    """Indexes that a SavedModel's loader makes out of assets.

    The loader runs `TensorsToScann` once per index, on the tensors in the assets, and assigns the handles to
    a variable, which is all that a request reads; so memory holds only ScaNN's copy. Shared names must be unique:
    with equal ones, or none, indexes answer for each other under `tf.saved_model.load`.
    """

    def __init__(self, indexes: Mapping[int, Mapping[str, np.ndarray]], folder: Path):
        """Stores the tensors as the checkpoint that a loader reads.

        Args:
            indexes: group_id -> tensors of a `GroupIndex`.
            folder: an empty folder that exists until the SavedModel is written, which copies the files to its assets.
        """
        super().__init__()
        self._export_name = uuid.uuid4().hex
        self._shared_names = {group_id: f"{self._export_name}/{group_id}" for group_id in indexes}
        stored = {
            _tensor_name(group_id, argument): tensors[argument]
            for group_id, tensors in indexes.items()
            for argument in HANDLE_ARGUMENTS
            if tensors[argument].ndim or tensors[argument].dtype == object
        }
        self._dtypes = {name: tf.as_dtype(tensor.dtype) for name, tensor in stored.items()}
        sizes = {group_id: sum(tensor.nbytes for tensor in indexes[group_id].values()) for group_id in indexes}
        self._parts = _parts(sizes)
        tf.raw_ops.SaveV2(
            prefix=str(folder / _CHECKPOINT),
            tensor_names=list(stored),
            shape_and_slices=[""] * len(stored),
            tensors=list(stored.values()),
        )
        self._assets = [tf.saved_model.Asset(str(folder / name)) for name in _CHECKPOINT_FILES]
        for name, asset in zip(_CHECKPOINT_FILES, self._assets, strict=True):
            self._track_trackable(asset, name)

    def handles(self) -> tf.Tensor:
        """The handles of the indexes, [num_indexes], as `scann_search_batched` takes them."""
        if tf.executing_eagerly():
            self._initialize()
        return tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=tf.resource)

    def _initialize(self) -> tf.Tensor:
        prefix = tf.strings.regex_replace(self._assets[0].asset_path, r"\.index$", "")
        nothing = {name: tf.constant(value) for name, value in HANDLE_ARGUMENTS.items()}
        handles: list[tf.Tensor] = []
        made: list[tf.Tensor] = []
        for part in self._parts:
            with tf.control_dependencies(made):
                restored = self._restored(prefix, part)
            made = [
                scann_ops.tensors_to_scann(
                    **{name: restored.get(_tensor_name(group_id, name), none) for name, none in nothing.items()},
                    shared_name=self._shared_names[group_id],
                )
                for group_id in part
            ]
            handles += made
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=tf.stack(handles))
        return tf.constant(True)

    def _restored(self, prefix: tf.Tensor, group_ids: Sequence[int]) -> dict[str, tf.Tensor]:
        """The stored tensors of some indexes, in one op: a few per tensor would take a loader seconds to optimize."""
        names = [_tensor_name(group_id, argument) for group_id in group_ids for argument in HANDLE_ARGUMENTS]
        names = [name for name in names if name in self._dtypes]
        values = tf.raw_ops.RestoreV2(
            prefix=prefix,
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            dtypes=[self._dtypes[name] for name in names],
        )
        return dict(zip(names, values, strict=True))

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(dtype=tf.resource, shape=[len(self._shared_names)], shared_name=self._export_name)


class StoredIndexes:
    """The indexes' tensors in the assets of a SavedModel."""

    def __init__(self, saved_model: Path):
        """Opens the checkpoint in the assets.

        Raises:
            tf.errors.NotFoundError: the SavedModel has no such assets.
        """
        self._reader = tf.train.load_checkpoint(str(saved_model / "assets" / _CHECKPOINT))

    def tensors(self, group_id: int) -> dict[str, np.ndarray]:
        """The tensors of a `GroupIndex`."""
        found = {}
        for argument, nothing in HANDLE_ARGUMENTS.items():
            name = _tensor_name(group_id, argument)
            found[argument] = as_array(self._reader.get_tensor(name) if self._reader.has_tensor(name) else nothing)
        return found


def _parts(sizes: Mapping[int, int]) -> list[list[int]]:
    """group_id -> bytes of its index: the group_ids in order, divided into parts that are read at once."""
    parts: list[list[int]] = []
    room = 0
    for group_id, size in sizes.items():
        if size > room:
            parts.append([])
            room = _READ_AT_ONCE
        parts[-1].append(group_id)
        room -= size
    return parts


def _tensor_name(group_id: int, argument: str) -> str:
    return f"{group_id}/{argument}"
