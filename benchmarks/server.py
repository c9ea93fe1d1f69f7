"""The cost of `dnc serve`: its throughput against the session's own, and its latency at half load.

    python -m benchmarks.server --items 100000 --groups 32 --json benchmarks/results/server.json

The server runs in its own process, and this one queries it over gRPC with one user per request. TensorFlow has one
thread in both. A third process makes the servable, since anything that TensorFlow runs outside a session leaves threads
in the process that a session uses in addition to its own (1.3 cores instead of 1). Measured in turns, three times; the
medians are reported:
- session: batches of 64 users, one after another, in this process, without a server;
- server: 64 requests in flight, each followed by the next (closed loop);
- half load: requests at random times (Poisson) at half the server's throughput (open loop), each
  latency counted from the time when the request was due.
The last line is JSON; compare ratios of one run, not times of two.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import grpc
import numpy as np
from tensorflow_serving.apis import predict_pb2

from benchmarks.outputs import json_output
from benchmarks.servable_of_size import HISTORY, make_servable
from contracts.artifact import write_json
from contracts.names import Request, Signature
from contracts.storage import write_text
from serving.servable_session import decode
from serving.server.version import LoadedServable
from serving.tensors import to_proto
from serving.warmup import read_warmup

BATCH = 64
METHOD = "/tensorflow.serving.PredictionService/Predict"
ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Served:
    """A server process: where it listens, and its process id."""

    address: str
    url: str
    pid: int


@contextlib.contextmanager
def served(base: Path, *settings: str) -> Iterator[Served]:
    """Runs a server of the versions below `base`, with further `server.*` settings."""
    flags = [flag for setting in ("grpc_port=0", "rest_port=0", *settings) for flag in ("--set", f"server.{setting}")]
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--model", f"dnc={base.resolve()}", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout
        found = re.search(r"gRPC (\S+), REST (\S+)", process.stdout.readline())
        if not found:
            raise RuntimeError("the server did not start; see its error above")
        gc.freeze()  # else collecting all that TensorFlow made here would stop the client for a quarter of a second
        yield Served(found[1], found[2], process.pid)
    finally:
        process.terminate()
        process.wait()


def warmup_histories(version: Path) -> list[list[str]]:
    """The histories of a servable's own warm-up requests, which hold its items; empty ones are left out."""
    requests = (decode(inputs[Request.HISTORY])[0].tolist() for _, inputs in read_warmup(version))
    histories = ([item for item in request if item] for request in requests)
    return [history for history in histories if history]


def history_input(history: list[str]) -> dict[str, np.ndarray]:
    return {Request.HISTORY: np.array([[item.encode() for item in history]], object)}


def make_requests(num_items: int, count: int = 256) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    rows = [[f"i{item}" for item in rng.integers(1, num_items + 1, HISTORY)] for _ in range(count)]
    return [history_input(row) for row in rows]


def as_bytes(inputs: dict[str, np.ndarray]) -> bytes:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "dnc"
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(to_proto(value))
    return request.SerializeToString()


def session_rows_per_second(servable: LoadedServable, requests: list[Any], seconds: float) -> float:
    spec = servable.signatures[Signature.SERVING_DEFAULT]
    batch = spec.join([spec.complete(request)[0] for request in itertools.islice(itertools.cycle(requests), BATCH)])
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        servable.run(Signature.SERVING_DEFAULT, [batch])
        batches += 1
    return batches * BATCH / (time.perf_counter() - started)


async def closed_loop(address: str, bodies: list[bytes], concurrency: int, seconds: float) -> float:
    """Requests per second with `concurrency` of them in flight."""
    async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        predict = channel.unary_unary(METHOD)
        end, answered = time.perf_counter() + seconds, 0

        async def ask(place: int) -> None:
            nonlocal answered
            while time.perf_counter() < end:
                await predict(bodies[place % len(bodies)])
                answered += 1
                place += concurrency

        started = time.perf_counter()
        await asyncio.gather(*(ask(place) for place in range(concurrency)))
        return answered / (time.perf_counter() - started)


async def open_loop(address: str, bodies: list[bytes], rate: float, seconds: float) -> np.ndarray:
    """Latencies in ms of requests that arrive at random times, `rate` per second."""
    rng = np.random.default_rng(2)
    due = np.cumsum(rng.exponential(1 / rate, int(rate * seconds)))
    async with grpc.aio.insecure_channel(address, [("grpc.max_receive_message_length", -1)]) as channel:
        predict = channel.unary_unary(METHOD)
        await predict(bodies[0])
        started = time.perf_counter()

        async def ask(place: int) -> float:
            await predict(bodies[place % len(bodies)])
            return time.perf_counter() - started - due[place]

        tasks = []
        for place, when in enumerate(due):
            await asyncio.sleep(max(0.0, started + when - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(place)))
        return np.array(await asyncio.gather(*tasks)) * 1e3


def measure(version: Path, requests: list[dict[str, np.ndarray]], seconds: float, rounds: int) -> dict[str, float]:
    bodies = [as_bytes(request) for request in requests]
    servable = LoadedServable(version, num_threads=1)
    found: dict[str, list[float]] = {name: [] for name in ("session", "server", "p50", "p99", "tail")}
    with served(version.parent, "session_threads=1", f"max_batch_size={BATCH}") as server:
        asyncio.run(closed_loop(server.address, bodies, BATCH, 2.0))
        session_rows_per_second(servable, requests, 1.0)
        for _ in range(rounds):
            found["session"].append(session_rows_per_second(servable, requests, seconds))
            found["server"].append(asyncio.run(closed_loop(server.address, bodies, BATCH, seconds)))
            latencies = asyncio.run(open_loop(server.address, bodies, found["server"][-1] / 2, seconds))
            p50, p99 = np.percentile(latencies, [50, 99])
            for name, value in (("p50", p50), ("p99", p99), ("tail", p99 / p50)):
                found[name].append(float(value))
    median = {name: float(np.median(values)) for name, values in found.items()}
    return {
        "server_vs_session": float(np.median(np.divide(found["server"], found["session"]))),
        "p99_over_p50_half_load": median["tail"],
        "session_rows_per_second": median["session"],
        "server_requests_per_second": median["server"],
        "half_load_p50_ms": median["p50"],
        "half_load_p99_ms": median["p99"],
    }


def markdown(arguments: argparse.Namespace, result: dict[str, float]) -> str:
    what = f"the servable `{arguments.servable}`"
    if not arguments.servable:
        size = f"{arguments.items:,} items in {arguments.groups} groups"
        what = f"an `{arguments.index}` servable of {size}, M = {arguments.candidates}"
    lines = [
        f"`dnc serve` with {what}, one TensorFlow thread.",
        "",
        "| measured | value |",
        "|---|---|",
        *(f"| {name} | {value:.3g} |" for name, value in result.items()),
        "",
        "Command: `python -m benchmarks.server " + " ".join(sys.argv[1:]) + "`",
    ]
    return "\n".join(lines) + "\n"


def _in_own_process(function: Callable[..., Path], *arguments: Any) -> Path:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--index", choices=["scann", "exact"], default="scann", help="that the servable has (default: %(default)s)"
    )
    parser.add_argument("--items", type=int, default=100_000, help="of the servable (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=32, help="of the servable (default: %(default)s)")
    parser.add_argument("--candidates", type=int, default=640, help="M, the length of a list (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of each measurement; there are nine (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of measurements, of which the median is shown (default: %(default)s)"
    )
    parser.add_argument("--servable", type=Path, help="use this version directory, and ask for its warm-up requests")
    parser.add_argument("--json", type=json_output, help="also write the result here, and as Markdown beside")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        size = arguments.index, arguments.items, arguments.groups, arguments.candidates
        version = arguments.servable or _in_own_process(make_servable, Path(scratch), *size)
        if arguments.servable:
            requests = [history_input(history) for history in warmup_histories(version)]
        else:
            requests = make_requests(arguments.items)
        result = measure(version, requests, arguments.seconds, arguments.rounds)
    if arguments.json:
        write_json(arguments.json, result)
        write_text(arguments.json.with_suffix(".md"), markdown(arguments, result))
    print(markdown(arguments, result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
