"""`dnc serve` for minutes at 80% load, with a new version every 30 s.

    python -m benchmarks.soak --minutes 20 --log benchmarks/results/server-soak.log

    python -m benchmarks.soak --minutes 2 --report-seconds 5 --stall-seconds 15

The server runs in its own process. Requests come at random times (Poisson), most over gRPC, some over REST, each to be
answered within `--deadline`. Every version is a copy of the first, and is deleted when the third newer one is pushed.
What the server can answer is measured before, for a tenth of the time, with swaps, too: a load takes up to a core. The
last line is JSON. The exit code is 1 if a request failed. With `--stall-seconds`, the server is stopped for so long
once, after a tenth of the time, as by a machine that hangs: requests fail then, and the lines show how long it takes
to get over it.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import aiohttp
import grpc
import numpy as np

from benchmarks.outputs import output_file
from benchmarks.servable_of_size import make_servable
from benchmarks.server import BATCH, METHOD, Served, as_bytes, make_requests, served
from contracts.storage import write_text

REST_SHARE = 0.05
LOAD = 0.8
_NUMBER = re.compile(r"\d[\d.]*")


class Soak:
    """The state of the run: requests, failures and the server's memory."""

    def __init__(self, server: Served, base: Path, num_items: int, deadline: float, log: Callable[[str], None]):
        self._server = server
        self._deadline = deadline
        self._base = base
        self._log = log
        self._requests = make_requests(num_items)
        self._bodies = [as_bytes(request) for request in self._requests]
        self._json = [
            json.dumps({"inputs": {"history": [[item.decode() for item in request["history"][0]]]}})
            for request in self._requests
        ]
        self._version = 1
        self.answered = 0
        self.failures: collections.Counter[str] = collections.Counter()
        self.memory_mib: list[float] = []
        self.latencies_ms: list[float] = []

    async def capacity(self, seconds: float, swap_every: float) -> float:
        """Requests per second, of the same kinds and with as many swaps, if as many are in flight as a batch holds."""
        end, before = time.perf_counter() + seconds, self.answered
        async with self._asking() as ask:

            async def ask_on() -> None:
                while time.perf_counter() < end:
                    await ask()

            started = time.perf_counter()
            await asyncio.gather(self._swap(seconds, swap_every), *(ask_on() for _ in range(BATCH)))
            return (self.answered - before) / (time.perf_counter() - started)

    async def run(
        self, rate: float, seconds: float, swap_every: float, report_every: float, stall: float | None
    ) -> None:
        """Asks `rate` times a second, and swaps versions meanwhile; once, the server is stopped for `stall` seconds."""
        self.answered, self.latencies_ms, self.memory_mib = 0, [], []
        rng = np.random.default_rng(3)
        async with self._asking() as ask:
            beside = asyncio.gather(
                self._swap(seconds, swap_every), self._report(seconds, report_every), self._stall(seconds / 10, stall)
            )
            tasks: set[asyncio.Task[None]] = set()
            end = due = time.perf_counter()
            end += seconds
            while due < end:
                due += rng.exponential(1 / rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                task = asyncio.create_task(ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(beside, *tasks)

    @contextlib.asynccontextmanager
    async def _asking(self) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
        """A function that sends one request, over gRPC or REST."""
        rng = np.random.default_rng(4)
        options = [("grpc.max_receive_message_length", -1)]
        # As many connections as pending answers: with a limited pool, requests would wait for connections, too.
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            grpc.aio.insecure_channel(self._server.address, options) as channel,
            aiohttp.ClientSession(connector=connector) as http,
        ):
            predict = channel.unary_unary(METHOD)

            def ask() -> Coroutine[Any, Any, None]:
                place = int(rng.integers(len(self._bodies)))
                return self._rest(http, place) if rng.random() < REST_SHARE else self._grpc(predict, place)

            yield ask

    async def _grpc(self, predict: grpc.aio.UnaryUnaryMultiCallable, place: int) -> None:
        started = time.perf_counter()
        try:
            await predict(self._bodies[place], timeout=self._deadline)
        except grpc.RpcError as error:
            self.failures[_NUMBER.sub("N", f"gRPC {error.code().name}: {error.details()}")] += 1
        else:
            self.answered += 1
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)

    async def _rest(self, http: aiohttp.ClientSession, place: int) -> None:
        url = f"{self._server.url}/v1/models/dnc:predict"
        try:
            timeout = aiohttp.ClientTimeout(self._deadline)
            async with http.post(url, data=self._json[place], timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self.failures[f"REST {type(error).__name__}"] += 1
            return
        if response.status != 200:
            self.failures[_NUMBER.sub("N", f"REST {response.status}: {text[:200]}")] += 1
        else:
            self.answered += 1

    async def _stall(self, after: float, seconds: float | None) -> None:
        if seconds:
            await asyncio.sleep(after)
            os.kill(self._server.pid, signal.SIGSTOP)
            self._log(f"{after:6.0f} s  the server is stopped for {seconds:g} s")
            try:
                await asyncio.sleep(seconds)
            finally:
                os.kill(self._server.pid, signal.SIGCONT)  # a stopped server could not be ended, either

    async def _swap(self, seconds: float, every: float) -> None:
        started = time.perf_counter()
        while time.perf_counter() - started + every <= seconds:
            await asyncio.sleep(every)
            self._version += 1
            number = self._version
            copy_version(self._base, 1 if number <= 3 else number - 2, number)
            if number > 3:
                shutil.rmtree(self._base / str(number - 3))
            self.memory_mib.append(resident_mib(self._server.pid))

    async def _report(self, seconds: float, every: float) -> None:
        started, answered = time.perf_counter(), 0
        while time.perf_counter() - started + every <= seconds:
            await asyncio.sleep(every)
            rate, answered = (self.answered - answered) / every, self.answered
            recent, self.latencies_ms = self.latencies_ms, []
            p50, p99 = np.percentile(recent, [50, 99]) if recent else (np.nan, np.nan)
            self._log(
                f"{time.perf_counter() - started:6.0f} s  version {self._version:3d}  answered {answered:8d}, "
                f"{rate:5.0f}/s  failed {self.failures.total():4d}  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  "
                f"RSS {resident_mib(self._server.pid):7.1f} MiB"
            )


def copy_version(base: Path, source: int, number: int) -> None:
    """Makes a version appear as a push does: whole at once."""
    staging = base.parent / f"staging-{number}"
    shutil.copytree(base / str(source), staging, copy_function=os.link)
    staging.rename(base / str(number))


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def soak(version: Path, arguments: argparse.Namespace, log: Callable[[str], None]) -> dict[str, float]:
    base = version.parent
    with served(base, "session_threads=1", f"max_batch_size={BATCH}") as server:
        run = Soak(server, base, arguments.items, arguments.deadline, log)
        seconds = arguments.minutes * 60
        asyncio.run(run.capacity(2.0, arguments.swap_seconds))
        capacity = asyncio.run(run.capacity(seconds / 10, arguments.swap_seconds))
        rate = arguments.rate or LOAD * capacity
        log(f"capacity {capacity:.0f} requests/s with {BATCH} in flight; asking {rate:.0f} a second")
        times = arguments.swap_seconds, arguments.report_seconds, arguments.stall_seconds
        asyncio.run(run.run(rate, seconds, *times))
    for failure, count in run.failures.most_common():
        log(f"failed {count} times: {failure}")
    memory = run.memory_mib
    # The first versions fill TensorFlow's and malloc's pools; what matters is what comes after.
    settled = memory[len(memory) // 4 :]
    return {
        "minutes": arguments.minutes,
        "requests": run.answered + run.failures.total(),
        "failed": run.failures.total(),
        "swaps": len(memory),
        "rss_settled_mib": settled[0] if settled else float("nan"),
        "rss_last_mib": settled[-1] if settled else float("nan"),
        "rss_mib_per_swap": float(np.polyfit(range(len(settled)), settled, 1)[0]) if len(settled) > 2 else float("nan"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0, help="of load (default: %(default)s)")
    parser.add_argument("--swap-seconds", type=float, default=30.0, help="between new versions (default: %(default)s)")
    parser.add_argument("--report-seconds", type=float, default=30.0, help="between lines (default: %(default)s)")
    parser.add_argument("--deadline", type=float, default=10.0, help="of a request, in seconds (default: %(default)s)")
    parser.add_argument("--stall-seconds", type=float, help="stop the server once, for so long")
    parser.add_argument("--rate", type=float, help="requests a second instead of 80%% of what it can")
    parser.add_argument(
        "--index", choices=["scann", "exact"], default="scann", help="that the servable has (default: %(default)s)"
    )
    parser.add_argument("--items", type=int, default=20_000, help="of the servable (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=16, help="of the servable (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=200, help="M, the length of a list (default: %(default)s)")
    parser.add_argument("--log", type=output_file, help="also write what is printed here")
    arguments = parser.parse_args()
    lines = ["python -m benchmarks.soak " + " ".join(sys.argv[1:])]

    def log(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        version = make_servable(Path(scratch), arguments.index, arguments.items, arguments.groups, arguments.candidates)
        result = soak(version, arguments, log)
    log(json.dumps(result))
    if arguments.log:
        write_text(arguments.log, "\n".join(lines) + "\n")
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
