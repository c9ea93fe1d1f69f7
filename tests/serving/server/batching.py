"""A batcher whose graph is a Python function, for tests."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from contracts.config import ServerConfig
from serving.server.batcher import Batcher, Workers
from serving.server.errors import invalid
from serving.server.metrics import Metrics
from serving.signature_spec import Arrays

Body = Callable[["Graph", Batcher], object]


class Graph:
    """Doubles x, and remembers its batches. It waits for `gate`, and refuses negative numbers."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        assert self.gate.wait(10)
        self.batches.append([int(value) for request in requests for value in request["x"]])
        if min(self.batches[-1], default=0) < 0:
            raise invalid("negative")
        return [{"y": request["x"] * 2} for request in requests]


def run(body: Body, graph: Graph | None = None, **config: object) -> Graph:
    graph = graph or Graph()

    async def main() -> None:
        with ThreadPoolExecutor(1) as pool:
            settings = ServerConfig(**{"max_batch_size": 4, "max_enqueued_batches": 2, **config})
            batcher = Batcher(graph.run, settings, Workers(pool, 1), Metrics([]))
            await body(graph, batcher)
            await batcher.close()

    asyncio.run(main())
    return graph


def ask(batcher: Batcher, *values: int, seconds: float = 10.0) -> asyncio.Future[Arrays]:
    loop = asyncio.get_running_loop()
    return asyncio.ensure_future(batcher.submit({"x": np.array(values)}, len(values), loop.time() + seconds))


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.001)


def skip(seconds: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
    """The loop's clock is so much later from now on: what waits for a time has it sooner."""
    loop = loop or asyncio.get_running_loop()
    now = loop.time
    loop.time = lambda: now() + seconds


class Slow(Graph):
    """Every batch takes some time."""

    def __init__(self, seconds: float = 0.1) -> None:
        super().__init__()
        self.seconds = seconds

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        time.sleep(self.seconds)
        return super().run(requests)
