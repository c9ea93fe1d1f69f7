"""The client in a process that was forked from one that has asked already, as servers of workers do."""

from __future__ import annotations

import http.server
import os
import threading
from typing import Any

import pytest

from serving.client import RetrievalClient, RetrievalError


def test_a_forked_process_asks_over_a_connection_of_its_own():
    """Over one of both, each would read the next answer that comes, which may be the other's: another user's list."""
    asked_from = []

    class Kept(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked_from.append(self.client_address)
            self.send_response(404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Kept) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            with RetrievalClient.rest(f"http://127.0.0.1:{server.server_port}", "dnc", timeout=5) as client:
                for _ in range(2):
                    _ask(client)
                child = os.fork()
                if not child:
                    try:
                        _ask(client)
                    finally:
                        os._exit(0)
                os.waitpid(child, 0)
                _ask(client)
        finally:
            server.shutdown()
            thread.join()
    before, again, forked, after = asked_from
    assert before == again == after != forked


def _ask(client: RetrievalClient) -> None:
    with pytest.raises(RetrievalError, match="NOT_FOUND"):
        client.recommend([["i1"]])
