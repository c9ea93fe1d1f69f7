"""A request that is not answered leaves nothing behind, not even for the collector of cycles.

`dnc serve` lets that wait for many objects, and each request may hold `server.max_request_bytes`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import socket
import struct
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence

import grpc
import numpy as np
import pytest
import requests
from tensorflow_serving.apis import model_management_pb2

from serving.server.batcher import Batcher
from serving.server.errors import invalid
from serving.signature_spec import Arrays
from tests.serving.server.batching import Graph, run, settle
from tests.serving.server.conftest import LiveServer, eventually
from tests.serving.server.test_grpc import request
from tests.serving.server.test_rest import connect, head

LARGE = 900_000
"""Bytes of a large value. The package's server takes requests of up to 2**20 bytes."""
TIMES = 6
PREDICT = "/tensorflow.serving.PredictionService/Predict"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
HISTORY = [["x" * LARGE]]


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture(scope="module")
def slow(servables) -> Iterator[LiveServer]:
    """A server whose batches begin after the time that a request has."""
    config = {"batch_timeout_micros": 150_000, "request_timeout_seconds": 0.1}
    with LiveServer({"dnc_exact": servables["exact"].parent}, **config) as server:
        yield server


def assert_nothing_stays(refused: Callable[[], None]) -> None:
    """Python's memory, as it counts it, has grown by less than one request after several."""
    refused()  # what is made once
    tracemalloc.start()
    try:
        for _ in range(TIMES):
            refused()
        # The server may still be at work on what it has refused.
        eventually(lambda: tracemalloc.get_traced_memory()[0] < LARGE, seconds=3.0)
    finally:
        tracemalloc.stop()


def call(server: LiveServer, body: bytes, method: str = PREDICT) -> grpc.StatusCode:
    with server.channel() as channel, pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(method)(body)
    return raised.value.code()


def reload_config() -> bytes:
    message = model_management_pb2.ReloadConfigRequest()
    message.config.model_config_list.config.add(name="dnc", base_path="x" * LARGE)
    return message.SerializeToString()


def message(inputs: dict, **spec) -> bytes:
    return request(inputs, **spec).SerializeToString()


OVER_GRPC = {
    "unknown input": (message({"nope": HISTORY}), PREDICT, "INVALID_ARGUMENT"),
    "wrong rank": (message({"history": HISTORY[0]}), PREDICT, "INVALID_ARGUMENT"),
    "unknown model": (message({"history": HISTORY}, model="nope"), PREDICT, "NOT_FOUND"),
    "unknown version": (message({"history": HISTORY}, version=9), PREDICT, "NOT_FOUND"),
    "unknown signature": (message({"history": HISTORY}, signature="nope"), PREDICT, "FAILED_PRECONDITION"),
    "by the graph": (message({"history": HISTORY, "group_boost": [[1.0, 2.0]]}), PREDICT, "INVALID_ARGUMENT"),
    "no proto": (b"\xff" * LARGE, PREDICT, "INVALID_ARGUMENT"),
    "metadata": (message({"history": HISTORY}), PREDICT.replace("/Predict", "/GetModelMetadata"), "INVALID_ARGUMENT"),
    "reload": (reload_config(), RELOAD, "INVALID_ARGUMENT"),
}


@pytest.mark.parametrize("name", OVER_GRPC)
def test_grpc_keeps_nothing_of_what_it_refuses(server, name):
    body, method, code = OVER_GRPC[name]
    assert call(server, body, method).name == code
    assert_nothing_stays(lambda: call(server, body, method))


def test_grpc_keeps_nothing_of_what_is_late(slow):
    body = message({"history": HISTORY})

    def refused() -> None:
        assert call(slow, body).name == "DEADLINE_EXCEEDED"
        time.sleep(0.1)

    assert_nothing_stays(refused)


def test_grpc_keeps_nothing_of_what_a_client_cancels(slow):
    body = message({"history": HISTORY})

    def cancelled() -> None:
        with slow.channel() as channel:
            asked = channel.unary_unary(PREDICT).future(body)
            time.sleep(0.05)
            asked.cancel()
        time.sleep(0.15)

    assert_nothing_stays(cancelled)


def post(server: LiveServer, inputs: dict, status: int, path: str = "dnc_exact:predict", **more: object) -> None:
    body = json.dumps({"inputs": inputs, **more})
    answer = requests.post(f"{server.url}/v1/models/{path}", data=body, timeout=20)
    assert answer.status_code == status


OVER_REST = {
    "unknown input": ({"nope": HISTORY}, 400, {}),
    "not a list": ({"history": HISTORY[0][0]}, 400, {}),
    "unknown model": ({"history": HISTORY}, 404, {"path": "nope:predict"}),
    "unknown signature": ({"history": HISTORY}, 400, {"signature_name": "nope"}),
    "by the graph": ({"history": HISTORY, "group_boost": [[1.0, 2.0]]}, 400, {}),
    "malformed path": ({"history": HISTORY}, 400, {"path": "dnc_exact:classify"}),
    "too large": ({"history": [["x" * 2**21]]}, 413, {}),
}


@pytest.mark.parametrize("name", OVER_REST)
def test_rest_keeps_nothing_of_what_it_refuses(server, name):
    inputs, status, more = OVER_REST[name]
    assert_nothing_stays(lambda: post(server, inputs, status, **more))


@pytest.mark.parametrize(("coding", "status"), [("gzip", 400), ("br", 415)])
def test_rest_keeps_nothing_of_what_it_cannot_inflate(server, coding, status):
    def refused() -> None:
        sent = {"data": b" " * LARGE, "headers": {"Content-Encoding": coding}}
        assert requests.post(f"{server.url}/v1/models/dnc_exact:predict", timeout=20, **sent).status_code == status

    assert_nothing_stays(refused)


def test_rest_keeps_nothing_of_what_is_late(slow):
    def refused() -> None:
        post(slow, {"history": HISTORY}, 504)
        time.sleep(0.1)

    assert_nothing_stays(refused)


def send_part(server: LiveServer) -> socket.socket:
    client = connect(server)
    client.sendall(head(LARGE + 1) + b" " * LARGE)
    return client


def half_close(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)
    assert client.recv(4096).startswith(b"HTTP/1.1 400")


def reset(client: socket.socket) -> None:
    time.sleep(0.05)  # until it waits for the rest
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("end", [half_close, socket.socket.close, reset])
def test_rest_keeps_nothing_of_a_body_that_ends_too_soon(server, end):
    def refused() -> None:
        with send_part(server) as client:
            end(client)

    assert_nothing_stays(refused)


def test_rest_keeps_nothing_of_a_body_that_is_late(slow):
    def refused() -> None:
        with send_part(slow) as client:
            assert client.recv(4096).startswith(b"HTTP/1.1 504")

    assert_nothing_stays(refused)


class Failing(Graph):
    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self.error = error

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        super().run(requests)
        raise self.error("failed")


async def outcome(batcher: Batcher, seen: list[weakref.ref], seconds: float = 10.0) -> str:
    value = np.array([len(seen)])
    seen.append(weakref.ref(value))
    try:
        await batcher.submit({"x": value}, 1, asyncio.get_running_loop().time() + seconds)
    except Exception as error:
        return str(error)
    return "answered"


@pytest.mark.parametrize(
    "graph", [Graph(), Failing(invalid), Failing(RuntimeError)], ids=["answered", "refused", "failed"]
)
@pytest.mark.parametrize("number", [1, 3])
def test_a_batcher_keeps_nothing_of_what_has_run(graph, number, caplog):
    caplog.set_level(logging.CRITICAL + 1, "serving.server.batcher")  # pytest would keep the errors that are logged

    async def body(graph: Graph, batcher: Batcher) -> None:
        seen: list[weakref.ref] = []
        await asyncio.gather(*(outcome(batcher, seen) for _ in range(number)))
        await settle()
        assert [one() for one in seen] == [None] * number

    run(body, graph)


def test_a_batcher_keeps_nothing_of_what_waits_too_long_or_finds_the_queue_full():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        seen: list[weakref.ref] = []
        running = asyncio.ensure_future(outcome(batcher, seen))
        await settle()
        answers = await asyncio.gather(*(outcome(batcher, seen, seconds=0.02) for _ in range(9)))
        assert ["overload" in answer for answer in answers] == [False] * 8 + [True]
        assert seen[-1]() is None
        graph.gate.set()
        assert await running == "answered"
        await settle()
        assert [one() for one in seen] == [None] * 10

    run(body)
