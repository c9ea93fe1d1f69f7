"""The client in a process that was forked from one that has asked already, as servers of workers do."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

SCRIPT = """
import os, sys
from serving.client import RetrievalClient, RetrievalError

def ask():
    try:
        client.recommend([["i1"]])
    except RetrievalError as error:
        print(error, flush=True)

with RetrievalClient.rest(sys.argv[1], "dnc", timeout=30) as client:
    ask()
    ask()
    if not (child := os.fork()):
        ask()
        os._exit(0)
    os.waitpid(child, 0)
    ask()
"""


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
            command = [sys.executable, "-c", SCRIPT, f"http://127.0.0.1:{server.server_port}"]
            root = Path(__file__).parents[3]
            said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True).stdout
        finally:
            server.shutdown()
            thread.join()
    assert said.count("NOT_FOUND") == 4
    before, again, forked, after = asked_from
    assert before == again == after != forked
