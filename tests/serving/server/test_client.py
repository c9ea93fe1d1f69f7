"""The client, over both transports, against the session; and what it does when the server does not answer."""

from __future__ import annotations

import contextlib
import copy
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from contracts.names import Request, Response, Signature
from serving.client import RetrievalClient, RetrievalError
from serving.client.transport import Code, Target
from tests.serving.server.answering import Answering, answering


def test_lists_are_the_sessions(client, session):
    histories, users = [["i1", "i2"], [], ["i3", "nobody", "i4"]], ["u1", "", "u2"]
    found = client.recommend(histories, user_id=users, num_candidates=[3, 5, 4], alpha=0.5)
    expected = session.recommend(histories, user_id=users, num_candidates=[3, 5, 4], alpha=0.5)
    for row, (size, candidates) in enumerate(zip([3, 5, 4], found, strict=True)):
        assert candidates.item_ids == expected.item_ids[row, :size].tolist()
        np.testing.assert_allclose(candidates.scores, expected.scores[row, :size], rtol=1e-4, atol=1e-4)
        assert candidates.group_ids.tolist() == expected.group_ids[row, :size].tolist()
        assert (candidates.scores.dtype, candidates.group_ids.dtype) == (np.float32, np.int32)


def test_features_are_inputs_by_name_and_none_is_a_missing_value(client, session):
    features = {"gender": ["m", None], "age": [30.0, None], "page": ["search", None]}
    served, intent = client.query_embedding([["i1"], ["i1"]], **features)
    expected = session.query_embedding([["i1"], ["i1"]], **features)
    np.testing.assert_allclose(served, expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(intent, expected[1], rtol=1e-4, atol=1e-5)


def test_candidate_embedding(client, session):
    embeddings, groups = client.candidate_embedding(["i5", "nobody"])
    expected = session.candidate_embedding(["i5", "nobody"])
    np.testing.assert_allclose(embeddings, expected[0], rtol=1e-5, atol=1e-5)
    assert groups.tolist() == expected[1].tolist()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"nope": 1}, "has no input 'nope'; it has .*alpha"),
        ({"num_candidates": "many"}, "'num_candidates' must hold int32"),
        ({"alpha": [1.0, 2.0, 3.0]}, r"'alpha' must have one value, or one per user \(2\); got 3"),
        ({"num_candidates": 2.7}, "'num_candidates' must hold int32: 2.7 is not a whole number"),
        ({"exclude_item_ids": "i4"}, "'exclude_item_ids' must be a list, or one list per user; got 'i4'"),
        ({"groups": 1}, "'groups' must be a list, or one list per user; got 1"),
        ({"groups": [[1], 2]}, "'groups' must hold a list per user; got 2 for one"),
        ({"exclude_item_ids": [["i1"]]}, r"'exclude_item_ids' must hold a list per user \(2\); got 1"),
        ({"user_id": [101, 102]}, r"'user_id' must hold string: 101 is not a string; .* write str\(101\)"),
        ({"exclude_item_ids": [[3], [4]]}, "'exclude_item_ids' must hold string: 3 is not a string"),
        ({"merge": "nonsense"}, "'merge' must be one of quota, score, round_robin; got 'nonsense'"),
        ({"merge": ["score", "Quota"]}, "'merge' must be one of .*; got 'Quota'"),
    ],
)
def test_wrong_inputs_are_named(client, inputs, message):
    with pytest.raises(ValueError, match=message):
        client.recommend([["i1"], ["i2"]], **inputs)


@pytest.mark.parametrize("histories", [["i3", "i4"], "i3", [["i3"], "i4"], [b"i3"]])
def test_histories_without_a_list_a_user_are_refused(client, histories):
    for ask in (client.recommend, client.query_embedding):
        with pytest.raises(ValueError, match=r"a list of item ids per user; for one user, write \[\["):
            ask(histories)


@pytest.mark.parametrize("marks", [[[True]], [[True, False], []], [True, False]], ids=str)
def test_marks_that_are_not_one_an_event_are_refused(client, marks):
    with pytest.raises(ValueError, match="'history_is_context' must hold a list per user, with a value per event"):
        client.recommend([["i1", "i2"]], history_is_context=marks)


def test_a_model_without_context_is_asked_without_it(client, session):
    """As in this process, and again where the metadata is remembered: a rollback is no outage of those who mark."""
    marks = [[False, True, False], [True]]
    expected = session.recommend([["i1", "i2", "i3"], ["i4"]], history_is_context=marks, num_candidates=9)
    for _ in range(2):
        found = client.recommend([["i1", "i2", "i3"], ["i4"]], history_is_context=marks, num_candidates=9)
        assert [one.item_ids for one in found] == expected.item_ids.tolist()


@pytest.mark.parametrize("merge", ["", None, b"score", [None, "round_robin"]])
def test_a_merge_that_there_is_or_none_is_taken(client, merge):
    assert all(candidates.item_ids for candidates in client.recommend([["i1"], ["i2"]], merge=merge))


def test_no_users_get_no_lists(client, session):
    """Of the session's shapes, so that answers may be joined, or multiplied, whatever their rows."""
    assert client.recommend([]) == []
    for found, rows in (
        (client.query_embedding([]), session.query_embedding([["i1"]])),
        (client.candidate_embedding([]), session.candidate_embedding(["i1"])),
    ):
        for mine, theirs in zip(found, rows, strict=True):
            assert (mine.shape, mine.dtype) == ((0, *theirs.shape[1:]), theirs.dtype)


@pytest.mark.parametrize("url", ["localhost:8501", "http://", "http://localhost:abc", "ftp://localhost:8501"])
def test_what_is_no_url_of_a_rest_api_is_refused(url):
    with pytest.raises(ValueError, match=rf"'{url}' is not the URL of a REST API: .* http://"):
        RetrievalClient.rest(url, "dnc")


def test_what_could_never_be_sent_is_refused_at_once(client):
    with pytest.raises(ValueError, match=r"gRPC takes host:port, .* 'localhost:8501'"):
        RetrievalClient.grpc("http://localhost:8501/", "dnc")
    for make, at in ((RetrievalClient.grpc, "localhost:1"), (RetrievalClient.rest, "http://localhost:1")):
        with pytest.raises(ValueError, match="the header 'token' must be one printable line"):
            make(at, "dnc", headers={"token": "a\nb"})
        with pytest.raises(ValueError, match="a label must not be empty"):
            make(at, "dnc", label="")
    with pytest.raises(ValueError, match=r"for one item, write \['i3'\]"):
        client.candidate_embedding("i3")


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_a_model_of_any_name_is_asked_for_by_it(server, transport):
    make, at = (RetrievalClient.grpc, server.address) if transport == "grpc" else (RetrievalClient.rest, server.url)
    with make(at, "dnc?x#y", timeout=5) as client, pytest.raises(RetrievalError, match="dnc") as raised:
        client.recommend([["i1"]])
    assert raised.value.code == Code.NOT_FOUND


@pytest.mark.slow
def test_a_server_that_comes_back_is_found_within_seconds():
    """Not after gRPC's own pauses: it would try after 1, 2.6, 5.2, 9.3, 15.8 and 26 seconds of absence."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
    with RetrievalClient.grpc(address, "dnc", timeout=0.3) as client:
        started = time.monotonic()
        while time.monotonic() - started < 18:
            with pytest.raises(RetrievalError):
                client.recommend([["i1"]])
        heard = threading.Event()
        with socket.create_server(("127.0.0.1", int(address.split(":")[1]))) as listener:
            listener.settimeout(30)
            threading.Thread(target=lambda: (listener.accept(), heard.set()), daemon=True).start()
            for _ in range(10):
                with pytest.raises(RetrievalError):
                    client.recommend([["i1"]])
                if heard.is_set():
                    break
        assert heard.is_set()  # within 3 seconds


def test_a_refusal_is_raised_at_once(client):
    with pytest.raises(RetrievalError, match="max_batch_size=64") as raised:
        client.recommend([["i1"]] * 65)
    assert raised.value.code == Code.INVALID_ARGUMENT


def test_a_request_above_the_servers_limit_is_not_sent_again(server, client, monkeypatch):
    sent = []
    predict = client._transport.predict
    monkeypatch.setattr(client._transport, "predict", lambda *args: [sent.append(1), predict(*args)][1])
    with pytest.raises(RetrievalError, match=r"larger than max|Maximum request body size") as raised:
        client.recommend([["x" * 2**20]])
    assert (raised.value.code, len(sent)) == (Code.RESOURCE_EXHAUSTED, 1)


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_nobody_there_is_unavailable_when_the_time_is_up(transport):
    make, at = (
        (RetrievalClient.grpc, "127.0.0.1:9") if transport == "grpc" else (RetrievalClient.rest, "http://127.0.0.1:9")
    )
    started = time.monotonic()
    with make(at, "dnc", timeout=0.5) as client, pytest.raises(RetrievalError) as raised:
        client.recommend([["i1"]])
    assert raised.value.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    "answer",
    ["HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", "HTTP/1.1 200 OK\r\nX-Long: "],
    ids=["its body", "a header"],
)
def test_a_server_that_trickles_gets_no_more_than_the_time_there_is(answer):
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(answer.encode())
            while not stop.wait(0.02):
                connection.sendall(b"1")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=[listener])
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        patience = threading.Timer(10, stop.set)
        patience.start()
        with RetrievalClient.rest(url, "dnc", timeout=0.3) as client, pytest.raises(RetrievalError) as raised:
            client.recommend([["i1"]])
        assert not stop.is_set()
        patience.cancel()
        stop.set()
        thread.join()
    assert raised.value.code == Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("status", "page"),
    [(503, "<html>no server is available</html>"), (502, '"upstream error"'), (503, "[]")],
    ids=["HTML", "a text of JSON", "a list of JSON"],
)
def test_a_proxys_page_is_asked_again_by_its_status(status, page):
    asked = []

    class Proxy(Answering):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.say(status, page)

    with answering(Proxy) as url, RetrievalClient.rest(url, "dnc", timeout=1) as client:
        with pytest.raises(RetrievalError, match=f"status {status}") as raised:
            client.recommend([["i1"]])
        assert (raised.value.code, raised.value.is_transient) == (Code.UNAVAILABLE, True)
        assert len(asked) > 1
        with pytest.raises(RetrievalError):
            client.wait_until_ready(0.1)


def test_waiting_for_a_server_gives_each_attempt_what_is_left():
    given = []

    class Away(Recorded):
        def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
            given.append(timeout)
            raise RetrievalError(Code.UNAVAILABLE, "away")

    with pytest.raises(RetrievalError, match="away"):
        RetrievalClient(Away({}), Target("dnc"), timeout=0.4).wait_until_ready(0.9)
    assert given[0] == 0.4
    assert 0 < given[-1] < 0.4


def test_a_version_and_a_label_exclude_each_other():
    with pytest.raises(ValueError, match="a version or a label, not both"):
        Target("dnc", version=1, label="stable")


class Recorded:
    """A transport with the servable's metadata, which fails as it is told, and keeps what it was sent."""

    def __init__(self, signatures: Mapping[str, Any], *failures: Code):
        self.definitions = signatures
        self.failures = list(failures)
        self.sent: list[Mapping[str, np.ndarray]] = []
        self.metadata_calls = 0

    def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
        self.metadata_calls += 1
        return self.definitions

    def predict(self, target: Target, signature: str, inputs: Mapping[str, np.ndarray], timeout: float):
        self.sent.append(inputs)
        if self.failures:
            raise RetrievalError(self.failures.pop(0), "as told")
        rows = len(inputs[Request.HISTORY])
        return {
            Response.ITEM_IDS: np.array([[b"a", b""]] * rows, object),
            Response.SCORES: np.array([[1.0, -np.inf]] * rows),
            Response.GROUP_IDS: np.array([[0, -1]] * rows),
        }

    def close(self) -> None: ...


def test_overload_and_absence_are_asked_again(session):
    transport = Recorded(session.signatures, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.CANCELLED)
    (found,) = RetrievalClient(transport, Target("dnc")).recommend([["i1"]])
    assert found.item_ids == ["a"]
    assert len(transport.sent) == 4


def test_retries_end_with_the_time(session):
    transport = Recorded(session.signatures, *[Code.UNAVAILABLE] * 1000)
    with pytest.raises(RetrievalError, match="UNAVAILABLE"):
        RetrievalClient(transport, Target("dnc"), timeout=1).recommend([["i1"]])
    assert 2 <= len(transport.sent) < 100


def test_metadata_is_read_again_when_a_new_version_refuses_the_old_inputs(session):
    transport = Recorded(session.signatures)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend([["i1"]])
    client.recommend([["i1"]])
    assert transport.metadata_calls == 1
    transport.failures.append(Code.INVALID_ARGUMENT)
    client.recommend([["i1"]])
    assert (transport.metadata_calls, len(transport.sent)) == (2, 4)
    transport.failures += [Code.INVALID_ARGUMENT] * 2
    with pytest.raises(RetrievalError):
        client.recommend([["i1"]])


def test_metadata_is_read_again_when_the_remembered_one_lacks_an_input(session):
    """A caller that always gives what is new in the new version never sends what the old metadata would refuse."""
    new = session.signatures
    old = copy.deepcopy(new[Signature.SERVING_DEFAULT])
    del old.inputs["age"]
    transport = Recorded({**new, Signature.SERVING_DEFAULT: old})
    client = RetrievalClient(transport, Target("dnc"))
    with pytest.raises(ValueError, match="no input 'age'"):
        client.recommend([["i1"]], age=30.0)
    assert transport.metadata_calls == 1
    transport.definitions = new
    client.recommend([["i1"]], age=30.0)
    assert transport.metadata_calls == 2
    with pytest.raises(ValueError, match="no input 'height'"):
        client.recommend([["i1"]], height=180.0)
    assert len(transport.sent) == 1


@pytest.mark.parametrize("nothing", [None, [], [[]], ()])
def test_nothing_is_as_if_left_out(session, nothing):
    transport = Recorded(session.signatures)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend([["i1"]], exclude_item_ids=nothing, groups=nothing, alpha=None, group_boost=None)
    client.recommend([["i1"]])
    given, left_out = transport.sent
    for name, value in left_out.items():
        np.testing.assert_array_equal(given[name], value)


@pytest.mark.parametrize("lists", [["i4", "i5"], ({"i4", "i5"}, {"i5", "i4"}), [iter(["i5", "i4"]), ("i4", "i5")]])
def test_any_collection_is_a_list(session, lists):
    transport = Recorded(session.signatures)
    RetrievalClient(transport, Target("dnc")).recommend([["i1"], ["i2"]], exclude_item_ids=lists)
    sent = transport.sent[0]["exclude_item_ids"]
    assert [sorted(row) for row in sent.tolist()] == [[b"", b"i4", b"i5"]] * 2


def test_a_spec_that_another_thread_dropped_first_is_read_again(session):
    transport = Recorded(session.signatures)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend([["i1"]])
    predict = transport.predict

    def refused_meanwhile(*args: Any) -> dict[str, np.ndarray]:
        client._specs.clear()
        return predict(*args)

    transport.predict = refused_meanwhile
    transport.failures.append(Code.INVALID_ARGUMENT)
    assert client.recommend([["i1"]])[0].item_ids == ["a"]


def test_every_input_is_sent_with_a_row_a_user_and_padding_first(session):
    """What TF Serving needs: REST wants every input; its batches pad with the first value of a tensor."""
    transport = Recorded(session.signatures)
    RetrievalClient(transport, Target("dnc")).recommend([["i1", "i2"], ["i3"]], num_candidates=5)
    (sent,) = transport.sent
    assert set(sent) == set(session.signatures[Signature.SERVING_DEFAULT].inputs)
    assert {name: len(value) for name, value in sent.items()} == dict.fromkeys(sent, 2)
    assert sent[Request.HISTORY].tolist() == [[b"", b"i1", b"i2"], [b"", b"", b"i3"]]
    assert sent[Request.NUM_CANDIDATES].tolist() == [5, 5]
    assert np.isnan(sent[Request.ALPHA]).all()
