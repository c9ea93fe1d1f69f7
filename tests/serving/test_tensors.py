"""TensorProtos from strangers: how many values may come, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, types_pb2

from serving.tensors import to_array

FIELDS = {
    "DT_FLOAT": "float_val",
    "DT_DOUBLE": "double_val",
    "DT_INT8": "int_val",
    "DT_INT32": "int_val",
    "DT_INT64": "int64_val",
    "DT_UINT32": "uint32_val",
    "DT_UINT64": "uint64_val",
    "DT_BOOL": "bool_val",
    "DT_HALF": "half_val",
    "DT_BFLOAT16": "half_val",
    "DT_STRING": "string_val",
    "DT_COMPLEX64": "scomplex_val",
    "DT_COMPLEX128": "dcomplex_val",
}
"""As tensor.proto says."""
COMPLEX = ("DT_COMPLEX64", "DT_COMPLEX128")


def tensor(dtype: str, shape: list[int], **fields: object) -> tensor_pb2.TensorProto:
    proto = tensor_pb2.TensorProto(dtype=types_pb2.DataType.Value(dtype), **fields)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def filled(dtype: str, shape: list[int], elements: int) -> tensor_pb2.TensorProto:
    """With values for so many elements."""
    one = [b"1"] if dtype == "DT_STRING" else [1, 0] if dtype in COMPLEX else [1]
    return tensor(dtype, shape, **{FIELDS[dtype]: one * elements})


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> list[tensor_pb2.TensorProto]:
    """What TensorFlow was given to convert."""
    found: list[tensor_pb2.TensorProto] = []
    monkeypatch.setattr(tf, "make_ndarray", found.append)
    return found


@pytest.mark.parametrize("dtype", FIELDS)
@pytest.mark.parametrize("elements", [1, 6])
def test_as_many_values_as_elements_or_fewer_are_taken(dtype, elements):
    array = to_array("x", filled(dtype, [2, 3], elements), 1000)
    assert array.shape == (2, 3)
    assert len(set(array.ravel().tolist())) == 1


@pytest.mark.parametrize("dtype", FIELDS)
@pytest.mark.parametrize("shape", [[2, 3], [0, 3], []])
def test_more_values_than_elements_are_refused_before_they_are_converted(dtype, shape, converted):
    size = int(np.prod(shape))
    each = 2 if dtype in COMPLEX else 1
    said = rf"'x' is not a tensor of shape .*_val has {each * 1000} values, but the shape takes {each * size}$"
    with pytest.raises(ValueError, match=said):
        to_array("x", filled(dtype, shape, 1000), 1000)
    assert not converted


@pytest.mark.parametrize("dtype", FIELDS)
@pytest.mark.parametrize("sent", [0, 1, 3])
def test_the_last_value_may_stand_for_65_536_elements_and_no_more(dtype, sent):
    constant = to_array("x", filled(dtype, [1, sent + 65_536], sent), 2**20)
    assert constant.shape == (1, sent + 65_536)
    assert len(set(constant.ravel().tolist())) == 1
    with pytest.raises(
        ValueError, match=f"it has {sent} of {sent + 65_537} values, .* may repeat 65536 times: send all"
    ):
        to_array("x", filled(dtype, [sent + 65_537], sent), 2**20)


def test_any_number_of_values_may_come_one_by_one():
    assert to_array("x", filled("DT_INT32", [2, 2**18], 2**19), 2**20).sum() == 2**19


@pytest.mark.parametrize(("dtype", "width"), [("DT_FLOAT", 4), ("DT_HALF", 2), ("DT_COMPLEX128", 16), ("DT_BOOL", 1)])
def test_a_block_of_bytes_must_be_as_long_as_its_elements(dtype, width, converted):
    for got in (1, 6 * width - 1, 6 * width + 1, 1000):
        with pytest.raises(ValueError, match=rf"tensor_content has {got} bytes, but the shape takes {6 * width}$"):
            to_array("x", tensor(dtype, [2, 3], tensor_content=b"\0" * got), 1000)
    assert not converted


def test_a_block_of_bytes_is_taken_as_it_is():
    sent = np.arange(6, dtype=np.float16).reshape(2, 3)
    proto = tensor("DT_HALF", [2, 3], tensor_content=sent.tobytes())
    assert to_array("x", proto, 1000).tolist() == [[0, 1, 2], [3, 4, 5]]
