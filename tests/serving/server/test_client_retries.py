"""What a client asks again, by a clock of the test's own."""

import contextlib
import time

import numpy as np
import pytest

from serving.client import RetrievalClient, RetrievalError
from serving.client.rest_transport import RestTransport
from serving.client.transport import Code, Target
from tests.serving.server.answering import Answering, answering
from tests.serving.server.test_client import Recorded


class Away:
    """A transport whose server is never there; each try takes ten milliseconds."""

    def __init__(self) -> None:
        self.now, self.left = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def signatures(self, target: Target, timeout: float) -> None:
        self.left.append(timeout)
        self.now += 0.01
        raise RetrievalError(Code.UNAVAILABLE, "away")


def test_no_try_is_too_short_to_say_more_than_that_the_time_is_up(monkeypatch):
    """It would hide what the server said before. Pauses are drawn, so that many calls are looked at."""
    away = Away()
    monkeypatch.setattr(time, "monotonic", lambda: away.now)
    monkeypatch.setattr(time, "sleep", away.sleep)
    client = RetrievalClient(away, Target("dnc"), timeout=0.5)
    for _ in range(200):
        away.now = 0.0
        with pytest.raises(RetrievalError, match="UNAVAILABLE: away"):
            client.recommend([["i1"]])
        assert away.now < 0.5
    assert min(away.left) >= 0.05 - 1e-9
    assert max(away.left) <= 0.5 + 1e-9
    assert len(away.left) > 2 * 200


def test_what_can_be_read_only_once_is_in_every_try(session):
    """A new version refuses the old inputs: the second try would have no history, and no groups to keep to."""
    transport = Recorded(session.signatures)
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend([["i1"]])
    transport.failures.append(Code.INVALID_ARGUMENT)
    once = {
        "num_candidates": iter([7, 8]),
        "groups": (number for number in (3, 1)),
        "exclude_item_ids": [iter(["i5"]), map(str, ["i6"])],
        "group_boost": iter([[0.5] * 5, [2.0] * 5]),
    }
    client.recommend([map(str, ["i1", "i2"]), ["i3"]], **once)
    assert len(transport.sent) == 3
    for sent in transport.sent[1:]:
        assert sent["history"].tolist() == [[b"", b"i1", b"i2"], [b"", b"", b"i3"]]
        assert sent["num_candidates"].tolist() == [7, 8]
        assert sent["groups"].tolist() == [[-1, 3, 1]] * 2
        assert sent["exclude_item_ids"].tolist() == [[b"", b"i5"], [b"", b"i6"]]
        np.testing.assert_array_equal(sent["group_boost"], [[0.5] * 5, [2.0] * 5])


def test_marks_and_the_events_that_they_mark_may_be_readable_only_once(session):
    transport = Recorded(session.signatures)  # of a model that reads no context
    client = RetrievalClient(transport, Target("dnc"))
    client.recommend(iter([map(str, ["i1", "i2"])]), history_is_context=iter([iter([False, True])]))
    assert transport.sent[0]["history"].tolist() == [[b"", b"i1"]]


@pytest.mark.parametrize("metadata", ["7", "[]", '{"signature_def": 7}', '{"signature_def": {"signature_def": [1]}}'])
def test_metadata_of_another_form_are_no_answer_of_a_server(metadata):
    class Other(Answering):
        def do_GET(self) -> None:
            self.say(200, f'{{"metadata": {metadata}}}')

    expected = pytest.raises(RetrievalError, match="metadata that is not in TF Serving's form")
    with answering(Other) as url, RetrievalClient.rest(url, "dnc") as client, expected as refused:
        client.recommend([["i1"]])
    assert not refused.value.is_transient


@pytest.mark.parametrize("answer", ["{}", '{"outputs": [[1]]}', '{"predictions": []}'])
def test_outputs_of_another_form_are_no_answer_of_a_server(answer):
    class Other(Answering):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.say(200, answer)

    expected = pytest.raises(RetrievalError, match="answers without outputs by name")
    with answering(Other) as url, contextlib.closing(RestTransport(url, {})) as transport, expected as refused:
        transport.predict(Target("dnc"), "serving_default", {"history": np.array([[b"i1"]], object)}, 5.0)
    assert not refused.value.is_transient
