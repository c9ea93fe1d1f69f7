"""REST: a client that closes its half of the connection gets what it has asked for; one that is gone costs nothing."""

from __future__ import annotations

import json
import re
import socket
import time

import pytest
import requests

from serving.server.rest_api import METRICS_PATH
from tests.serving.server.test_rest import HISTORY, MODEL, connect, head, post

BODY = json.dumps({"inputs": HISTORY}).encode()
PREDICT = head(len(BODY)) + BODY
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def told(server, *parts: bytes, pause: float = 0.0) -> bytes:
    """All that a client is sent which sends these parts and then closes its half."""
    with connect(server) as client:
        for part in parts:
            time.sleep(pause)
            client.sendall(part)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(2**16), b""))


def answer(sent: bytes) -> tuple[int, bytes, bytes]:
    """Status, head and body; before it there may be a word that it is to come."""
    first, body = sent.removeprefix(CONTINUE).split(b"\r\n\r\n", 1)
    assert int(re.search(rb"Content-Length: (\d+)", first)[1]) == len(body)
    return int(first.split()[1]), first, body


@pytest.mark.parametrize(
    "cut", [0, 1, len(head(len(BODY))), len(PREDICT) - 1], ids=["whole", "first byte", "head first", "last byte"]
)
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_client_that_closes_its_half_gets_its_prediction(server, cut, pause):
    status, first, body = answer(told(server, PREDICT[:cut], PREDICT[cut:], pause=pause))
    assert (status, json.loads(body)) == (200, post(server, {"inputs": HISTORY}).json())
    assert b"connection: close" in first.lower()


def test_none_is_missed_however_soon_it_closes_its_half(server):
    assert {answer(told(server, PREDICT))[0] for _ in range(100)} == {200}


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/metadata", METRICS_PATH, "/v1/models/nobody", "/elsewhere"])
def test_so_it_does_whatever_it_asks(server, path):
    status, _, body = answer(told(server, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()))
    expected = requests.get(server.url + path, timeout=10)
    assert status == expected.status_code
    assert path == METRICS_PATH or body == expected.content


def test_a_client_of_http_1_0_is_sent_nothing_but_its_answer(serve, base):
    server = serve(base, batch_timeout_micros=200_000)  # for so long the half-closed connection waits
    request = PREDICT.replace(b"dnc_exact", b"dnc")
    assert told(server, request).startswith(CONTINUE + b"HTTP/1.1 200")
    assert told(server, request.replace(b"HTTP/1.1", b"HTTP/1.0")).startswith(b"HTTP/1.0 200")


@pytest.mark.parametrize("sent", [0, 1, len(BODY) - 1])
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_body_that_ends_too_soon_is_refused(server, caplog, sent, pause):
    status, _, body = answer(told(server, head(len(BODY)), BODY[:sent], pause=pause))
    assert status == 400
    assert json.loads(body) == {
        "error": "the body cannot be read: the client closed its half of the connection before "
        f"its {len(BODY)} bytes were sent"
    }
    assert not caplog.records


@pytest.mark.parametrize("chunks", [b"", b"5\r\n{", b"1\r\n{\r\n"])
def test_chunks_without_a_last_one_are_refused(server, chunks):
    chunked = head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    status, _, body = answer(told(server, chunked + chunks))
    assert (status, json.loads(body)["error"][-24:]) == (400, "before the body was sent")


@pytest.mark.parametrize("begun", [b"", b"POST /v1", head(9)[:-2]])
def test_who_has_asked_nothing_is_told_nothing(server, begun):
    assert told(server, begun) == b""


def test_of_two_requests_at_once_the_first_answer_says_that_it_is_the_last(server):
    status, first, _ = answer(told(server, PREDICT + PREDICT))
    assert (status, b"connection: close" in first.lower()) == (200, True)


def test_a_long_answer_is_sent_to_its_end(server):
    long = json.dumps({"inputs": {"history": [["i1"]] * 64, "num_candidates": [1000] * 64}}).encode()
    with connect(server) as client:
        client.sendall(head(len(long)) + long)
        client.shutdown(socket.SHUT_WR)
        parts = []
        while part := client.recv(2**16):
            parts.append(part)
            time.sleep(0.01)
    status, _, body = answer(b"".join(parts))
    assert (status, body) == (200, post(server, long).content)
    assert len(body) > 100_000


def test_a_client_that_has_left_is_not_computed_for_although_it_may_have_closed_its_half_only(serve, base):
    server = serve(base, batch_timeout_micros=2_000_000)
    with connect(server) as client:
        client.sendall(PREDICT.replace(b"dnc_exact", b"dnc"))
        time.sleep(0.2)
    assert post(server, {"inputs": HISTORY}, "/v1/models/dnc:predict").status_code == 200
    lines = requests.get(server.url + METRICS_PATH, timeout=10).text.splitlines()
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum 1.0" in lines
