"""A server in a thread of this process, on free ports, over versions that tests may add and take away."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import grpc
import pytest

from contracts.config import ServerConfig
from serving.client import RetrievalClient
from serving.servable_session import ServableSession
from serving.server.run import Listening, running


class LiveServer:
    """A running server. Use it as a context manager."""

    def __init__(self, bases: Mapping[str, Path], **config: object):
        settings = {"grpc_port": 0, "rest_port": 0, "session_threads": 1, "poll_seconds": 0.1, **config}
        self._bases, self._config = bases, ServerConfig(**settings)
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._at: Listening | None = None

    def __enter__(self) -> LiveServer:
        self._thread.start()
        self._started.wait()
        assert self._at, "the server did not start; see its traceback"
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """As SIGTERM does; once is enough."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            async with running(self._bases, self._config) as (_, self._at):
                self._started.set()
                await self._stop.wait()
        finally:
            self._started.set()

    @property
    def address(self) -> str:
        """Of gRPC."""
        assert self._at
        return self._at.grpc

    @property
    def url(self) -> str:
        """Of REST."""
        assert self._at
        return self._at.rest

    def channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self.address)

    def keep_busy(self, seconds: float) -> None:
        """Lets the loop do nothing else for so long, as of now."""
        self._loop.call_soon_threadsafe(time.sleep, seconds)


def add_version(base: Path, number: int, source: Path) -> None:
    """A version as a push makes it: whole at once. The files are links to the source's."""
    base.mkdir(exist_ok=True)
    staging = base / f"staging-{number}"
    shutil.copytree(source, staging, copy_function=os.link)
    staging.rename(base / str(number))


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture
def base(tmp_path: Path, servable: Path) -> Path:
    """A base path with version 1."""
    add_version(tmp_path / "dnc", 1, servable)
    return tmp_path / "dnc"


@pytest.fixture
def serve() -> Iterator[Callable[..., LiveServer]]:
    """Starts servers that are stopped after the test."""
    servers: list[LiveServer] = []

    def start(base: Path, **config: object) -> LiveServer:
        servers.append(LiveServer({"dnc": base}, **config).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


@pytest.fixture(scope="package")
def session(servables: dict[str, Path]) -> Iterator[ServableSession]:
    """The session that the server's answers are compared with: of dnc_exact."""
    with ServableSession(servables["exact"], num_threads=1) as loaded:
        yield loaded


@pytest.fixture(scope="package")
def server(servables: dict[str, Path]) -> Iterator[LiveServer]:
    """One server for all tests that change nothing: dnc (scann) and dnc_exact, version 1."""
    bases = {"dnc": servables["scann"].parent, "dnc_exact": servables["exact"].parent}
    with LiveServer(bases, max_request_bytes=2**20) as running_server:
        yield running_server


@pytest.fixture(scope="module", params=["grpc", "rest"])
def client(server, request):
    make, at = {
        "grpc": (RetrievalClient.grpc, server.address),
        "rest": (RetrievalClient.rest, server.url),
    }[request.param]
    with make(at, "dnc_exact", timeout=30) as made:
        made.wait_until_ready(30)
        yield made
