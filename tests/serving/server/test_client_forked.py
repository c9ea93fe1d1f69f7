"""The client in a process that was forked from one that has asked already, as servers of workers do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.serving.server.answering import Answering, answering

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

    class Kept(Answering):
        def do_GET(self) -> None:
            asked_from.append(self.client_address)
            self.say(404)

    with answering(Kept) as url:
        root = Path(__file__).parents[3]
        command = [sys.executable, "-c", SCRIPT, url]
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.count("NOT_FOUND") == 4
    before, again, forked, after = asked_from
    assert before == again == after != forked
