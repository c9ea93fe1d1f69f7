"""The inputs of the servable's signatures: their specs, and the values that stand for "not given"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter
from inspect import Signature as PythonSignature
from typing import Any

import tensorflow as tf

from contracts.config import Config, Feature
from contracts.names import Request
from serving.graph.transform_graphs import raw_dtype, user_feature_configs

Tensors = dict[str, tf.Tensor]


@dataclass(frozen=True)
class GraphInput:
    """One input of the graph.

    Attributes:
        name: in the signature.
        dtype: of its values.
        default: one row, for a request that leaves the input out.
        columns: shape of a row: (num_groups,), (length of a vector,), (None,) for any number of values, () for one.
    """

    name: str
    dtype: tf.DType
    default: Any
    columns: tuple[int | None, ...] = ()

    @property
    def spec(self) -> tf.TensorSpec:
        return tf.TensorSpec([None, *self.columns], self.dtype, self.name)


def query_inputs(config: Config) -> list[GraphInput]:
    """The inputs that the towers read."""
    inputs = [GraphInput(Request.HISTORY, tf.string, [""], (None,))]
    if config.data.feedback.has_context:
        inputs.append(GraphInput(Request.HISTORY_IS_CONTEXT, tf.bool, [False], (None,)))
    inputs.append(GraphInput(Request.USER_ID, tf.string, ""))
    inputs += [GraphInput(feature.name, tf.string, "") for feature in config.data.request_features]
    features = user_feature_configs(config)
    return [*inputs, *(GraphInput(f.name, raw_dtype(f), _missing(f), f.raw_shape) for f in features)]


def _missing(feature: Feature) -> Any:
    if feature.kind == "vector":
        return [math.nan] * feature.dim
    return math.nan if feature.is_number else ""


def merge_inputs(num_groups: int) -> list[GraphInput]:
    """The inputs that control the merge."""
    return [
        GraphInput(Request.NUM_CANDIDATES, tf.int32, 0),
        GraphInput(Request.ALPHA, tf.float32, math.nan),
        GraphInput(Request.MERGE, tf.string, ""),
        GraphInput(Request.GROUP_BOOST, tf.float32, [1.0] * num_groups, (num_groups,)),
        GraphInput(Request.GROUPS, tf.int32, [-1], (None,)),
        GraphInput(Request.MAX_GROUPS, tf.int32, 0),
        GraphInput(Request.EXCLUDE_ITEM_IDS, tf.string, [""], (None,)),
        GraphInput(Request.NUM_EXPLORATION, tf.int32, -1),
    ]


def with_defaults(body: Callable[[Tensors], Tensors], inputs: Sequence[GraphInput]) -> Any:
    """A tf.function of `inputs` that calls `body` with all of them at the request's batch size.

    TensorFlow writes default arguments that are tensors into the signature, and a session and
    TF Serving fill them in. An input of one row, such as a default, applies to all rows; all others
    must have the same number of rows. An empty batch reaches `body` as one row of padding, because
    ScaNN's trees fail without rows, and its answer is cut to no rows.
    """

    def function(*arguments: tf.Tensor) -> Tensors:
        given = {
            # A session checks no shape; without this, a wrong rank would surface in some inner op.
            one.name: tf.ensure_shape(argument, one.spec.shape)
            for one, argument in zip(inputs, arguments, strict=True)
        }
        rows = tf.stack([tf.shape(value)[0] for value in given.values()])
        is_empty = tf.reduce_any(rows == 0)
        request = tf.cond(is_empty, lambda: _one_row_at_least(given), lambda: given)
        batch_size = tf.where(is_empty, 0, tf.reduce_max(rows))
        shape = tf.maximum(batch_size, 1)[None]
        request = {
            name: tf.broadcast_to(value, tf.concat([shape, tf.shape(value)[1:]], 0)) for name, value in request.items()
        }
        return {name: value[:batch_size] for name, value in body(request).items()}

    parameters = [
        Parameter(
            one.name,
            Parameter.POSITIONAL_OR_KEYWORD,
            default=tf.constant([one.default], one.dtype),
            annotation=one.spec,
        )
        for one in inputs
    ]
    function.__signature__ = PythonSignature(parameters)  # type: ignore[attr-defined]
    return tf.function(function, input_signature=[one.spec for one in inputs], autograph=False)


def _one_row_at_least(values: Tensors) -> Tensors:
    padded = {}
    for name, value in values.items():
        extra = tf.cast(tf.equal(tf.shape(value)[0], 0), tf.int32)
        padded[name] = tf.pad(value, [[0, extra]] + [[0, 0]] * (value.shape.rank - 1))
    return padded
