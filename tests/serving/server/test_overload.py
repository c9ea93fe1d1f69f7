"""What the batcher refuses or drops, with a graph that is a Python function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from serving.server.batcher import Batcher
from serving.server.errors import Code, RequestError
from serving.signature_spec import Arrays
from tests.serving.server.batching import Graph, Slow, ask, run, settle, skip


def test_a_full_queue_refuses_and_takes_again_when_there_is_room():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        waiting = [ask(batcher, 0)]
        await settle()
        waiting += [ask(batcher, value) for value in range(8)]  # 2 batches of 4
        await settle()
        with pytest.raises(RequestError, match="overload: 8 rows are waiting") as full:
            await ask(batcher, 9)
        assert full.value.code == Code.RESOURCE_EXHAUSTED
        graph.gate.set()
        await asyncio.gather(*waiting)
        assert (await ask(batcher, 9))["y"].tolist() == [18]

    run(body)


def test_wide_requests_fill_the_queue_as_the_batches_do_that_they_make():
    """Each is a batch by itself: counted by rows alone, as many of them as of small ones would wait, in memory."""

    async def body(graph: Graph, batcher: Batcher) -> None:
        inputs = {"x": np.array([1]), "history": np.zeros([1, 10])}
        for _ in range(2):  # there is room again once they have run
            graph.gate.clear()
            futures = [ask(batcher, 0)]
            await settle()
            deadline = asyncio.get_running_loop().time() + 10
            futures += [asyncio.ensure_future(batcher.submit(inputs, 1, deadline)) for _ in range(2)]
            await settle()
            with pytest.raises(RequestError, match="overload: 2 rows are waiting, 20 values") as raised:
                await ask(batcher, 3)
            assert raised.value.code == Code.RESOURCE_EXHAUSTED
            graph.gate.set()
            await asyncio.gather(*futures)

    assert run(body, max_batch_elements=10).batches == [[0], [1], [1]] * 2


def test_a_request_that_would_wait_for_too_long_is_refused_at_once():
    """Else the queue grows until all that it answers is just too late."""

    async def body(graph: Graph, batcher: Batcher) -> None:
        first = [ask(batcher, value) for value in range(16)]  # four batches; the pace is known after the second
        await asyncio.gather(*first[:8])
        waiting = [ask(batcher, value) for value in range(16, 24)]
        await asyncio.sleep(0)
        # At least three batches wait, .3 s: to be certain, .4 s. With the batch that runs and its own, .6 s.
        with pytest.raises(RequestError, match=r"overload: \d+ rows are waiting, .* only 0.55 s left") as raised:
            await ask(batcher, 99, seconds=0.55)
        assert raised.value.code == Code.RESOURCE_EXHAUSTED
        waiting.append(ask(batcher, 24, seconds=60))
        answers = await asyncio.gather(*first, *waiting)
        assert [answer["y"].tolist() for answer in answers] == [[2 * value] for value in range(25)]

    run(body, graph=Slow(), max_enqueued_batches=10)


def test_a_request_is_tried_if_nobody_waits_whatever_the_last_batches_took():
    async def body(graph: Graph, batcher: Batcher) -> None:
        await asyncio.gather(*(ask(batcher, value) for value in range(16)))
        with pytest.raises(RequestError) as raised:
            await ask(batcher, 99, seconds=0.05)
        assert raised.value.code == Code.DEADLINE_EXCEEDED

    assert run(body, graph=Slow(), max_enqueued_batches=10).batches[-1] == [99]


def test_if_the_queue_has_become_slower_a_batch_passes_over_those_that_would_be_late():
    """Else each would be of the oldest, whose time ends while it runs."""

    async def body(graph: Graph, batcher: Batcher) -> None:
        await asyncio.gather(*(ask(batcher, value) for value in range(4)))
        for others in ([3, 4, 5, 6], [3, 4]):
            graph.gate.clear()
            futures = [ask(batcher, 7)]
            await asyncio.sleep(0.6)
            futures += [ask(batcher, value, seconds=5.0) for value in (1, 2)]
            futures += [ask(batcher, value, seconds=60.0) for value in others]
            await asyncio.sleep(0)
            skip(4.7)  # 1 and 2 have less left than a batch takes
            graph.gate.set()
            await asyncio.gather(*futures, return_exceptions=True)

    # A batch has room for four: for the others, or for all.
    batches = run(body, graph=Slow(0.5), max_enqueued_batches=10).batches
    assert batches == [[0, 1, 2, 3], [7], [3, 4, 5, 6], [7], [1, 2, 3, 4]]


def test_one_slow_batch_does_not_refuse_what_comes_after_it():
    class Slow(Graph):
        """Its fourth batch takes ten seconds."""

        def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
            if len(self.batches) == 3:
                loop.call_soon_threadsafe(skip, 10, loop)
            return super().run(requests)

    async def body(graph: Graph, batcher: Batcher) -> None:
        nonlocal loop
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(ask(batcher, value, seconds=60) for value in range(32)))  # eight batches
        answers = await asyncio.gather(*(ask(batcher, value, seconds=2) for value in range(32)))
        assert [answer["y"].tolist() for answer in answers] == [[2 * value] for value in range(32)]

    loop: asyncio.AbstractEventLoop
    run(body, graph=Slow(), max_enqueued_batches=10)
