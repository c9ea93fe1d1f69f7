"""TensorFlow's loaders other than `servable_session.ServableSession`."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scann
import tensorflow as tf

import contracts
from serving.servable_session import Servable
from serving.signatures import read_signatures


class EagerServable(Servable):
    """One version, under TensorFlow 2's loader.

    Its signature functions take every input, so defaults are read from the SavedModel and filled
    in here. A server should hold sessions instead: this loader keeps an index's memory for good.
    """

    def __init__(self, path: Path):
        self._module = tf.saved_model.load(str(path))
        self.signatures = read_signatures(path)

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


SCANN_OPS = Path(scann.__file__).parent / "scann_ops" / "cc" / "_scann_ops.so"


class CServable(Servable):
    """One version, under TensorFlow's C API in a separate process: what TF Serving does, without TF Serving."""

    def __init__(self, path: Path, op_libraries: Sequence[Path] = (SCANN_OPS,)):
        """Prepares to load `path`, a version directory; without `op_libraries`, TensorFlow has only its own ops."""
        self._path = path
        self._op_libraries = op_libraries
        self.signatures = read_signatures(path)

    @staticmethod
    def missing() -> list[Path]:
        """The shared objects that do not exist and without which this loader cannot run."""
        return [path for path in (*_tensorflow_libraries().values(), SCANN_OPS) if not path.exists()]

    def predict(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Loads the servable and calls a signature; inputs that are left out take their defaults.

        Raises:
            ValueError: TensorFlow refuses the servable or the request; the message is TensorFlow's.
        """
        definition = self.signatures[signature]
        outputs = {name: info.name for name, info in definition.outputs.items()}
        plan = {
            **{name: str(path) for name, path in _tensorflow_libraries().items()},
            "op_libraries": [str(path) for path in self._op_libraries],
            "servable": str(self._path.absolute()),
            "inputs": {definition.inputs[name].name: _as_json(value) for name, value in inputs.items()},
            "outputs": list(outputs.values()),
        }
        with tempfile.TemporaryDirectory() as scratch:
            plan_path, answer_path = Path(scratch) / "plan.json", Path(scratch) / "answer.json"
            plan_path.write_text(json.dumps(plan), encoding="utf-8")
            process = subprocess.run(
                [sys.executable, "-m", "serving.validation.c_api", str(plan_path), str(answer_path)],
                cwd=Path(contracts.__file__).parent.parent,
                capture_output=True,
                text=True,
                check=False,
            )
            if process.returncode:
                raise ValueError(f"TensorFlow's C API cannot serve {self._path}: {process.stderr[-2000:]}")
            answer = json.loads(answer_path.read_text(encoding="utf-8"))
        return {name: _from_json(answer[tensor]) for name, tensor in outputs.items()}


def _tensorflow_libraries() -> dict[str, Path]:
    folder = Path(tf.sysconfig.get_lib())
    return {"framework": folder / "libtensorflow_framework.so.2", "library": folder / "libtensorflow_cc.so.2"}


def _as_json(value: np.ndarray) -> dict[str, Any]:
    is_text = value.dtype == object
    values = [text.decode() for text in value.ravel()] if is_text else value.ravel().tolist()
    return {"dtype": "string" if is_text else value.dtype.name, "shape": list(value.shape), "values": values}


def _from_json(value: dict[str, Any]) -> np.ndarray:
    """Strings as bytes, as a session gives them."""
    if value["dtype"] == "string":
        return np.array([text.encode() for text in value["values"]], object).reshape(value["shape"])
    return np.array(value["values"], value["dtype"]).reshape(value["shape"])
