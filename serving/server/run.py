"""The server as a whole: models, gRPC and REST in one loop, until it is told to stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from contracts.config import ServerConfig
from contracts.layout import SAVED_MODEL
from contracts.serving_labels import effective_labels
from serving.server.grpc_api import start_grpc, stop_grpc
from serving.server.metrics import Metrics
from serving.server.models import Models
from serving.server.ports import address, allow_connections, require_free
from serving.server.rest_api import start_rest

log = logging.getLogger(__name__)

_SWITCH_SECONDS = 1e-4
"""Python's 5 ms between threads is what a batch waits, several times, while the loop writes the last one's answers."""


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
    """Serves until SIGTERM or SIGINT, then finishes the requests that are in and returns.

    Args:
        bases: model name -> directory that holds its versions.
        config: ports, limits and times.
        on_start: called once the server answers.

    Raises:
        ValueError: a base path has no version that can be served, or a port cannot be had.
    """
    for name, base in bases.items():
        if effective_labels(base) is None:
            raise ValueError(
                f"no version of {name} below {base}: it must hold numbered directories with a {SAVED_MODEL}; "
                "run the export stage"
            )
    sys.setswitchinterval(_SWITCH_SECONDS)
    allow_connections(config)
    asyncio.run(_serve_until_signalled(bases, config, on_start))


@asynccontextmanager
async def running(bases: Mapping[str, Path], config: ServerConfig) -> AsyncIterator[tuple[Models, Listening]]:
    """A server in this loop; versions are loaded when it yields, and drained when it is left.

    Raises:
        ValueError: a port cannot be had.
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
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(bases, config) as (models, listening):
        models.require_all()
        gc.freeze()  # what is imported stays; the collections after versions come and go need not look at it
        on_start(listening)
        await stop.wait()
        log.info("stopping: finishing the requests that are in")
