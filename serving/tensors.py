"""TensorProto to and from NumPy: safe for input from strangers, and fast for routine requests."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2

_VALUES = {
    tf.float32.as_datatype_enum: "float_val",
    tf.float64.as_datatype_enum: "double_val",
    tf.int32.as_datatype_enum: "int_val",
    tf.int64.as_datatype_enum: "int64_val",
    tf.bool.as_datatype_enum: "bool_val",
    tf.string.as_datatype_enum: "string_val",
}
"""dtype -> the TensorProto field that holds its values one by one."""
_COMPLEX = ("scomplex_val", "dcomplex_val")
"""Fields with two values for an element."""
_MOST_REPEATED = 2**16
"""How many elements the last value may stand for. Clients send constants so, such as a group_boost of 1 for 1,000
groups and 64 rows; but a hundred bytes must not buy a search with a million values, over and over."""


def to_array(name: str, tensor: tensor_pb2.TensorProto, max_elements: int) -> np.ndarray:
    """The array of a TensorProto; strings are bytes in an object array.

    Args:
        name: of the input, for messages.
        tensor: as received. If it has fewer values than its shape, the last one repeats, at most 65,536 times.
        max_elements: more are refused.

    Raises:
        ValueError: the proto is not a tensor.
    """
    if tensor.tensor_shape.unknown_rank:
        raise ValueError(f"input {name!r}: the shape has unknown rank; send the tensor's actual shape")
    shape = [dim.size for dim in tensor.tensor_shape.dim]
    size = math.prod(shape)
    if min(shape, default=0) < 0 or len(shape) > 8:
        raise ValueError(f"input {name!r}: {shape[:9]} is not a valid tensor shape")
    if size > max_elements:
        raise ValueError(f"input {name!r}: the shape {shape} has {size} elements, more than the {max_elements} allowed")
    if len(tensor.string_val) == size and tensor.dtype == tf.string.as_datatype_enum:
        flat = np.empty([size], object)
        flat[:] = list(tensor.string_val)
        return flat.reshape(shape)
    try:
        _require_fit(tensor, size)
        return tf.make_ndarray(tensor).reshape(shape)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"input {name!r} is not a tensor of shape {shape}: {error}") from None


def _require_fit(tensor: tensor_pb2.TensorProto, size: int) -> None:
    """Raises ValueError if more values were sent than `size` elements take, or fewer than the last may make up for.

    Before they are converted: millions take long.
    """
    dtype = tf.as_dtype(tensor.dtype)
    if tensor.tensor_content and dtype != tf.string:
        got, taken = len(tensor.tensor_content), size * np.dtype(dtype.as_numpy_dtype).itemsize
        if got != taken:
            raise ValueError(f"tensor_content has {got} bytes, but the shape takes {taken}")
        return
    sent = 0
    for field, values in tensor.ListFields():
        if field.name.endswith("_val"):
            per_element = 2 if field.name in _COMPLEX else 1
            if len(values) > size * per_element:
                raise ValueError(f"{field.name} has {len(values)} values, but the shape takes {size * per_element}")
            sent = max(sent, len(values) // per_element)
    if size - sent > _MOST_REPEATED:
        raise ValueError(f"it has {sent} of {size} values, and the last may repeat {_MOST_REPEATED} times: send all")


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The TensorProto of an array, strings value by value, numbers as one block of bytes."""
    if array.dtype == object:
        return to_value_proto(array)
    proto = _without_values(array)
    proto.tensor_content = array.tobytes()
    return proto


def to_value_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The TensorProto of an array, value by value in the dtype's field.

    Many clients look there: `outputs["scores"].float_val`. TF Serving answers this way unless it is started with
    `--enable_serialization_as_tensor_content`. Numbers of rarer dtypes are one block of bytes.
    """
    proto = _without_values(array)
    if proto.dtype not in _VALUES:
        return to_proto(array)
    getattr(proto, _VALUES[proto.dtype]).extend(array.ravel().tolist())
    return proto


def _without_values(array: np.ndarray) -> tensor_pb2.TensorProto:
    return tensor_pb2.TensorProto(
        dtype=tf.as_dtype(array.dtype).as_datatype_enum,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(
            dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in array.shape]
        ),
    )
