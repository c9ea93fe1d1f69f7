"""A servable loaded by `tf.saved_model.load`, called as `local_client.ServableSession` is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scann  # noqa: F401  (registers the ops that the servable holds)
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2


class EagerServable:
    """One version, under TensorFlow 2's loader.

    Its signature functions take every input, so defaults are read from the SavedModel and filled
    in here. A server should hold sessions instead: this loader keeps an index's memory for good.
    """

    def __init__(self, path: Path):
        self._module = tf.saved_model.load(str(path))
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        self.signatures = saved.meta_graphs[0].signature_def

    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Calls a signature; inputs that are left out take their defaults."""
        definition = self.signatures[signature]
        fed = {
            name: tf.constant(inputs[name], tf.as_dtype(info.dtype))
            if name in inputs
            else tf.constant(tf.make_ndarray(definition.defaults[name]))
            for name, info in definition.inputs.items()
        }
        return {name: value.numpy() for name, value in self._module.signatures[signature](**fed).items()}
