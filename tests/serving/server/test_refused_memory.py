"""A request that is not answered leaves nothing behind, not even for the collector of cycles.

`dnc serve` lets that wait for many objects, and each request may hold `server.max_request_bytes`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from serving.server.batcher import Batcher
from serving.server.errors import invalid
from serving.signature_spec import Arrays
from tests.serving.server.batching import Graph, run, settle


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Failing(Graph):
    def __init__(self, error: Callable[[str], Exception]) -> None:
        super().__init__()
        self.error = error

    def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
        super().run(requests)
        raise self.error("failed")


async def outcome(batcher: Batcher, seen: list[weakref.ref], seconds: float = 10.0) -> str:
    value = np.array([len(seen)])
    seen.append(weakref.ref(value))
    try:
        await batcher.submit({"x": value}, 1, asyncio.get_running_loop().time() + seconds)
    except Exception as error:
        return str(error)
    return "answered"


@pytest.mark.parametrize(
    "graph", [Graph(), Failing(invalid), Failing(RuntimeError)], ids=["answered", "refused", "failed"]
)
@pytest.mark.parametrize("number", [1, 3])
def test_a_batcher_keeps_nothing_of_what_has_run(graph, number, caplog):
    caplog.set_level(logging.CRITICAL + 1, "serving.server.batcher")  # pytest would keep the errors that are logged

    async def body(graph: Graph, batcher: Batcher) -> None:
        seen: list[weakref.ref] = []
        await asyncio.gather(*(outcome(batcher, seen) for _ in range(number)))
        await settle()
        assert [one() for one in seen] == [None] * number

    run(body, graph)


def test_a_batcher_keeps_nothing_of_what_waits_too_long_or_finds_the_queue_full():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        seen: list[weakref.ref] = []
        running = asyncio.ensure_future(outcome(batcher, seen))
        await settle()
        answers = await asyncio.gather(*(outcome(batcher, seen, seconds=0.02) for _ in range(9)))
        assert ["overload" in answer for answer in answers] == [False] * 8 + [True]
        assert seen[-1]() is None
        graph.gate.set()
        assert await running == "answered"
        await settle()
        assert [one() for one in seen] == [None] * 10

    run(body)
