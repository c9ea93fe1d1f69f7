"""`dnc serve` for minutes at 80% load, with a new version every 30 s.

    python -m benchmarks.soak --minutes 20 --log benchmarks/results/server-soak.log

The server runs in its own process. Requests come at random times (Poisson), most over gRPC, some over REST, each to be
answered within 10 s. Every version is a copy of the first, and is deleted when the third newer one is pushed. Each swap
prints a line; the last line is JSON. The exit code is 1 if a request failed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import numpy as np

from benchmarks.servable_of_size import make_servable
from benchmarks.server import BATCH, METHOD, Served, as_bytes, make_requests, served
from contracts.storage import write_text

DEADLINE_SECONDS = 10.0
REST_SHARE = 0.05
LOAD = 0.8


class Soak:
    """The state of the run: requests, failures and the server's memory."""

    def __init__(self, server: Served, base: Path, num_items: int, log: Callable[[str], None]):
        self._server = server
        self._base = base
        self._log = log
        self._requests = make_requests(num_items)
        self._bodies = [as_bytes(request) for request in self._requests]
        self._json = [
            json.dumps({"inputs": {"history": [[item.decode() for item in request["history"][0]]]}})
            for request in self._requests
        ]
        self.answered = 0
        self.failures: collections.Counter[str] = collections.Counter()
        self.memory_mib: list[float] = []
        self.latencies_ms: list[float] = []

    async def capacity(self, seconds: float) -> float:
        """Requests per second, of the same kinds, with as many in flight as a batch has rows."""
        end, before = time.perf_counter() + seconds, self.answered
        async with self._asking() as ask:

            async def ask_on() -> None:
                while time.perf_counter() < end:
                    await ask()

            started = time.perf_counter()
            await asyncio.gather(*(ask_on() for _ in range(BATCH)))
            return (self.answered - before) / (time.perf_counter() - started)

    async def run(self, rate: float, seconds: float, swap_every: float) -> None:
        """Asks `rate` times a second, and swaps versions meanwhile."""
        self.answered, self.latencies_ms = 0, []
        rng = np.random.default_rng(3)
        async with self._asking() as ask:
            swapping = asyncio.create_task(self._swap(seconds, swap_every))
            tasks: set[asyncio.Task[None]] = set()
            end = due = time.perf_counter()
            end += seconds
            while due < end:
                due += rng.exponential(1 / rate)
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                task = asyncio.create_task(ask())
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(swapping, *tasks)

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
            await predict(self._bodies[place], timeout=DEADLINE_SECONDS)
        except grpc.RpcError as error:
            self.failures[f"gRPC {error.code().name}: {error.details()}"] += 1
        else:
            self.answered += 1
            self.latencies_ms.append((time.perf_counter() - started) * 1e3)

    async def _rest(self, http: aiohttp.ClientSession, place: int) -> None:
        url = f"{self._server.url}/v1/models/dnc:predict"
        try:
            timeout = aiohttp.ClientTimeout(DEADLINE_SECONDS)
            async with http.post(url, data=self._json[place], timeout=timeout) as response:
                text = await response.text()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self.failures[f"REST {type(error).__name__}"] += 1
            return
        if response.status != 200:
            self.failures[f"REST {response.status}: {text[:200]}"] += 1
        else:
            self.answered += 1

    async def _swap(self, seconds: float, every: float) -> None:
        started, number = time.perf_counter(), 1
        while time.perf_counter() - started + every <= seconds:
            await asyncio.sleep(every)
            number += 1
            copy_version(self._base, 1 if number <= 3 else number - 2, number)
            if number > 3:
                shutil.rmtree(self._base / str(number - 3))
            self.memory_mib.append(resident_mib(self._server.pid))
            recent, self.latencies_ms = self.latencies_ms, []
            p50, p99 = np.percentile(recent, [50, 99]) if recent else (np.nan, np.nan)
            self._log(
                f"{time.perf_counter() - started:6.0f} s  version {number:3d} pushed  answered {self.answered:8d}  "
                f"failed {self.failures.total():4d}  p50 {p50:7.1f} ms  p99 {p99:7.1f} ms  "
                f"RSS {self.memory_mib[-1]:7.1f} MiB"
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
        run = Soak(server, base, arguments.items, log)
        asyncio.run(run.capacity(2.0))
        capacity = asyncio.run(run.capacity(10.0))
        rate = arguments.rate or LOAD * capacity
        log(f"capacity {capacity:.0f} requests/s with {BATCH} in flight; asking {rate:.0f} a second")
        asyncio.run(run.run(rate, arguments.minutes * 60, arguments.swap_seconds))
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
    parser.add_argument("--rate", type=float, help="requests a second instead of 80%% of what it can")
    parser.add_argument(
        "--index", choices=["scann", "exact"], default="scann", help="that the servable has (default: %(default)s)"
    )
    parser.add_argument("--items", type=int, default=20_000, help="of the servable (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=16, help="of the servable (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=200, help="M, the length of a list (default: %(default)s)")
    parser.add_argument("--log", type=Path, help="also write what is printed here")
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
