"""One client of many threads, as servers of applications have it."""

from __future__ import annotations

import http.server
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from serving.client import RetrievalClient, RetrievalError

THREADS = 20


def test_threads_ask_again_over_the_connections_that_they_have():
    """A handshake each, and by TLS several round trips, would come before most requests."""
    asked_from = set()
    together = threading.Barrier(THREADS)  # no thread's connection is free for another

    class Kept(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked_from.add(self.client_address)
            together.wait(30)
            self.send_response(404)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *args: Any) -> None: ...

    def ask(_: int) -> str:
        try:
            client.recommend([["i1"]])
        except RetrievalError as error:
            return error.code.name
        return "OK"

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Kept) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with RetrievalClient.rest(url, "dnc", timeout=60) as client, ThreadPoolExecutor(THREADS) as pool:
                for _ in range(3):
                    assert set(pool.map(ask, range(THREADS))) == {"NOT_FOUND"}
        finally:
            server.shutdown()
            thread.join()
    assert len(asked_from) == THREADS
