"""One client of many threads, as servers of applications have it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from serving.client import RetrievalClient, RetrievalError
from tests.serving.server.answering import Answering, answering

THREADS = 20


def test_threads_ask_again_over_the_connections_that_they_have():
    """A handshake each, and by TLS several round trips, would come before most requests."""
    asked_from = set()
    together = threading.Barrier(THREADS)  # no thread's connection is free for another

    class Kept(Answering):
        def do_GET(self) -> None:
            asked_from.add(self.client_address)
            together.wait(30)
            self.say(404)

    def ask(_: int) -> str:
        try:
            client.recommend([["i1"]])
        except RetrievalError as error:
            return error.code.name
        return "OK"

    with (
        answering(Kept) as url,
        RetrievalClient.rest(url, "dnc", timeout=60) as client,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for _ in range(3):
            assert set(pool.map(ask, range(THREADS))) == {"NOT_FOUND"}
    assert len(asked_from) == THREADS
