"""One ScaNN index as a resource: made when a servable is loaded, looked up by its name in a request."""

from __future__ import annotations

import math
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


class ScannResource(tf.saved_model.experimental.TrackableResource):
    """An index that a SavedModel's loader makes out of an asset.

    `TensorsToScann` makes an index under its `shared_name` or, where that name is known, answers with the
    index that is there and looks at no tensor. So a loader runs it once, on the tensors in the asset, and
    a request runs it on empty ones, which costs a lookup instead of reading a variable a tensor; and memory
    holds ScaNN's copy alone. The name must be unique: without one, or with the same, indexes answer for
    each other under `tf.saved_model.load`.
    """

    def __init__(self, tensors: dict[str, np.ndarray], shared_name: str, path: Path):
        """Writes the tensors (of a `GroupIndex`) to `path`, which the SavedModel copies to its assets."""
        super().__init__()
        self._shared_name = shared_name
        self._layout = {name: (tensors[name].dtype, tensors[name].shape) for name in HANDLE_ARGUMENTS}
        contents = [as_bytes(tensors[name]) for name in HANDLE_ARGUMENTS]
        self._lengths = [len(content) for content in contents]
        path.write_bytes(b"".join(contents))
        self._asset = tf.saved_model.Asset(str(path))
        self._track_trackable(self._asset, "asset")

    def handle(self) -> tf.Tensor:
        """Of the index, as `scann_search_batched` takes it."""
        if tf.executing_eagerly():
            self._initialize()
        return self._op({name: tf.constant(value) for name, value in _NOTHING.items()})

    def _op(self, tensors: dict[str, tf.Tensor]) -> tf.Tensor:
        return scann_ops.tensors_to_scann(**tensors, shared_name=self._shared_name)

    def _initialize(self) -> tf.Tensor:
        content = tf.io.read_file(self._asset.asset_path)
        tensors, start = {}, 0
        for (name, (dtype, shape)), length in zip(self._layout.items(), self._lengths, strict=True):
            part = tf.strings.substr(content, start, length)
            is_text = dtype.kind in "OS"
            tensors[name] = tf.reshape(part if is_text else tf.io.decode_raw(part, tf.as_dtype(dtype)), shape)
            start += length
        self._op(tensors)
        return tf.constant(True)

    def _create_resource(self) -> tf.Tensor:
        """What TensorFlow asks of a trackable resource; the index is reached by its name instead."""
        return tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=f"{self._shared_name}/unused")


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
