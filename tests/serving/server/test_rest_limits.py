"""REST: what one client may ask of the server's loop and of its file descriptors."""

from __future__ import annotations

import json
import resource
import threading

import pytest
import requests

from contracts.config import ServerConfig
from serving.client import RetrievalClient
from serving.server.errors import RequestError, shortened
from serving.server.json_tensors import parse_body
from serving.server.ports import allow_connections
from tests.serving.server.conftest import eventually
from tests.serving.server.test_rest import HISTORY, connect, post

PREDICT = "/v1/models/dnc:predict"


@pytest.mark.parametrize("value", [b"[],", b'{"b64":""},', b'"[",'])
def test_a_body_of_millions_of_lists_or_objects_is_refused_unread(serve, base, value):
    """Read, they take the loop seconds: a body of 16 MB holds five million."""
    server = serve(base, max_batch_elements=1000)
    answer = post(server, b'{"inputs": {"history": [[' + value * 1000 + b"0]]}}", PREDICT)
    assert answer.status_code == 400
    assert "lists and objects, more than max_batch_elements=1000" in answer.json()["error"]


MOST = 2**20
"""Values that a body may have, whatever the limit for one input."""


@pytest.mark.parametrize("value", [b"1,", b'"",', b'"a,b",'])
def test_a_body_of_millions_of_values_is_refused_unread(serve, base, monkeypatch, value):
    server = serve(base, max_batch_elements=1000)
    monkeypatch.setattr(json, "loads", None)
    answer = post(server, b'{"inputs": {"groups": [[' + value * (MOST // value.count(b",") + 1) + b"1]]}}", PREDICT)
    monkeypatch.undo()
    assert answer.status_code == 400
    assert f" commas, more than the {MOST} allowed" in answer.json()["error"]


def test_the_inputs_of_a_request_may_have_more_values_than_each_of_them():
    """Commas: 1 between the inputs, and one fewer than its values in each of the two lists."""
    half = [1] * (MOST // 2)
    body = {"inputs": {"groups": [half], "exclude_item_ids": [half]}}
    assert parse_body(json.dumps(body).encode(), 1000) == body
    with pytest.raises(RequestError, match="the body has 1048577 commas, more than the 1048576 allowed"):
        parse_body(json.dumps([[1] * (MOST + 2)]).encode(), 1000)


def test_a_higher_limit_for_an_input_holds_for_the_body():
    body = {"inputs": {"groups": [[1] * (MOST + 2)]}}
    assert parse_body(json.dumps(body).encode(), 2 * MOST) == body


def test_an_input_of_more_values_than_a_batch_takes_is_refused_before_they_are_looked_at(serve, base):
    server = serve(base, max_batch_elements=1000)
    answer = post(server, {"inputs": {"history": [["i1"] * 1000 + [None]]}}, PREDICT)
    assert "'history' has 1001 values, more than max_batch_elements=1000" in answer.json()["error"]
    assert post(server, {"inputs": {"history": [["i1"] * 1000]}}, PREDICT).ok


@pytest.mark.parametrize("name", ["x" * 100_000, "\N{WATERMELON}" * 20_000], ids=["x", "melon"])
@pytest.mark.parametrize("quoting", ['{"signature_name": %s, "inputs": 1}', '{"inputs": {%s: 1}}'])
def test_an_error_quotes_no_more_of_a_request_than_over_grpc(server, name, quoting):
    """16 kB of gzip had an answer of 50 MB, which stayed in memory if the client did not read it."""
    answer = post(server, (quoting % json.dumps(name)).encode(), PREDICT)
    said = answer.json()["error"]
    assert answer.status_code == 400
    assert said.endswith(name[0] + "...TRUNCATED")
    assert 1020 < len(said.removesuffix("...TRUNCATED").encode()) <= 1024


def test_so_it_does_a_path(server):
    answer = requests.get(f"{server.url}/{'x' * 8000}", timeout=10)
    assert answer.status_code == 404
    assert answer.json() == {"error": f"GET /{'x' * 1019}...TRUNCATED"}


def test_half_a_character_can_be_left_out_of_an_error():
    """JSON may hold such, and bytes that are not UTF-8 become such in Python."""
    assert shortened("\ud83c") == "\ud83c"
    assert shortened("x" + "\ud83c" * 1000) == "x...TRUNCATED"


def test_a_connection_too_many_is_refused_and_the_others_are_answered(serve, base):
    server = serve(base, max_connections=3)
    with requests.Session() as asking, connect(server) as held:
        assert asking.post(server.url + PREDICT, json={"inputs": HISTORY}, timeout=60).ok
        with connect(server) as last:
            last.sendall(b"GET /v1/models/dnc HTTP/1.1\r\nHost: x\r\n\r\n")
            assert last.recv(4096).startswith(b"HTTP/1.1 200")
            with connect(server) as refused:
                assert refused.recv(4096).startswith(b"HTTP/1.1 503")
                assert refused.recv(4096) == b""
            assert asking.post(server.url + PREDICT, json={"inputs": HISTORY}, timeout=60).ok
            held.close()
            eventually(lambda: requests.get(f"{server.url}/v1/models/dnc", timeout=10).ok)


def test_the_client_waits_for_a_connection(serve, base):
    server = serve(base, max_connections=1)
    with connect(server) as held, RetrievalClient.rest(server.url, "dnc", timeout=30) as client:
        threading.Timer(0.5, held.close).start()
        (found,) = client.recommend([["i1"]], num_candidates=3)
    assert len(found.item_ids) == 3


def test_there_are_file_descriptors_for_all_connections(monkeypatch):
    limits = [(1024, 8192)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    for most in (10, 2000, 1000, 10_000):
        allow_connections(ServerConfig(max_connections=most))
    assert limits == [(1024, 8192), (5000, 8192), (8192, 8192)], "as many for each of two ports, and 1,000"
