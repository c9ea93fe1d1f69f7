"""The webhook: one that hangs keeps nobody."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Event, Thread

import pytest

from pipeline.retraining.notify import notify


class _Endless(BaseHTTPRequestHandler):
    """Answers with a line after the other, as a stream of server-sent events does."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.wait(0.1):  # type: ignore[attr-defined]
            self.wfile.write(b": still here\n")
            self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endless() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), _Endless)
    server.over = Event()  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.over.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_an_answer_that_never_ends_is_not_waited_for(endless: str, caplog: pytest.LogCaptureFixture) -> None:
    """The store's next run is due tomorrow, and `dnc schedule` starts none while this one has not ended."""
    told = Thread(target=notify, args=(endless, "{}"), daemon=True)
    told.start()
    told.join(5)
    assert not told.is_alive()
    assert caplog.messages == []


@pytest.mark.parametrize("host", ["hooks..example.com", "a" * 64 + ".example.com"])
def test_a_host_that_cannot_be_one_changes_no_outcome_either(host: str, caplog: pytest.LogCaptureFixture) -> None:
    """Of such a name requests lets urllib3's own error by."""
    notify(f"https://{host}/secret", "{}")
    [message] = caplog.messages
    assert "could not be posted to retrain.webhook: no answer (LocationParseError)" in message
    assert "secret" not in caplog.text
