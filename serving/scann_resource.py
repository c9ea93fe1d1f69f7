"""ScaNN indexes as resources: made when a servable is loaded, looked up by their names in a request."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from scann.scann_ops.py import scann_ops

from serving.group_index import HANDLE_ARGUMENTS

_NOTHING: dict[str, Any] = {
    "scann_config": "",
    "serialized_partitioner": "",
    "datapoint_to_token": np.int32(0),
    "ah_codebook": "",
    "hashed_dataset": np.uint8(0),
    "int8_dataset": np.int8(0),
    "int8_multipliers": np.float32(0),
    "dp_norms": np.float32(0),
    "x": np.float32(0),
}


class ScannResources(tf.saved_model.experimental.TrackableResource):
    """Indexes that a SavedModel's loader makes out of assets.

    `TensorsToScann` makes an index under its `shared_name` or, where that name is known, answers with the
    index that is there and looks at no tensor. So a loader runs it once, on the tensors in the asset, and
    a request runs it on empty ones, which costs a lookup instead of reading a variable a tensor; and memory
    holds ScaNN's copy alone. Names must be unique: without them, or with the same, indexes answer for
    each other under `tf.saved_model.load`.
    """

    def __init__(self, tensors: Mapping[str, dict[str, np.ndarray]], folder: Path):
        """Args:

        tensors: file name -> those of a `GroupIndex`.
        folder: an empty one that lasts until the SavedModel is written, which copies the files to its assets.
        """
        super().__init__()
        export_name = uuid.uuid4().hex
        self._stored = [_Stored(f"{export_name}/{name}", of_one, folder / name) for name, of_one in tensors.items()]
        for stored in self._stored:
            self._track_trackable(stored.asset, stored.shared_name)

    def handles(self) -> list[tf.Tensor]:
        """Of the indexes, as `scann_search_batched` takes them."""
        if tf.executing_eagerly():
            self._initialize()
        nothing = {name: tf.constant(value) for name, value in _NOTHING.items()}
        return [scann_ops.tensors_to_scann(**nothing, shared_name=stored.shared_name) for stored in self._stored]

    def _initialize(self) -> tf.Tensor:
        """One function for all, as TensorFlow optimizes a graph's functions one by one before it runs them."""
        for stored in self._stored:
            scann_ops.tensors_to_scann(**stored.read(), shared_name=stored.shared_name)
        return tf.constant(True)

    def _create_resource(self) -> tf.Tensor:
        """What TensorFlow asks of a trackable resource; the indexes are reached by their names instead."""
        return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=f"{self._stored[0].shared_name}/unused")


class _Stored:
    """The tensors of one index in a file."""

    def __init__(self, shared_name: str, tensors: dict[str, np.ndarray], path: Path):
        self.shared_name = shared_name
        self._layout = {name: (tensors[name].dtype, tensors[name].shape) for name in HANDLE_ARGUMENTS}
        contents = [as_bytes(tensors[name]) for name in HANDLE_ARGUMENTS]
        self._lengths = [len(content) for content in contents]
        path.write_bytes(b"".join(contents))
        self.asset = tf.saved_model.Asset(str(path))

    def read(self) -> dict[str, tf.Tensor]:
        content = tf.io.read_file(self.asset.asset_path)
        tensors, start = {}, 0
        for (name, (dtype, shape)), length in zip(self._layout.items(), self._lengths, strict=True):
            if shape:
                part = tf.strings.substr(content, start, length)
                is_text = dtype.kind in "OS"
                tensors[name] = tf.reshape(part if is_text else tf.io.decode_raw(part, tf.as_dtype(dtype)), shape)
            else:  # ScaNN's word for a tensor that this structure has not
                tensors[name] = tf.constant(_NOTHING[name])
            start += length
        return tensors


def as_bytes(tensor: np.ndarray) -> bytes:
    """A number or any of them, or one string, as the asset holds it."""
    if tensor.dtype.kind not in "OS":
        return tensor.tobytes()
    value = tensor.ravel()[0]
    return value if isinstance(value, bytes) else str(value).encode()


def from_bytes(content: bytes, dtype: str, shape: list[int]) -> np.ndarray:
    """The inverse; dtype "object" is a string."""
    if dtype == "object":
        return np.full(shape, content, object)
    return np.frombuffer(content, dtype, math.prod(shape)).reshape(shape)
