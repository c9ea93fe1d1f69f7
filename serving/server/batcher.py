"""Dynamic micro-batching: requests that wait together run together."""

from __future__ import annotations

import asyncio
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from contracts.config import ServerConfig
from serving.server.errors import Code, RequestError, invalid
from serving.server.metrics import Metrics
from serving.signature_spec import Arrays

log = logging.getLogger(__name__)

_RECENT = 31
"""How many of the last batches tell how fast the queue moves."""
_SAFETY_FACTOR = 4 / 3
"""A request must have the time to wait this many times as long as it seems: the pace changes, e.g. during a load."""


class Workers:
    """The threads that run batches, shared by every signature of every version."""

    def __init__(self, executor: Executor, num_threads: int):
        self.executor = executor
        self.free = asyncio.Semaphore(num_threads)
        self._num_threads = num_threads

    @asynccontextmanager
    async def at_rest(self) -> AsyncIterator[None]:
        """Waits for the running batches to finish; the next ones start when the block exits."""
        for _ in range(self._num_threads):
            await self.free.acquire()
        try:
            yield
        finally:
            for _ in range(self._num_threads):
                self.free.release()


class _Pace:
    """How fast a queue moves. Medians of its last batches: one slow batch, as during a load, says little.

    Attributes:
        batch_seconds: how long a batch runs; 0 if not known yet.
        row_seconds: how long a full queue takes to move by a row; 0 if not known yet.
    """

    def __init__(self) -> None:
        self.batch_seconds = self.row_seconds = 0.0
        self._batches: deque[float] = deque(maxlen=_RECENT)
        self._rows: deque[float] = deque(maxlen=_RECENT)
        self._last_full: tuple[float, int] | None = None

    def ran(self, seconds: float) -> None:
        """To be called after each batch, with the time that it took."""
        self._batches.append(seconds)
        self.batch_seconds = statistics.median_low(self._batches)

    def took(self, rows: int, left: int, now: float) -> None:
        """To be called when a batch of so many rows has been taken from the queue, which has so many left.

        If any are left, the time until the next batch is taken shows the pace, whatever sets it: the graph, other
        queues that share the workers, or the server's own loop.
        """
        if self._last_full:
            since, rows_since = self._last_full
            self._rows.append((now - since) / rows_since)
            self.row_seconds = statistics.median_low(self._rows)
        self._last_full = (now, rows) if rows and left else None


@dataclass
class _Waiting:
    inputs: Arrays
    rows: int
    width: int
    answer: asyncio.Future[Arrays]
    since: float
    deadline: float


class Batcher:
    """The queue of one signature of one version.

    A batch takes what has queued up while the threads were busy, up to `max_batch_size` rows, as long as its inputs,
    padded to the widest, have no more than `max_batch_elements` values. With `batch_timeout_micros` it waits for more
    requests, at most that long after its first one. Under load, batches grow by themselves, and a lone request waits
    for nobody.

    Under overload, a queue that takes whatever comes grows until what it answers is just too late, and each batch is
    wasted. So a request is refused at once if it would probably be late. And if the queue has become slower, those at
    its head are about to be late: while more requests wait than fit in a batch, such ones are dropped.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Arrays]], list[Arrays]],
        config: ServerConfig,
        workers: Workers,
        metrics: Metrics,
    ):
        """Starts the queue; needs a running loop.

        Args:
            run: answers several completed requests as one batch; called in a worker's thread.
            config: sizes and times.
            workers: the threads.
            metrics: records batch sizes and waiting times.
        """
        self._run = run
        self._config = config
        self._workers = workers
        self._metrics = metrics
        self._waiting: deque[_Waiting] = deque()
        self._rows = self._values = 0
        self._pace = _Pace()
        self._is_closed = False
        self._changed = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()
        self._task = asyncio.get_running_loop().create_task(self._dispatch())

    async def submit(self, inputs: Arrays, rows: int, deadline: float) -> Arrays:
        """The answer to a completed request.

        Args:
            inputs: as returned by `SignatureSpec.complete`.
            rows: their number.
            deadline: in the loop's time.

        Raises:
            RequestError: INVALID_ARGUMENT if it has more rows or values than a batch may; RESOURCE_EXHAUSTED if the
                queue is full, or too long for its deadline; UNAVAILABLE if it is closed; DEADLINE_EXCEEDED; or whatever
                error the graph gives.
        """
        config = self._config
        if self._is_closed:
            raise RequestError(Code.UNAVAILABLE, "this version is no longer served; try again")
        if rows > config.max_batch_size:
            raise invalid(
                f"the request has {rows} rows, more than max_batch_size={config.max_batch_size}; send several requests"
            )
        width = max((math.prod(value.shape[1:]) for value in inputs.values() if value.ndim > 1), default=1)
        if max(rows, 1) * width > config.max_batch_elements:
            raise invalid(
                f"the request's widest input has {rows} x {width} values, more than "
                f"max_batch_elements={config.max_batch_elements}; send shorter lists, or several requests"
            )
        rows = max(rows, 1)  # an empty request takes up a place, too
        self._require_room(rows, rows * width, deadline)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(inputs, rows, width, loop.create_future(), time.perf_counter(), deadline)
        timer = loop.call_at(deadline, _expire, waiting.answer)
        self._waiting.append(waiting)
        self._rows += rows
        self._values += rows * width
        self._changed.set()
        try:
            return await waiting.answer
        finally:
            timer.cancel()
            del waiting  # its answer may be an error, which keeps this frame

    def _require_room(self, rows: int, values: int, deadline: float) -> None:
        """Raises RequestError if the queue has no room for so much, or would keep it for too long."""
        config = self._config
        if (
            self._rows + rows > config.max_batch_size * config.max_enqueued_batches
            or self._values + values > config.max_batch_elements * config.max_enqueued_batches
        ):
            waiting_rows = f"{self._rows} rows are waiting, {self._values} values of their widest inputs"
            raise RequestError(Code.RESOURCE_EXHAUSTED, f"overload: {waiting_rows}; try again later")
        wait = self._rows * self._pace.row_seconds
        left = deadline - asyncio.get_running_loop().time()
        # Two batches: the one that runs now, and its own. With nobody waiting, it is tried whatever the last batches
        # took, or a pace that is out of date would never be corrected.
        if self._rows and _SAFETY_FACTOR * wait + 2 * self._pace.batch_seconds > left:
            raise RequestError(
                Code.RESOURCE_EXHAUSTED,
                f"overload: {self._rows} rows are waiting, which takes about {wait:.2g} s, and the request has only "
                f"{max(left, 0):.2g} s left; try again later",
            )

    async def close(self) -> None:
        """Refuses new requests, and stops once all earlier ones have been answered."""
        self._is_closed = True
        self._changed.set()  # a batch that waits for company gets none any more
        while self._waiting or self._running:
            await asyncio.sleep(0.001)
        self._task.cancel()

    async def _dispatch(self) -> None:
        while True:
            await self._gather()
            await self._workers.free.acquire()
            self._start(self._take())

    def _start(self, batch: list[_Waiting]) -> None:
        """Starts a batch in the worker that is held for it. `_dispatch` holds none while it waits for the next."""
        if not batch:
            self._workers.free.release()
            return
        self._metrics.batch_rows.observe(sum(waiting.rows for waiting in batch))
        started = time.perf_counter()
        for waiting in batch:
            self._metrics.queue_seconds.observe(started - waiting.since)
        # Started here, not in the task, which gets its turn only after all answers that are ready to be written.
        running = asyncio.get_running_loop().create_task(self._answer(batch, self._begin(batch)))
        self._running.add(running)
        running.add_done_callback(self._running.discard)

    async def _gather(self) -> None:
        """Returns when there is a batch to run."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        timeout = self._config.batch_timeout_micros / 1e6
        while self._waiting and self._rows < self._config.max_batch_size and not self._is_closed:
            left = self._waiting[0].since + timeout - time.perf_counter()
            if left <= 0:
                break
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except asyncio.TimeoutError:
                break

    def _take(self) -> list[_Waiting]:
        """The next batch, without abandoned requests and, if more wait than fit, without those that would be late."""
        batch: list[_Waiting] = []
        rows = width = taken = 0
        now = asyncio.get_running_loop().time()
        while self._waiting:
            waiting = self._waiting[0]
            is_late = waiting.deadline < now + self._pace.batch_seconds
            if is_late and rows + self._rows > self._config.max_batch_size:
                _expire(waiting.answer)
            if not waiting.answer.done():
                rows, width = rows + waiting.rows, max(width, waiting.width)
                if rows > self._config.max_batch_size or rows * width > self._config.max_batch_elements:
                    break
                batch.append(waiting)
                taken = rows
            self._waiting.popleft()
            self._rows -= waiting.rows
            self._values -= waiting.rows * waiting.width
        self._pace.took(taken, self._rows, now)
        return batch

    async def _answer(self, batch: list[_Waiting], begun: asyncio.Future[list[Arrays]]) -> None:
        """Answers a running batch. If it fails, each of its requests is run alone: one must not fail another."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answers = await _outcomes(begun, len(batch))
            del begun  # as in `_outcomes`
            self._pace.ran(loop.time() - started)
            first = answers[0]
            if len(batch) > 1 and isinstance(first, RequestError):
                answers = [await self._answer_alone(waiting, first) for waiting in batch]
        finally:
            self._workers.free.release()
        broken = next((one for one in (first, *answers) if isinstance(one, RequestError) and one.__cause__), None)
        if broken:
            log.error("a batch of %d requests failed", len(batch), exc_info=broken.__cause__)
        for answer in (first, *answers):
            if isinstance(answer, RequestError):
                # It keeps the frames that it came through. With Python 3.13, these keep their callers', which hold it.
                answer.__cause__ = answer.__traceback__ = None
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, RequestError):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)

    async def _answer_alone(self, waiting: _Waiting, failure: RequestError) -> Arrays | RequestError:
        """Runs one request alone; returns `failure` if nobody waits for it any more."""
        if waiting.answer.done():
            return failure
        [answer] = await _outcomes(self._begin([waiting]), 1)
        return answer

    def _begin(self, batch: list[_Waiting]) -> asyncio.Future[list[Arrays]]:
        inputs = [waiting.inputs for waiting in batch]
        return asyncio.get_running_loop().run_in_executor(self._workers.executor, self._run, inputs)


async def _outcomes(begun: asyncio.Future[list[Arrays]], num_requests: int) -> Sequence[Arrays | RequestError]:
    """One answer per request, or for each the error that failed the batch, with a cause if it was unexpected."""
    try:
        return await begun
    except RequestError as error:
        return [error] * num_requests
    except Exception as error:  # whatever it is, no request may be left waiting
        return [_unexpected(error)] * num_requests
    finally:
        del begun  # which keeps the error, which keeps this frame and those that hold the batch


def _unexpected(error: Exception) -> RequestError:
    failure = RequestError(Code.INTERNAL, f"{type(error).__name__}; see the server's log")
    failure.__cause__ = error
    return failure


def _expire(answer: asyncio.Future[Arrays]) -> None:
    if not answer.done():
        answer.set_exception(RequestError(Code.DEADLINE_EXCEEDED, "the answer cannot be there before the deadline"))
