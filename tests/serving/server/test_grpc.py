"""The official stubs against the server, answers against the session's own."""

import asyncio

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from contracts.config import ServerConfig
from contracts.names import Request, Response, Signature
from serving.server.errors import Code
from serving.server.grpc_api import GrpcApi
from serving.server.metrics import Metrics
from serving.server.models import Models
from tests.serving.asking import history_inputs

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE


@pytest.fixture(scope="module")
def predict(server):
    with server.channel() as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(server):
    with server.channel() as channel:
        yield model_service_pb2_grpc.ModelServiceStub(channel)


def request(inputs, model="dnc_exact", signature="", **spec) -> predict_pb2.PredictRequest:
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    if "version" in spec:
        message.model_spec.version.value = spec["version"]
    if "label" in spec:
        message.model_spec.version_label = spec["label"]
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(value if isinstance(value, tf.compat.v1.Tensor) else tf.make_tensor_proto(value))
    return message


def arrays(response) -> dict[str, np.ndarray]:
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def assert_same(answer: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert set(answer) == set(expected)
    for name, value in expected.items():
        assert answer[name].dtype == value.dtype
        if value.dtype == np.float32:
            np.testing.assert_allclose(answer[name], value, rtol=1e-4, atol=1e-4)
        else:
            assert answer[name].tolist() == value.tolist()


@pytest.mark.parametrize("signature", ["", Signature.SERVING_DEFAULT, Signature.QUERY_EMBEDDING])
def test_answers_are_the_sessions(predict, session, signature):
    inputs = history_inputs([["i1", "i2"], ["i3"]], ["u1", "nobody"])
    if signature != Signature.QUERY_EMBEDDING:
        inputs[Request.NUM_CANDIDATES] = np.array([7, 4], np.int32)
    response = predict.Predict(request(inputs, signature=signature))
    assert_same(arrays(response), session.predict(signature or Signature.SERVING_DEFAULT, inputs))
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == (signature or Signature.SERVING_DEFAULT)


def test_candidate_embedding(predict, session):
    inputs = {Request.ITEM_IDS: np.array([b"i4", b"nobody"], object)}
    response = predict.Predict(request(inputs, signature=Signature.CANDIDATE_EMBEDDING))
    assert_same(arrays(response), session.predict(Signature.CANDIDATE_EMBEDDING, inputs))


def test_output_filter(predict):
    message = request(history_inputs([["i1"]]))
    message.output_filter.append(Response.SCORES)
    assert list(predict.Predict(message).outputs) == [Response.SCORES]


def test_values_are_where_clients_of_tf_serving_look(predict, session):
    """One by one: TF Serving's own examples read `float_val`, which is empty where values are one block of bytes."""
    inputs = history_inputs([["i1", "i2"]])
    outputs = predict.Predict(request(inputs)).outputs
    expected = session.predict(Signature.SERVING_DEFAULT, inputs)
    assert list(outputs[Response.ITEM_IDS].string_val) == expected[Response.ITEM_IDS].ravel().tolist()
    assert list(outputs[Response.GROUP_IDS].int_val) == expected[Response.GROUP_IDS].ravel().tolist()
    np.testing.assert_allclose(outputs[Response.SCORES].float_val, expected[Response.SCORES].ravel(), rtol=1e-4)


@pytest.mark.parametrize("times", [2, 1000])
def test_an_output_that_is_asked_for_more_than_once_is_refused(predict, times):
    """As in TF Serving's predict_util.cc: "duplicate output tensor alias"."""
    message = request(history_inputs([["i1"]]))
    message.output_filter.extend([Response.SCORES] * times)
    with pytest.raises(grpc.RpcError, match="must name each output only once") as raised:
        predict.Predict(message)
    assert raised.value.code() == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("spec", [{"version": 1}, {"label": "stable"}, {}])
def test_versions_are_named_by_number_or_label(predict, spec):
    assert predict.Predict(request(history_inputs([["i1"]]), **spec)).model_spec.version.value == 1


def test_an_empty_batch_has_an_empty_answer(predict):
    answer = arrays(predict.Predict(request({Request.HISTORY: np.full([0, 3], b"", object)})))
    assert {name: len(value) for name, value in answer.items()} == dict.fromkeys(answer, 0)


def tensor(dtype: int, shape: list[int], **values) -> tf.compat.v1.Tensor:
    from tensorflow.core.framework import tensor_pb2

    proto = tensor_pb2.TensorProto(dtype=dtype, **values)
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


FLOAT, INT, STRING = (dtype.as_datatype_enum for dtype in (tf.float32, tf.int32, tf.string))
HISTORY = {Request.HISTORY: [["i1"]]}
REFUSED = {
    "no model": (HISTORY, {"model": ""}, Code.INVALID_ARGUMENT, "Missing ModelSpec"),
    "unknown model": (HISTORY, {"model": "nope"}, Code.NOT_FOUND, "model nope"),
    "unknown version": (HISTORY, {"version": 9}, Code.NOT_FOUND, r"Specific\(dnc_exact, 9\)"),
    "unknown label": (HISTORY, {"label": "beta"}, Code.INVALID_ARGUMENT, "label: beta"),
    "a label that is set to nothing": (HISTORY, {"label": ""}, Code.INVALID_ARGUMENT, "label: ;"),
    "unknown signature": (HISTORY, {"signature": "nope"}, Code.FAILED_PRECONDITION, "no signature 'nope'"),
    "unknown input": ({**HISTORY, "nope": [1]}, {}, Code.INVALID_ARGUMENT, "no input 'nope'"),
    "wrong dtype": ({**HISTORY, "alpha": [1]}, {}, Code.INVALID_ARGUMENT, "'alpha' must be float32"),
    "wrong rank": ({Request.HISTORY: ["i1"]}, {}, Code.INVALID_ARGUMENT, "'history' must be string"),
    "scalar": ({**HISTORY, "alpha": 1.0}, {}, Code.INVALID_ARGUMENT, "'alpha' must be float32"),
    "misspelt merge": ({**HISTORY, "merge": ["avarage"]}, {}, Code.INVALID_ARGUMENT, "'merge' must be one of quota"),
    "rows differ": (
        {Request.HISTORY: [["i1"]] * 3, "alpha": [1.0, 2.0]},
        {},
        Code.INVALID_ARGUMENT,
        "different numbers of rows",
    ),
    "too many rows": ({Request.HISTORY: [["i1"]] * 65}, {}, Code.INVALID_ARGUMENT, "max_batch_size=64"),
    "huge shape": (
        {Request.HISTORY: tensor(STRING, [2**31, 2**20], string_val=[b"i1"])},
        {},
        Code.INVALID_ARGUMENT,
        "elements, more than",
    ),
    "an unknown input is not even read": (
        {**HISTORY, "nope": tensor(STRING, [2**31, 2**20], string_val=[b"i1"])},
        {},
        Code.INVALID_ARGUMENT,
        "no input 'nope'",
    ),
    "one long list for many": (
        {Request.GROUPS: tensor(INT, [1, 2**19], int_val=[1] * 2**19), Request.USER_ID: ["u1", "u2", "u3"]},
        {},
        Code.INVALID_ARGUMENT,
        "3 x 524288 values, more than max_batch_elements=1048576",
    ),
    "a few bytes for half a million values": (
        {Request.HISTORY: tensor(STRING, [1, 2**19], string_val=[b"i1"])},
        {},
        Code.INVALID_ARGUMENT,
        "it has 1 of 524288 values, and the last may repeat 65536 times: send all",
    ),
    "wide without a row": (
        {Request.HISTORY: tensor(STRING, [0, 2**40])},
        {},
        Code.INVALID_ARGUMENT,
        "0 x 1099511627776 values, more than",
    ),
    "negative shape": ({Request.HISTORY: tensor(STRING, [-1, 2])}, {}, Code.INVALID_ARGUMENT, "not a valid tensor"),
    "values do not fill the shape": (
        {**HISTORY, "alpha": tensor(FLOAT, [3], tensor_content=b"abc")},
        {},
        Code.INVALID_ARGUMENT,
        "'alpha' is not a tensor of shape .3.: tensor_content has 3 bytes, but the shape takes 12",
    ),
    "unknown dtype": ({Request.HISTORY: tensor(99, [1, 1])}, {}, Code.INVALID_ARGUMENT, "'history' is not a tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_request_is_refused(predict, name):
    inputs, spec, code, message = REFUSED[name]
    protos = {k: v if not isinstance(v, list | float) else tf.make_tensor_proto(v) for k, v in inputs.items()}
    refused = request({}, **spec)
    for key, proto in protos.items():
        refused.inputs[key].CopyFrom(proto)
    with pytest.raises(grpc.RpcError, match=message) as raised:
        predict.Predict(refused)
    assert raised.value.code() == code


def test_odd_but_allowed_requests_are_answered(predict, session, trained):
    """Unknown ids only, a history of 10,000, NaN and negative alpha, an M above the catalogue."""
    ids = trained.catalogue.item_ids
    histories = [["nobody"], ids[np.arange(10_000) % 500].tolist(), ["i1"], ["i2"]]
    inputs = history_inputs(histories)
    inputs[Request.ALPHA] = np.array([1.0, 1.0, np.nan, -1.0], np.float32)
    inputs[Request.NUM_CANDIDATES] = np.array([2**31 - 1, 3, 3, -5], np.int32)
    answer = arrays(predict.Predict(request(inputs)))
    assert_same(answer, session.predict(Signature.SERVING_DEFAULT, inputs))


def test_the_standard_health_check_tells_who_answers(server):
    """In bytes, as the specification has them: a request is the string 1, a response the enum 1 with SERVING = 1."""
    with server.channel() as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == check(b"\x0a\x03dnc") == check(b"\x0a\x09dnc_exact") == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as raised:
            check(b"\x0a\x06nobody")
        assert raised.value.code() == Code.NOT_FOUND
        with pytest.raises(grpc.RpcError) as raised:
            next(channel.unary_stream("/grpc.health.v1.Health/Watch")(b""))
        assert raised.value.code() == Code.UNIMPLEMENTED


def test_a_model_without_a_version_is_not_serving(tmp_path):
    async def ask(name: str) -> int:
        api = GrpcApi(Models({"dnc": tmp_path}, ServerConfig(), Metrics(["dnc"])), Metrics(["dnc"]), 1)
        return (await api._health(wrappers_pb2.StringValue(value=name), None)).value

    assert [asyncio.run(ask(name)) for name in ("", "dnc")] == [2, 2]


def test_other_methods_are_unimplemented(predict):
    with pytest.raises(grpc.RpcError) as raised:
        predict.Classify(predict_pb2.PredictRequest())
    assert raised.value.code() == Code.UNIMPLEMENTED


def test_a_message_above_the_limit_is_refused(server, predict):
    with pytest.raises(grpc.RpcError) as raised:
        predict.Predict(request({Request.HISTORY: [["x" * 2**20]]}))
    assert raised.value.code() == Code.RESOURCE_EXHAUSTED


def test_a_message_of_any_length_comes_with_its_code(predict):
    """gRPC refuses what is longer than 8 to 16 KB, as it is percent-encoded, and calls that RESOURCE_EXHAUSTED."""
    for name in ("x" * 100_000, "\N{WATERMELON}" * 20_000):
        with pytest.raises(grpc.RpcError) as raised:
            predict.Predict(request({name: [1]}))
        assert raised.value.code() == Code.INVALID_ARGUMENT
        assert raised.value.details().endswith(name[0] + "...TRUNCATED")


def test_bytes_that_are_no_proto_are_refused(server):
    with server.channel() as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"\xff\xff\xff no proto")
    assert raised.value.code() == Code.INVALID_ARGUMENT


def test_a_burst_while_the_loop_is_busy_is_answered(server, predict):
    server.keep_busy(2.0)
    # More than gRPC leaves unread unless it is told, fewer than the queue holds.
    calls = [predict.Predict.future(request(history_inputs([["i1"]]))) for _ in range(1500)]
    assert {call.code() for call in calls} == {Code.OK}


def test_a_burst_beyond_a_short_queue_is_overload(serve, base):
    server = serve(base, max_batch_size=1, max_enqueued_batches=2)
    with server.channel() as channel:
        ask = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict
        ask(request({}, model="dnc"))
        server.keep_busy(2.0)
        burst = [ask.future(request({}, model="dnc")) for _ in range(50)]
        codes = [one.code() for one in burst]
    assert set(codes) == {Code.OK, Code.RESOURCE_EXHAUSTED}
    assert codes.count(Code.OK) >= 2  # as many as the queue holds


def test_a_server_that_stops_answers_what_has_come_while_its_loop_was_busy(serve, base):
    server = serve(base)
    with server.channel() as channel:
        grpc.channel_ready_future(channel).result()  # so that what is sent comes while the loop is busy
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        server.keep_busy(1.0)
        calls = [stub.Predict.future(request(history_inputs([["i1"]]), "dnc")) for _ in range(50)]
        server.stop()
        assert {call.code() for call in calls} == {Code.OK}


def test_a_deadline_that_passed_is_said_so(predict):
    with pytest.raises(grpc.RpcError) as raised:
        predict.Predict(request(history_inputs([["i1"]])), timeout=1e-4)
    assert raised.value.code() == Code.DEADLINE_EXCEEDED


def test_metadata_has_the_signatures_with_their_defaults(predict, session):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    asked.model_spec.name = "dnc_exact"
    response = predict.GetModelMetadata(asked)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert dict(signatures.signature_def) == dict(session.signatures)
    assert response.model_spec.version.value == 1


@pytest.mark.parametrize("fields", [[], ["nope"]])
def test_metadata_of_another_field_is_refused(predict, fields):
    asked = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    asked.model_spec.name = "dnc"
    with pytest.raises(grpc.RpcError, match="signature_def") as raised:
        predict.GetModelMetadata(asked)
    assert raised.value.code() == Code.INVALID_ARGUMENT


def test_status(models):
    asked = get_model_status_pb2.GetModelStatusRequest()
    asked.model_spec.name = "dnc"
    (status,) = models.GetModelStatus(asked).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, AVAILABLE, 0)
    asked.model_spec.version.value = 7
    with pytest.raises(grpc.RpcError, match="version 7 of model dnc") as raised:
        models.GetModelStatus(asked)
    assert raised.value.code() == Code.NOT_FOUND
