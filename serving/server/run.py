"""The server as a whole: models, gRPC and REST in one event loop, until it is stopped."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from contracts.config import ServerConfig
from contracts.serving_labels import VERSIONS, effective_labels
from serving.server.grpc_api import start_grpc, stop_grpc
from serving.server.metrics import Metrics
from serving.server.models import Models
from serving.server.ports import address, allow_connections, require_free
from serving.server.rest_api import start_rest

log = logging.getLogger(__name__)

_SWITCH_SECONDS = 1e-4
"""With Python's 5 ms between threads, a batch would wait several times that while the loop writes earlier answers."""


_YOUNG_OBJECTS = 50_000
"""Objects that Python makes before it looks for cycles among them: by default 700, fewer than 64 requests have in
flight. With 8,000 requests waiting, the search took a quarter of the throughput, and overload kept itself up.
A cycle is then kept for long, and all that it holds: no request may be left in one."""
_THREADS_SECONDS = 0.5
"""How long threads with nothing left to do may take to end."""


@dataclass(frozen=True)
class Listening:
    """Where a started server listens.

    Attributes:
        grpc: host:port.
        rest: the URL.
    """

    grpc: str
    rest: str


def serve(bases: Mapping[str, Path], config: ServerConfig, on_start: Callable[[Listening], None]) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the pending requests and returns.

    If a version is being loaded then, the process ends instead: Python would wait for the load, possibly for minutes.

    Args:
        bases: model name -> directory that holds its versions.
        config: ports, limits and times.
        on_start: called once the server answers.

    Raises:
        ValueError: a base path has no version that can be served, or a port cannot be bound.
    """
    for name, base in bases.items():
        if effective_labels(base) is None:
            raise ValueError(f"no version of {name} under {base}: it must hold {VERSIONS}; run the export stage")
    sys.setswitchinterval(_SWITCH_SECONDS)
    allow_connections(config)
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_serve_until_signalled(bases, config, on_start))
    _end_if_threads_run()


@contextlib.asynccontextmanager
async def running(bases: Mapping[str, Path], config: ServerConfig) -> AsyncIterator[tuple[Models, Listening]]:
    """A server in this loop; versions have been loaded when it yields, and are drained on exit.

    Raises:
        ValueError: a port cannot be bound.
    """
    require_free(config)
    metrics = Metrics(frozenset(bases))
    async with Models(bases, config, metrics) as models:
        rest = await start_rest(models, metrics, config)
        try:
            grpc_server, grpc_port = await start_grpc(models, metrics, config)
        except ValueError:
            await rest.stop()
            raise
        try:
            yield models, Listening(address(config, grpc_port), f"http://{address(config, rest.port)}")
        finally:
            await asyncio.gather(stop_grpc(grpc_server, grpc_port, models, config), rest.stop())


async def _serve_until_signalled(
    bases: Mapping[str, Path], config: ServerConfig, on_start: Callable[[Listening], None]
) -> None:
    stop, main = asyncio.Event(), asyncio.current_task()
    assert main
    _on_signal(main.cancel)  # until it listens there is nothing to finish
    async with running(bases, config) as (models, listening):
        _on_signal(stop.set)
        models.require_all()
        gc.freeze()  # imported objects stay: the collections after versions come and go need not scan them
        gc.set_threshold(_YOUNG_OBJECTS)
        on_start(listening)
        await stop.wait()
        log.info("stopping: finishing pending requests")


def _on_signal(react: Callable[[], object]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, react)


def _end_if_threads_run() -> None:
    """Ends the process if a load or a stalled disk still holds a thread: on exit, Python would wait for all threads."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    deadline = time.monotonic() + _THREADS_SECONDS
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        atexit._run_exitfuncs()  # which `os._exit` skips: output is flushed, and copies are removed
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
