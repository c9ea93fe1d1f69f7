"""The signatures of a SavedModel, and whether clients of one version can talk to the next."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from contracts.layout import SAVED_MODEL
from contracts.names import Request


def read_signatures(version: Path) -> Mapping[str, Any]:
    """Name -> SignatureDef of a version directory, read from the file: nothing is loaded.

    Raises:
        ValueError: the file is damaged.
    """
    path = version / SAVED_MODEL
    try:
        found = saved_model_pb2.SavedModel.FromString(path.read_bytes()).meta_graphs[0].signature_def
    except (DecodeError, IndexError) as error:
        raise ValueError(
            f"{path} is not a SavedModel ({error}): restore it, or, if a store serves it, roll back to a version that "
            "works (dnc rollback)"
        ) from None
    return {name: found[name] for name in found if not name.startswith("__")}  # __saved_model_init_op


def require_compatible(old: Path, new: Path, model_name: str) -> None:
    """Requires that `new` answers every request that `old` does, with all that clients read from the response.

    Raises:
        ValueError: a signature, an input or an output is gone or has another type or rank, an input has another
            length, or one that was optional is now required. The number of groups may change.
    """
    before, after = read_signatures(old), read_signatures(new)
    problems = [problem for name in sorted(before) for problem in _problems(name, before[name], after.get(name))]
    if problems:
        raise ValueError(
            f"clients of {old} would break:\n  " + "\n  ".join(problems) + "\nKeep what the last version has, or "
            f"export as another model: set serving.model_name to something other than {model_name}"
        )


def _problems(name: str, old: Any, new: Any | None) -> list[str]:
    if new is None:
        return [f"signature {name} is gone"]
    problems = []
    for kind in ("inputs", "outputs"):
        before, after = getattr(old, kind), getattr(new, kind)
        for key in sorted(before):
            what = f"{name}: {kind[:-1]} {key!r}"
            if key not in after:
                problems.append(f"{what} is gone")
            elif _form(before[key]) != _form(after[key]):
                problems.append(f"{what} is {_form(after[key])}, was {_form(before[key])}")
            elif kind == "inputs" and key != Request.GROUP_BOOST:
                was, now = _length(before[key]), _length(after[key])
                problems += [f"{what} takes {now} values per row, previously {was}"] if now not in ("any", was) else []
    optional = set(new.defaults)
    for key in sorted(new.inputs):
        if key not in optional and (key not in old.inputs or key in old.defaults):
            problems.append(f"{name}: input {key!r} is now required")
    return problems


def _form(tensor: Any) -> str:
    """E.g. "float32 of rank 2"."""
    return f"{tf.as_dtype(tensor.dtype).name} of rank {len(tensor.tensor_shape.dim)}"


def _length(tensor: Any) -> str:
    """How many values a row of a vector or a list has."""
    size = tensor.tensor_shape.dim[1].size if len(tensor.tensor_shape.dim) > 1 else -1
    return "any" if size < 0 else str(size)
