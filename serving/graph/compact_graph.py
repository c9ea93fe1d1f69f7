"""SavedModels whose graphs hold nothing that no loader needs: a loader keeps several copies of every node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

# No public function writes the fingerprint of a SavedModel that has changed since it was saved.
from tensorflow.python.saved_model.fingerprinting_utils import write_fingerprint

from contracts.layout import SAVED_MODEL

_SHAPES = "_output_shapes"
"""An attribute of each node that repeats what a loader infers."""


def save_compact(module: tf.Module, path: Path, signatures: Callable[..., Any] | Mapping[str, Any]) -> None:
    """Saves a module that may hold ScaNN's ops, as `tf.saved_model.save` does, and makes its graph compact.

    Inferred shapes are left out, and a function's equal constants are merged: code that runs a hundred searches makes
    hundreds of constants, most of which are equal.
    """
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])
    tf.saved_model.save(module, str(path), signatures=signatures, options=options)
    file = path / SAVED_MODEL
    saved_model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    for meta_graph in saved_model.meta_graphs:
        for node in meta_graph.graph_def.node:
            node.attr.pop(_SHAPES, None)
        for function in meta_graph.graph_def.library.function:
            make_compact(function)
    file.write_bytes(saved_model.SerializeToString(deterministic=True))
    write_fingerprint(str(path))


def make_compact(function: function_pb2.FunctionDef) -> None:
    """Drops the shapes of a function's nodes and merges its equal constants."""
    same: dict[bytes, str] = {}  # a constant's value -> the first node that holds it
    first: dict[str, str] = {}  # the others that hold it -> that node
    kept = []
    for node in function.node_def:
        node.attr.pop(_SHAPES, None)
        # A constant that waits for another node, or that lies on a device of its own, is left alone.
        if node.op == "Const" and not node.input and not node.device:
            of_value = same.setdefault(node.attr["value"].SerializeToString(deterministic=True), node.name)
            if of_value != node.name:
                first[node.name] = of_value
                continue
        kept.append(node.SerializeToString())
    del function.node_def[:]
    for node in kept:
        added = function.node_def.add()
        added.ParseFromString(node)
        added.input[:] = [_renamed(name, first) for name in added.input]
    for results in (function.ret, function.control_ret):
        for name in results:
            results[name] = _renamed(results[name], first)


def _renamed(tensor: str, first: Mapping[str, str]) -> str:
    """`node:output:0`, or `^node` and `node`, which are a control input's and a control result's."""
    node, colon, output = tensor.partition(":")
    is_control = node.startswith("^")
    node = node.removeprefix("^")
    return "^" * is_control + first.get(node, node) + colon + output
