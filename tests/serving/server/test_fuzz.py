"""Thousands of requests that no client would send: each gets an answer of its own fault, and the server lives on."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tensorflow.core.framework import tensor_pb2

from contracts.names import Request, Signature
from serving.server.errors import Code
from tests.serving.server.test_grpc import request as grpc_request

NAMES = [
    "history",
    "user_id",
    "num_candidates",
    "alpha",
    "merge",
    "groups",
    "group_boost",
    "max_groups",
    "gender",
    "age",
]
ITEMS = st.sampled_from(["i1", "i2", "i600", "", "nobody", "é", "\x00", "i" * 300])
NUMBERS = st.one_of(
    st.integers(-(2**33), 2**33), st.floats(width=32), st.floats(), st.sampled_from([0, 1, -1, 3, float("nan"), 2**31])
)
LEAVES = st.one_of(ITEMS, NUMBERS, st.none(), st.booleans(), st.text(max_size=5))
JSON = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)
VALID_HISTORY = st.integers(0, 3).flatmap(
    lambda length: st.lists(st.lists(ITEMS, min_size=length, max_size=length), max_size=4)
)
INPUTS = st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4)
BODIES = st.one_of(
    JSON,
    st.fixed_dictionaries({}, optional={"inputs": JSON, "instances": JSON, "signature_name": JSON}),
    st.builds(lambda history, rest: {"inputs": {**rest, "history": history}}, VALID_HISTORY, INPUTS),
    st.builds(lambda rows: {"instances": rows}, st.lists(INPUTS, max_size=3)),
    st.builds(
        lambda history, alpha, number: {"inputs": {"history": [history], "alpha": [alpha], "num_candidates": [number]}},
        st.lists(ITEMS, max_size=5),
        st.floats(width=32),
        st.integers(-(2**31), 2**31 - 1),
    ),
)
PATHS = st.one_of(
    st.sampled_from(["/v1/models/dnc_exact:predict", "/v1/models/dnc:predict", "/v1/models/dnc/versions/1:predict"]),
    st.sampled_from(["/v1/models/dnc", "/v1/models/dnc/metadata", "/v1/models/dnc/labels/x", "/v1/models/"]),
    st.text(st.characters(codec="ascii", exclude_characters="?#\\ \r\n\t"), max_size=12).map(lambda text: "/" + text),
)
GRPC_FAULTS = {
    Code.OK,
    Code.INVALID_ARGUMENT,
    Code.NOT_FOUND,
    Code.FAILED_PRECONDITION,
    Code.RESOURCE_EXHAUSTED,
    Code.UNIMPLEMENTED,
    Code.OUT_OF_RANGE,
}


def examples(count: int) -> Any:
    return settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def tensors(draw: st.DrawFn) -> tensor_pb2.TensorProto:
    """Tensors of any dtype and shape, with values that often do not fill them."""
    dtype = draw(st.sampled_from([tf.string, tf.float32, tf.int32, tf.int64, tf.bool, tf.double, tf.half]))
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for size in draw(st.lists(st.sampled_from([0, 1, 1, 2, 3, -1, 70, 2**40]), max_size=3)):
        proto.tensor_shape.dim.add(size=size)
    proto.tensor_shape.unknown_rank = draw(st.sampled_from([False, False, False, True]))
    proto.string_val.extend(draw(st.lists(ITEMS.map(str.encode), max_size=3)))
    proto.float_val.extend(draw(st.lists(st.floats(width=32), max_size=3)))
    proto.int_val.extend(draw(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=3)))
    if draw(st.booleans()):
        proto.tensor_content = draw(st.binary(max_size=12))
    return proto


def _filled(inputs: dict[str, Any], known: dict[str, Any], model: str, signature: str, spec: dict[str, Any]) -> bytes:
    message = grpc_request({}, model, signature, **spec)
    for name, proto in {**known, **inputs}.items():
        message.inputs[name].CopyFrom(proto)
    return message.SerializeToString()


PROTOS = st.builds(
    _filled,
    st.dictionaries(st.one_of(st.sampled_from(NAMES), st.text(max_size=4)), tensors(), max_size=3),
    st.sampled_from([{}, {Request.HISTORY: tf.make_tensor_proto([["i1", "i2"], ["i3", ""]])}]),
    st.sampled_from(["dnc_exact", "dnc", "dnc", "", "nope"]),
    st.sampled_from(["", Signature.QUERY_EMBEDDING, Signature.CANDIDATE_EMBEDDING, "nope"]),
    st.sampled_from([{}, {}, {"version": 1}, {"version": -5}, {"label": "stable"}, {"label": ""}]),
)


def fuzz_rest(server, count: int) -> collections.Counter[int]:
    statuses: collections.Counter[int] = collections.Counter()
    http = requests.Session()

    @examples(count)
    @given(st.sampled_from(["POST", "POST", "POST", "GET"]), PATHS, st.one_of(BODIES.map(json.dumps), st.binary()))
    def ask(method: str, path: str, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        answer = http.request(method, server.url + path, data=data, timeout=60)
        statuses[answer.status_code] += 1
        assert answer.status_code < 500, (method, path, body, answer.text)
        if answer.status_code != 200:
            assert answer.status_code in (400, 404, 405, 413, 429), (answer.status_code, path)

    ask()
    return statuses


def fuzz_grpc(server, count: int) -> collections.Counter[str]:
    codes: collections.Counter[str] = collections.Counter()
    methods = ["Predict", "Predict", "Predict", "GetModelMetadata", "Nothing"]
    with server.channel() as channel:

        @examples(count)
        @given(st.sampled_from(methods), st.one_of(PROTOS, PROTOS, PROTOS, st.binary(max_size=40)))
        def ask(method: str, body: bytes) -> None:
            call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
            try:
                call(body, timeout=60)
                code = Code.OK
            except grpc.RpcError as error:
                code = error.code()
                assert code in GRPC_FAULTS, (method, body, error.details())
            codes[code.name] += 1

        ask()
    return codes


def test_a_few_hundred_strange_requests(server):
    assert fuzz_rest(server, 150)[200] > 0
    assert fuzz_grpc(server, 150)["OK"] > 0


@pytest.mark.slow
def test_thousands_of_strange_requests(server):
    """With FUZZ_LOG set to a path, it also writes what the answers were."""
    rest, rpc = fuzz_rest(server, 3_500), fuzz_grpc(server, 3_500)
    found = {"REST": rest, "gRPC": rpc}
    lines = [f"{api} {answers.total()} requests: {dict(answers.most_common())}" for api, answers in found.items()]
    if "FUZZ_LOG" in os.environ:
        Path(os.environ["FUZZ_LOG"]).write_text("\n".join(lines) + "\n")
    assert rest.total() + rpc.total() >= 5_000, lines
    assert requests.get(f"{server.url}/v1/models/dnc", timeout=10).status_code == 200
