"""Marks of context, while versions that read them and versions that do not follow one another."""

from __future__ import annotations

import time
from typing import Any

import pytest
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from contracts.names import Request, Signature
from serving.client import RetrievalClient
from serving.client.transport import Code, Target
from tests.serving.server.test_client import Recorded

MARKED = {"histories": [["i1", "i2", "i3"]], Request.HISTORY_IS_CONTEXT: [[False, True, False]]}


def signatures(*, reads_context: bool) -> dict[str, Any]:
    definition = meta_graph_pb2.SignatureDef()
    inputs = {Request.HISTORY: ("", tf.string), Request.HISTORY_IS_CONTEXT: (False, tf.bool)}
    for name, (padding, dtype) in list(inputs.items())[: 1 + reads_context]:
        info = definition.inputs[name]
        info.dtype = dtype.as_datatype_enum
        for _ in range(2):
            info.tensor_shape.dim.add(size=-1)
        definition.defaults[name].CopyFrom(tf.make_tensor_proto([[padding]], dtype))
    return {Signature.SERVING_DEFAULT: definition}


@pytest.fixture
def transport() -> Recorded:
    return Recorded(signatures(reads_context=False))


def history(transport: Recorded) -> list[bytes]:
    """As the last request had it, behind its place of padding."""
    return transport.sent[-1][Request.HISTORY][0, 1:].tolist()


def test_a_model_without_context_is_asked_without_it_and_not_for_its_metadata(transport):
    client = RetrievalClient(transport, Target("dnc"))
    for _ in range(100):
        client.recommend(**MARKED)
        assert history(transport) == [b"i1", b"i3"]
    assert (transport.metadata_calls, len(transport.sent)) == (1, 100)


@pytest.mark.parametrize("reads_context", [True, False], ids=["a push", "a rollback that TF Serving's REST hides"])
def test_a_version_that_refuses_nothing_is_read_as_it_reads_within_a_minute(transport, monkeypatch, reads_context):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    transport.definitions = signatures(reads_context=not reads_context)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend(**MARKED)
    before = history(transport)
    transport.definitions = signatures(reads_context=reads_context)
    now += 59
    client.recommend(**MARKED)
    client.recommend([["i1"]])
    assert transport.metadata_calls == 1
    now += 2
    client.recommend([["i1"]])  # without marks, both read the same
    assert transport.metadata_calls == 1
    for _ in range(2):
        client.recommend(**MARKED)
        assert {tuple(before), tuple(history(transport))} == {(b"i1", b"i3"), (b"i1", b"i2", b"i3")}
        assert (Request.HISTORY_IS_CONTEXT in transport.sent[-1]) == reads_context
    assert transport.metadata_calls == 2


def test_a_rollback_that_refuses_marks_is_no_outage(transport):
    transport.definitions = signatures(reads_context=True)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend(**MARKED)
    transport.definitions = signatures(reads_context=False)
    transport.failures.append(Code.INVALID_ARGUMENT)
    for _ in range(2):
        client.recommend(**MARKED)
        assert history(transport) == [b"i1", b"i3"]
    assert transport.metadata_calls == 2
