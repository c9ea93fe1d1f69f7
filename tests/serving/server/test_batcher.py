"""Micro-batching, with a graph that is a Python function."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
import pytest

from serving.server.batcher import Batcher
from serving.server.errors import Code, RequestError
from serving.signature_spec import Arrays
from tests.serving.server.batching import Graph, ask, run, settle, skip


def test_what_waits_together_runs_together_and_each_gets_its_own():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        first = ask(batcher, 0)
        await settle()
        rest = [ask(batcher, 1, 2), ask(batcher, 3), ask(batcher, 4, 5)]
        await settle()
        graph.gate.set()
        answers = await asyncio.gather(first, *rest)
        assert [answer["y"].tolist() for answer in answers] == [[0], [2, 4], [6], [8, 10]]

    # 1, 2 and 3 make three rows; 4, 5 would make five, more than max_batch_size.
    assert run(body).batches == [[0], [1, 2, 3], [4, 5]]


def test_the_next_batch_begins_before_the_answers_of_the_last_are_written():
    second_began = threading.Event()

    class Announcing(Graph):
        def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
            if self.batches:
                second_began.set()
            return super().run(requests)

    async def body(graph: Graph, batcher: Batcher) -> None:
        async def write_first_answer() -> bool:
            await batcher.submit({"x": np.array([1])}, 1, asyncio.get_running_loop().time() + 10)
            return second_began.wait(5)  # nothing else has a turn in the loop meanwhile

        graph.gate.clear()
        first = asyncio.ensure_future(write_first_answer())
        await settle()
        second = ask(batcher, 2)
        await settle()
        graph.gate.set()
        assert await first
        await second

    assert run(body, Announcing()).batches == [[1], [2]]


def test_with_a_timeout_a_batch_waits_for_company_but_not_when_it_is_full():
    async def body(graph: Graph, batcher: Batcher) -> None:
        started = asyncio.get_running_loop().time()
        futures = [ask(batcher, 1)]
        await asyncio.sleep(0.01)
        futures.append(ask(batcher, 2))
        await asyncio.gather(*futures)
        assert asyncio.get_running_loop().time() - started >= 0.6
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(ask(batcher, value) for value in range(4)))
        assert asyncio.get_running_loop().time() - started < 0.6

    assert run(body, batch_timeout_micros=600_000).batches == [[1, 2], [0, 1, 2, 3]]


def test_company_that_keeps_coming_does_not_put_off_a_batch():
    """It waits so long after its first request, not after its last."""

    async def body(graph: Graph, batcher: Batcher) -> None:
        waiting = []
        for value in range(12):
            waiting.append(ask(batcher, value))
            await asyncio.sleep(0.1)
        assert waiting[0].done()
        await asyncio.gather(*waiting)

    run(body, max_batch_size=64, batch_timeout_micros=300_000)


def test_one_bad_request_does_not_fail_its_company():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        futures = [ask(batcher, 7)]
        await settle()
        futures += [ask(batcher, 1), ask(batcher, -1), ask(batcher, 2)]
        await settle()
        graph.gate.set()
        answers = await asyncio.gather(*futures, return_exceptions=True)
        assert [answer["y"].tolist() for answer in (answers[0], answers[1], answers[3])] == [[14], [2], [4]]
        assert isinstance(answers[2], RequestError)
        assert answers[2].code == Code.INVALID_ARGUMENT

    assert run(body).batches == [[7], [1, -1, 2], [1], [-1], [2]]


def test_where_company_fails_what_nobody_waits_for_any_more_is_not_run_again():
    together, go_on = threading.Event(), threading.Event()

    class Held(Graph):
        def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
            if len(requests) > 1:
                together.set()
                assert go_on.wait(10)
            return super().run(requests)

    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        first = ask(batcher, 1)
        await settle()
        late, bad, good = ask(batcher, 2, seconds=20), ask(batcher, -3, seconds=60), ask(batcher, 4, seconds=60)
        await settle()
        graph.gate.set()
        await first
        assert await asyncio.to_thread(together.wait, 10)
        skip(30)
        with pytest.raises(RequestError) as raised:
            await late
        assert raised.value.code == Code.DEADLINE_EXCEEDED
        go_on.set()
        await asyncio.gather(bad, good, return_exceptions=True)

    assert run(body, Held()).batches == [[1], [2, -3, 4], [-3], [4]]


def test_late_and_abandoned_requests_are_not_run():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        first = ask(batcher, 0)
        await settle()
        late, abandoned, kept = ask(batcher, 1, seconds=0.01), ask(batcher, 2), ask(batcher, 3)
        await settle()
        abandoned.cancel()
        with pytest.raises(RequestError) as raised:
            await late
        assert raised.value.code == Code.DEADLINE_EXCEEDED
        graph.gate.set()
        await asyncio.gather(first, kept)

    assert run(body).batches == [[0], [3]]


def test_a_request_larger_than_a_batch_is_refused():
    async def body(graph: Graph, batcher: Batcher) -> None:
        with pytest.raises(RequestError, match="5 rows, more than max_batch_size=4") as raised:
            await ask(batcher, 1, 2, 3, 4, 5)
        assert raised.value.code == Code.INVALID_ARGUMENT
        assert (await ask(batcher, 1, 2, 3, 4))["y"].tolist() == [2, 4, 6, 8]

    assert run(body).batches == [[1, 2, 3, 4]]


def test_what_nobody_foresaw_is_internal_for_each_that_it_hits_and_logged_once(caplog):
    class Broken(Graph):
        def run(self, requests: Sequence[Arrays]) -> list[Arrays]:
            answers = super().run(requests)
            if 3 in self.batches[-1]:
                raise MemoryError("no room")
            return answers

    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        first = ask(batcher, 7)
        await settle()
        rest = [ask(batcher, 1), ask(batcher, 3), ask(batcher, 2)]
        await settle()
        graph.gate.set()
        answers = await asyncio.gather(first, *rest, return_exceptions=True)
        assert [answer["y"].tolist() for answer in (answers[0], answers[1], answers[3])] == [[14], [2], [4]]
        assert isinstance(answers[2], RequestError)
        assert (answers[2].code, answers[2].message) == (Code.INTERNAL, "MemoryError; see the server's log")
        assert (await ask(batcher, 5))["y"].tolist() == [10]

    assert run(body, graph=Broken()).batches == [[7], [1, 3, 2], [1], [3], [2], [5]]
    assert caplog.text.count("MemoryError: no room") == 1


def test_padding_does_not_multiply_a_wide_request_by_the_rows_of_others():
    async def body(graph: Graph, batcher: Batcher) -> None:
        def ask_wide(value: int, width: int) -> asyncio.Future[Arrays]:
            inputs = {"x": np.array([value]), "history": np.zeros([1, width])}
            return asyncio.ensure_future(batcher.submit(inputs, 1, asyncio.get_running_loop().time() + 10))

        graph.gate.clear()
        futures = [ask(batcher, 0)]
        await settle()
        futures += [ask_wide(1, 3), ask_wide(2, 5), ask_wide(3, 10), ask_wide(4, 3), ask_wide(5, 2), ask(batcher, 6)]
        await settle()
        graph.gate.set()
        answers = await asyncio.gather(*futures)
        assert [answer["y"].tolist() for answer in answers] == [[2 * value] for value in range(7)]
        for rows, width in ((1, 11), (3, 4)):
            inputs = {"x": np.zeros(rows), "history": np.zeros([rows, width])}
            refusal = f"{rows} x {width} values, more than max_batch_elements=10"
            with pytest.raises(RequestError, match=refusal) as raised:
                await batcher.submit(inputs, rows, asyncio.get_running_loop().time() + 10)
            assert raised.value.code == Code.INVALID_ARGUMENT

    # 1 and 2 padded to the same width are 10 values; 3 beside anybody, 20 at least; 4, 5 and 6 are 9.
    batches = run(body, max_batch_size=8, max_batch_elements=10, max_enqueued_batches=3).batches
    assert batches == [[0], [1, 2], [3], [4, 5, 6]]


def test_a_request_of_no_rows_takes_its_place_in_the_queue():
    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        waiting = [ask(batcher) for _ in range(40)]
        await settle()
        graph.gate.set()
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RequestError)]
        assert {error.code for error in refused} == {Code.RESOURCE_EXHAUSTED}
        assert len(refused) >= 40 - 2 * 4 - 4  # two batches wait, and one runs

    run(body)


def test_a_closed_batcher_refuses_at_once_instead_of_letting_wait():
    async def body(graph: Graph, batcher: Batcher) -> None:
        await batcher.close()
        with pytest.raises(RequestError, match="no longer served") as raised:
            await ask(batcher, 1)
        assert raised.value.code == Code.UNAVAILABLE

    run(body)


def test_closing_waits_for_a_batch_that_runs_though_nobody_waits_for_its_answer_any_more():
    """Whoever closes frees the graph's memory next."""

    async def body(graph: Graph, batcher: Batcher) -> None:
        graph.gate.clear()
        late = ask(batcher, 1, seconds=0.05)
        with pytest.raises(RequestError, match="deadline"):
            await late
        closing = asyncio.ensure_future(batcher.close())
        await settle()
        assert not closing.done()
        graph.gate.set()
        await closing
        assert graph.batches == [[1]]

    run(body)


def test_closing_answers_at_once_what_waits_for_company():
    async def body(graph: Graph, batcher: Batcher) -> None:
        answer = ask(batcher, 1)
        await settle()
        await asyncio.wait_for(batcher.close(), 5)
        assert answer.done()
        await answer

    assert run(body, batch_timeout_micros=3_600_000_000).batches == [[1]]
