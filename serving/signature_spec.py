"""The inputs of a signature, and how a request becomes rows that can share a batch with any other's.

Server, client and session build on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.names import MERGES, Request

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Input:
    """One input of a signature.

    Attributes:
        name: the name that requests use.
        tensor: the graph's tensor.
        dtype: of the tensor.
        shape: with None for sizes that are left open; the first is the batch's.
        default: [1, ...], the value for a request that leaves the input out; None if the input is required.
        padding: fills shorter rows up to the longest of a batch.
    """

    name: str
    tensor: str
    dtype: tf.DType
    shape: tuple[int | None, ...]
    default: np.ndarray | None
    padding: Any


class SignatureSpec:
    """A signature's inputs and outputs.

    Every request is brought to the same form, all inputs with a row per query: those left out get
    the signature's defaults, which the SavedModel carries. So all requests can share batches.

    Attributes:
        lists: names of the outputs [B, M], with a place for each candidate: those whose second size is left open, in a
            signature that takes M and whose inputs are all optional.
    """

    def __init__(self, name: str, definition: Any):
        """Reads a SignatureDef.

        Raises:
            ValueError: an input has no dimension for the batch.
        """
        for key, info in definition.inputs.items():
            if info.tensor_shape.unknown_rank or not info.tensor_shape.dim:
                raise ValueError(f"signature {name} cannot be batched: its input {key!r} has no batch dimension")
        self.name = name
        self.inputs = {key: _input(key, info, definition.defaults) for key, info in sorted(definition.inputs.items())}
        self.outputs = {key: info.name for key, info in sorted(definition.outputs.items())}
        optional = {key for key, one in self.inputs.items() if one.default is not None}
        gives_lists = {Request.NUM_CANDIDATES, Request.MERGE} <= optional == set(self.inputs)
        self.lists = [key for key in self.outputs if gives_lists and _has_open_columns(definition.outputs[key])]
        self._answer = definition.outputs

    def require_known(self, names: Iterable[str]) -> None:
        """Raises ValueError if one of the names is not an input."""
        for name in names:
            if name not in self.inputs:
                raise ValueError(f"{self.name} has no input {name!r}; it has {', '.join(self.inputs)}")

    def checked(self, given: Mapping[str, np.ndarray]) -> Arrays:
        """Returns the given inputs.

        Raises:
            ValueError: an input is unknown, or has the wrong dtype or shape, or there is no such merge.
        """
        self.require_known(given)
        values = {name: _checked(self.inputs[name], value) for name, value in given.items()}
        if self.lists and Request.MERGE in values:
            _require_merges(values[Request.MERGE].tolist())
        return values

    def complete(self, given: Mapping[str, np.ndarray]) -> tuple[Arrays, int]:
        """Returns every input with as many rows as the request has, and that number.

        An input of one row applies to all rows of the request, as in the graph.

        Raises:
            ValueError: as `checked`, or a required input is missing.
        """
        values = self.checked(given)
        rows = _rows(values)
        completed = {}
        for name, spec in self.inputs.items():
            value = values.get(name, spec.default)
            if value is None:
                raise ValueError(f"{self.name} requires input {name!r}, which is missing from the request")
            completed[name] = value if len(value) == rows else np.broadcast_to(value, [rows, *value.shape[1:]])
        return completed, rows

    def no_rows(self) -> Arrays:
        """The answer to a request of no rows; sizes that are left open are 0."""
        return {
            name: np.empty(
                [0, *(max(dim.size, 0) for dim in info.tensor_shape.dim[1:])], tf.as_dtype(info.dtype).as_numpy_dtype
            )
            for name, info in self._answer.items()
        }

    def join(self, requests: Sequence[Arrays]) -> Arrays:
        """Joins completed requests into one batch, their rows one after another, the shorter ones padded."""
        if len(requests) == 1:
            return requests[0]
        return {
            name: _concatenate([request[name] for request in requests], spec.padding)
            for name, spec in self.inputs.items()
        }


def _has_open_columns(info: Any) -> bool:
    sizes = [dim.size for dim in info.tensor_shape.dim]
    return len(sizes) == 2 and sizes[1] < 0


def _input(name: str, info: Any, defaults: Mapping[str, Any]) -> Input:
    dtype = tf.as_dtype(info.dtype)
    default = tf.make_ndarray(defaults[name]) if name in defaults else None
    if default is not None and default.size:
        padding = default.ravel()[0]
    else:
        padding = b"" if dtype == tf.string else dtype.as_numpy_dtype(0)
    shape = tuple(None if dim.size < 0 else dim.size for dim in info.tensor_shape.dim)
    return Input(name, info.name, dtype, shape, default, padding)


def _rows(given: Mapping[str, np.ndarray]) -> int:
    """The batch size: the one number of rows that is not 1."""
    sizes = {name: len(value) for name, value in given.items()}
    distinct = set(sizes.values()) - {1}
    if len(distinct) > 1:
        raise ValueError(f"the inputs have different numbers of rows: {sizes}; give every input the same number, or 1")
    return distinct.pop() if distinct else 1


def _checked(spec: Input, value: np.ndarray) -> np.ndarray:
    expected = f"{spec.dtype.name} {['?' if size is None else size for size in spec.shape]}"
    if tf.as_dtype(value.dtype) != spec.dtype:
        raise ValueError(f"input {spec.name!r} must be {expected}, got {tf.as_dtype(value.dtype).name}")
    fits = all(size in (None, got) for size, got in zip(spec.shape, value.shape, strict=False))
    if value.ndim != len(spec.shape) or not fits:
        raise ValueError(f"input {spec.name!r} must be {expected}, got the shape {list(value.shape)}")
    return value


def _require_merges(merges: Iterable[Any]) -> None:
    """Refuses a misspelt one: the graph, which must not fail other callers' rows, would answer with an empty list."""
    for unknown in set(merges) - {"", b"", *MERGES, *(name.encode() for name in MERGES)}:
        found = unknown.decode(errors="replace") if isinstance(unknown, bytes) else unknown
        raise ValueError(f"input {Request.MERGE!r} must be one of {', '.join(MERGES)}; got {found!r}")


def _concatenate(values: Sequence[np.ndarray], padding: Any) -> np.ndarray:
    first = values[0]
    if first.ndim == 1 or all(value.shape[1:] == first.shape[1:] for value in values):
        return np.concatenate(values)
    widest = np.max([value.shape[1:] for value in values], axis=0)
    joined = np.full([sum(map(len, values)), *widest], padding, first.dtype)
    start = 0
    for value in values:
        joined[(slice(start, start + len(value)), *map(slice, value.shape[1:]))] = value
        start += len(value)
    return joined
