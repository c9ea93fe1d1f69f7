"""An HTTP server of a test's own, in place of one that the client may meet."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Answering(http.server.BaseHTTPRequestHandler):
    """Its `do_GET` and `do_POST` are a test's; connections stay open."""

    protocol_version = "HTTP/1.1"

    def say(self, status: int, text: str = "{}") -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None: ...


@contextmanager
def answering(handler: type[Answering]) -> Iterator[str]:
    """The URL of a server that answers by `handler`, each connection in a thread."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
