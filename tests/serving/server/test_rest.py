"""REST: TF Serving's documented forms, its statuses, and clients that misbehave."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import socket
import struct
import threading
import time

import numpy as np
import pytest
import requests

from contracts.names import Response, Signature
from serving.servable_session import decode
from serving.server import connections
from serving.server.rest_api import _DRAIN_SECONDS, METRICS_PATH
from tests.serving.server.conftest import add_version, eventually

MODEL = "/v1/models/dnc_exact"


def post(server, body, path=f"{MODEL}:predict", **kwargs) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body)
    return requests.post(server.url + path, data=data, timeout=60, **kwargs)


def test_rows_and_columns_are_two_forms_of_the_sessions_answer(server, session):
    histories, wanted = [["i1", "i2"], ["i3", ""]], [2, 3]
    expected = session.recommend(histories, num_candidates=wanted)
    columns = {
        Response.GROUP_IDS: expected.group_ids.tolist(),
        Response.ITEM_IDS: expected.item_ids.tolist(),
        Response.SCORES: [pytest.approx(row, rel=1e-4) for row in expected.scores.tolist()],
    }
    answer = post(server, {"inputs": {"history": histories, "num_candidates": wanted}})
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.json() == {"outputs": columns}
    rows = [{"history": history, "num_candidates": number} for history, number in zip(histories, wanted, strict=True)]
    expected_rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    answer = post(server, {"instances": rows, "signature_name": Signature.SERVING_DEFAULT})
    assert answer.json() == {"predictions": expected_rows}


def test_an_only_input_needs_no_name(server, session):
    embeddings, groups = session.candidate_embedding(["i4", "nobody"])
    signature = {"signature_name": Signature.CANDIDATE_EMBEDDING}
    for body in ({"instances": ["i4", "nobody"]}, {"instances": [{"item_ids": "i4"}, {"item_ids": "nobody"}]}):
        rows = post(server, {**signature, **body}).json()["predictions"]
        assert [row["group_ids"] for row in rows] == groups.tolist()
        np.testing.assert_allclose([row["embeddings"] for row in rows], embeddings, rtol=1e-6)


@pytest.mark.parametrize("written", ["aTQ=", "aTQ", "a TQ\n="])
def test_base64_is_read_as_tf_serving_reads_it(server, session, written):
    """absl::Base64Unescape takes it without padding and with white space; its alphabet is not the web-safe one."""
    assert base64.b64encode(b"i4") == b"aTQ="
    _, groups = session.candidate_embedding(["i4"])
    signature = {"signature_name": Signature.CANDIDATE_EMBEDDING}
    columns = post(server, {**signature, "inputs": [{"b64": written}]}).json()["outputs"]
    assert columns["group_ids"] == groups.tolist()


def test_nan_is_a_number_and_absent_scores_are_minus_infinity(server, trained):
    everything = trained.catalogue.item_ids.tolist()
    body = json.dumps({"inputs": {"history": [everything], "num_candidates": [2], "alpha": [float("nan")]}})
    assert "NaN" in body
    answer = post(server, body.encode())
    assert "-Infinity" in answer.text
    assert decode(np.array(answer.json()["outputs"]["item_ids"], "S").astype(object)).tolist() == [["", ""]]


HISTORY = {"history": [["i1"]]}
REFUSED = {
    "nothing": (b"", 400, "JSON Parse error"),
    "not JSON": (b'{"inputs": ', 400, "JSON Parse error"),
    "not UTF-8": (b'{"inputs": "\xff"}', 400, "not UTF-8 (invalid start byte at byte 12): encode it in UTF-8"),
    "UTF-16": (json.dumps({"inputs": {}}).encode("utf-16"), 400, "not UTF-8 (invalid start byte at byte 0)"),
    "UTF-16 without its mark": (json.dumps({"inputs": {}}).encode("utf-16-le"), 400, "JSON Parse error"),
    "UTF-32": (json.dumps({"inputs": {}}).encode("utf-32"), 400, "not UTF-8"),
    "half a surrogate pair": (b'{"inputs": {"history": [["\xed\xa0\x80"]]}}', 400, "not UTF-8"),
    "deep": (b"[" * 100_000, 400, "nested too deeply|JSON Parse error"),
    "a number of 10,000 digits": (b'{"inputs": {"alpha": [' + b"9" * 10_000 + b"]}}", 400, "too many digits"),
    "not an object": ([1], 400, "must be a JSON object"),
    "neither form": ({}, 400, "exactly one of"),
    "both forms": ({"inputs": HISTORY, "instances": [HISTORY]}, 400, "exactly one of"),
    "no rows": ({"instances": []}, 400, "an empty list"),
    "rows of two kinds": ({"instances": [{"history": ["i1"]}, ["i1"]]}, 400, "element 1 differs"),
    "rows with other keys": ({"instances": [{"history": ["i1"]}, {"alpha": 1.0}]}, 400, "element 1 differs"),
    "no such input": ({"inputs": {**HISTORY, "nope": 1}}, 400, "no input 'nope'"),
    "ragged": ({"inputs": {"history": [["i1"], ["i1", "i2"]]}}, 400, "pad the shorter with ''"),
    "ragged numbers": ({"inputs": {**HISTORY, "groups": [[1], [1, 2]]}}, 400, "pad the shorter with -1"),
    "a misspelt merge": (
        {"inputs": {**HISTORY, "merge": ["avarage"]}},
        400,
        "must be one of quota, score, round_robin",
    ),
    "too flat": ({"inputs": {"history": ["i1"]}}, 400, "nested 2 deep, but is nested 1 deep"),
    "too deep": ({"inputs": {"history": [[["i1"]]]}}, 400, "must hold strings, got a list"),
    "null": ({"inputs": {"history": [[None]]}}, 400, "must hold strings, got null"),
    "bad base64": ({"inputs": {"history": [[{"b64": "?"}]]}}, 400, "not base64"),
    "base64 cut off": ({"inputs": {"history": [[{"b64": "aTQxM"}]]}}, 400, "not base64"),
    "base64 with half its padding": ({"inputs": {"history": [[{"b64": "aQ="}]]}}, 400, "not base64"),
    "web-safe base64": ({"inputs": {"history": [[{"b64": "-_8="}]]}}, 400, "not base64"),
    "text for a number": ({"inputs": {**HISTORY, "alpha": ["1"]}}, 400, "'alpha' must hold float32, got a string"),
    "fraction for a whole number": ({"inputs": {**HISTORY, "num_candidates": [1.5]}}, 400, "must hold int32"),
    "boolean for a number": ({"inputs": {**HISTORY, "num_candidates": [True]}}, 400, "got a boolean"),
    "too large a number": ({"inputs": {**HISTORY, "num_candidates": [2**40]}}, 400, "out of range for int32"),
    "a whole number that a float may round": ({"inputs": {**HISTORY, "alpha": [2**24]}}, 400, "with a decimal point"),
    "signature that is no text": ({"inputs": HISTORY, "signature_name": 3}, 400, "must be a string"),
    "unknown signature": ({"inputs": HISTORY, "signature_name": "nope"}, 400, "no signature 'nope'"),
    "65 rows": ({"inputs": {"history": [["i1"]] * 65}}, 400, "max_batch_size=64"),
    "above the limit": (b" " * (2**20 + 1), 413, "exceeded. Set server.max_request_bytes"),
}


def test_rows_that_leave_everything_out_are_as_many(server):
    [one], three = (post(server, {"instances": [{}] * number}).json()["predictions"] for number in (1, 3))
    assert [row["item_ids"] for row in three] == [one["item_ids"]] * 3
    assert len(post(server, {"inputs": {}}).json()["outputs"]["item_ids"]) == 1


def test_a_body_that_is_not_compressed_as_it_says_is_refused(server):
    answer = post(server, {"inputs": {}}, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 400
    assert "the body cannot be read: " in answer.json()["error"]


def test_utf_8_may_begin_with_its_mark(server):
    body = json.dumps({"inputs": {"history": [["i1", "über"]]}}, ensure_ascii=False)
    assert post(server, body.encode("utf-8-sig")).content == post(server, body.encode()).content


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_body_is_refused_with_a_reason(server, name):
    body, status, message = REFUSED[name]
    answer = post(server, body)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert any(part in answer.json()["error"] for part in message.split("|"))


def assert_alive(server) -> None:
    assert post(server, {"inputs": HISTORY}).status_code == 200


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def head(length: int) -> bytes:
    return f"POST {MODEL}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode()


def test_a_body_of_100_megabytes_is_refused_without_being_kept(server):
    with connect(server) as client:
        client.sendall(head(100_000_000))
        chunk = b" " * 2**16
        answer = b""
        try:
            for _ in range(100_000_000 // len(chunk)):
                client.sendall(chunk)
        except OSError:
            pass  # the server closed the connection: it had said enough
        try:
            answer = client.recv(4096)
        except OSError:
            answer = b"HTTP/1.1 413"
        assert not answer or b" 413 " in answer or answer.endswith(b"413")
    assert_alive(server)


def test_clients_that_send_half_a_request_and_go_leave_nothing_behind(server):
    for rest in (b"", b'{"inputs"', b"x" * 50):
        with connect(server) as client:
            client.sendall(head(100) + rest)
    assert_alive(server)


def test_a_client_that_leaves_during_its_upload_is_no_fault_of_the_server(serve, base, caplog):
    server = serve(base)
    with connect(server) as client:
        client.sendall(head(100).replace(b"dnc_exact", b"dnc") + b'{"inputs"')
        time.sleep(0.3)  # until the server waits for the rest
        caplog.clear()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes by a reset
    counted = ':tensorflow:serving:request_count_total{model_name="dnc",status="CANCELLED"} 1.0'
    eventually(lambda: counted in requests.get(server.url + METRICS_PATH, timeout=10).text)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_what_is_not_http_is_refused(server, caplog):
    with connect(server) as client:
        client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.0 400")
    assert_alive(server)
    assert not caplog.records  # a port scanner's traffic is no news


def test_a_body_that_is_not_compressed_as_its_head_says_is_refused(server, caplog):
    answer = post(server, b"no gzip", headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()["error"][:23]) == (400, "the body cannot be read")
    assert not caplog.records


def test_a_slow_client_gets_a_timeout_and_holds_nobody_up(serve, base):
    server = serve(base, request_timeout_seconds=1.0)
    with connect(server) as client:
        client.sendall(head(1000).replace(b"dnc_exact", b"dnc") + b'{"inputs": ')
        answered = post(server, {"inputs": HISTORY}, "/v1/models/dnc:predict")
        assert answered.status_code == 200
        started = time.monotonic()
        answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"the body did not arrive" in answer + client.recv(4096)
        assert time.monotonic() - started < 15


def test_connections_over_which_no_request_comes_are_ended(serve, base, monkeypatch):
    """Each holds a file descriptor of the server's. One that asks now and then, or whose body arrives, is none."""
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 3.0)
    server = serve(base)
    body = json.dumps({"inputs": HISTORY}).encode()
    whole = (head(len(body)) + body).replace(b"dnc_exact", b"dnc")
    begun = (b"", b"POST /v1", head(100)[:-4], b"\r\n")
    with requests.Session() as asking, connect(server) as slow, contextlib.ExitStack() as stack:
        slow.sendall(whole[:-9])
        silent = [stack.enter_context(connect(server)) for _ in begun]
        for client, sent in zip(silent, begun, strict=True):
            client.sendall(sent)
        ports = set()
        for _ in range(14):
            with asking.get(f"{server.url}/v1/models/dnc", timeout=20, stream=True) as answer:
                ports.add(answer.raw.connection.sock.getsockname())
                assert answer.json()  # read to its end, so that the connection is used again
            time.sleep(0.5)
        assert len(ports) == 1
        assert [client.recv(4096) for client in silent] == [b""] * len(begun)
        slow.sendall(whole[-9:])
        assert slow.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_connection_whose_answers_nobody_reads_is_ended(serve, base, monkeypatch):
    """One whose answers are read slowly is not, and be it that a socket's buffer takes longer than that to be read."""
    monkeypatch.setattr(connections, "_IDLE_SECONDS", 2.0)
    server = serve(base)
    body = json.dumps({"inputs": {"history": [["i1"]] * 64, "num_candidates": [1000] * 64}}).encode()
    answer = len(post(server, body, "/v1/models/dnc:predict").content)
    requested = 16 * (head(len(body)) + body).replace(b"dnc_exact", b"dnc")  # answers that no system's buffer holds
    open_files = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    time.sleep(0.3)  # until that one's connection is closed
    before = open_files()
    with connect(server) as silent:
        silent.sendall(requested)
        with connect(server) as slow:
            slow.sendall(requested)
            received = 0
            while received < 16 * answer:
                received += len(part := slow.recv(answer // 8 if received > 1_200_000 else 10_000))
                assert part
                time.sleep(0.05)
        eventually(lambda: open_files() == before + 1)  # the client's own end


def test_nothing_is_computed_for_a_client_that_has_given_up(serve, base):
    """REST tells no deadline: who has waited long enough closes the connection."""
    server = serve(base, batch_timeout_micros=3_000_000)  # so long a request waits for others
    with pytest.raises(requests.ReadTimeout):
        requests.post(f"{server.url}/v1/models/dnc:predict", json={"inputs": HISTORY}, timeout=0.5)
    assert post(server, {"inputs": HISTORY}, "/v1/models/dnc:predict").status_code == 200
    lines = requests.get(server.url + METRICS_PATH, timeout=10).text.splitlines()
    assert ":tensorflow:serving:batching_session:processed_batch_size_count 1.0" in lines
    assert ":tensorflow:serving:batching_session:processed_batch_size_sum 1.0" in lines


def test_a_server_that_stops_drops_no_request_of_a_busy_client(serve, base):
    server = serve(base)
    answered, ends = [], []

    def ask() -> None:
        with requests.Session() as session:
            try:
                while True:
                    answer = session.post(f"{server.url}/v1/models/dnc:predict", json={"inputs": HISTORY}, timeout=30)
                    answered.append(answer.status_code)
            except requests.ConnectionError as error:
                ends.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 60
    while len(answered) < 50 and time.monotonic() < until:
        time.sleep(0.01)
    server.stop()
    for thread in threads:
        thread.join()
    assert set(answered) == {200}
    # Each was told to leave its connection, and found nobody at the next: none was cut off.
    assert ["refused" in str(error) for error in ends] == [True] * 8


def test_a_server_that_stops_waits_for_a_body_that_has_begun_to_come(serve, base):
    server = serve(base)
    body = json.dumps({"inputs": HISTORY}).encode()
    with connect(server) as client:
        client.sendall(head(len(body)).replace(b"dnc_exact", b"dnc") + body[:5])
        time.sleep(0.3)  # until the server waits for the rest
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        time.sleep(2 * _DRAIN_SECONDS)
        client.sendall(body[5:])
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    stopping.join()


def test_a_body_that_comes_after_its_version_has_gone_is_answered_by_the_next(serve, base, servable):
    server = serve(base, request_timeout_seconds=90.0)  # the body waits for the version to go
    body = json.dumps({"inputs": HISTORY}).encode()
    with connect(server) as client:
        client.sendall(head(len(body)).replace(b"dnc_exact", b"dnc") + body[:5])
        add_version(base, 2, servable)
        versions = lambda: requests.get(f"{server.url}/v1/models/dnc", timeout=10).json()["model_version_status"]  # noqa: E731
        until = time.monotonic() + 60
        while {one["version"]: one["state"] for one in versions()}.get("1", "END") != "END":
            assert time.monotonic() < until
            time.sleep(0.05)
        client.sendall(body[5:])
        assert client.recv(4096).startswith(b"HTTP/1.1 200")


def test_overload_is_429_and_passes(serve, base):
    server = serve(base, max_batch_size=1, max_enqueued_batches=1)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(24) as pool:
        ask = lambda _: post(server, {"inputs": HISTORY}, "/v1/models/dnc:predict")  # noqa: E731
        answers = list(pool.map(ask, range(120)))
    counts = {status: sum(answer.status_code == status for answer in answers) for status in (200, 429)}
    assert sum(counts.values()) == 120
    assert min(counts.values()) > 0
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert "overload" in refused.json()["error"]
    assert post(server, {"inputs": HISTORY}, "/v1/models/dnc:predict").status_code == 200
