"""Pushes and rolls back versions under a server that keeps answering requests: none may fail.

    python -m benchmarks.push_under_load --servable DIR [--pushes 30] [--rollbacks 5] [--json PATH]

`dnc serve` follows a store's base path. Clients query it over gRPC without pause, while the code of `dnc retrain`
publishes the given version directory again and again under new numbers, its retention deletes old versions, and every
sixth push is followed by a rollback to the version before and a return. Each step waits until the server has loaded the
version that is to be stable, and answers both for its number and for the label. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.outputs import json_output
from benchmarks.server import served, warmup_histories
from contracts.artifact import write_json
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.housekeeping import retain
from pipeline.retraining.publish import publish, set_stable
from serving.client.retrieval import RetrievalClient
from serving.client.transport import RetrievalError

NAME = "dnc"
CLIENTS = 2
PATIENCE_SECONDS = 120


@dataclass
class Load:
    """Clients that send requests without pause, and the results."""

    address: str
    histories: list[list[str]]
    requests: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    def ask(self, stop: threading.Event, offset: int) -> None:
        with RetrievalClient.grpc(self.address, NAME, timeout=30.0) as client:
            turn = offset
            while not stop.is_set():
                turn += 1
                started = time.monotonic()
                try:
                    [found] = client.recommend([self.histories[turn % len(self.histories)]])
                    if not found.item_ids:
                        self.failures.append("an empty list")
                except RetrievalError as error:
                    self.failures.append(str(error))
                self.requests += 1
                self.slowest = max(self.slowest, time.monotonic() - started)


def wait_for(address: str, version: int, history: list[str]) -> None:
    """Waits until the server answers for that version's number; while it is not loaded, requests for it fail."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    with (
        RetrievalClient.grpc(address, NAME, timeout=2.0, label="stable") as stable,
        RetrievalClient.grpc(address, NAME, timeout=2.0, version=version) as wanted,
    ):
        while True:
            try:
                wanted.recommend([history])
                stable.recommend([history])
                return
            except RetrievalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servable", type=Path, required=True, help="a version directory")
    parser.add_argument(
        "--pushes", type=int, default=30, help="versions to push, one after the other (default: %(default)s)"
    )
    parser.add_argument("--rollbacks", type=int, default=5, help="among them, evenly spread (default: %(default)s)")
    parser.add_argument("--json", type=json_output, help="also write the result here")
    arguments = parser.parse_args()
    config = load_config(None, ["serving.indexes=[scann]", "retrain.keep_versions=3"])
    histories = warmup_histories(arguments.servable)
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(scratch) / "store")
        store.runs.mkdir(parents=True)
        # Not a run of the store: retention deletes runs that have no record.
        source = Workdir(Path(scratch) / "source")
        exported = source.servable(NAME) / "1"
        shutil.copytree(arguments.servable, exported)
        publish([NAME], store, source, exported, 1, None, held=False)
        with served(store.servable(NAME), "poll_seconds=0.2") as server:
            load = Load(server.address, histories)
            wait_for(load.address, 1, histories[0])
            result = push_and_roll_back(config, store, source, load, arguments.pushes, arguments.rollbacks)
    if arguments.json:
        write_json(arguments.json, result | {"failures": load.failures[:10]})
    print(json.dumps(result))


def push_and_roll_back(
    config: Config, store: Store, source: Workdir, load: Load, pushes: int, rollbacks: int
) -> dict[str, float]:
    stop = threading.Event()
    clients = [threading.Thread(target=load.ask, args=(stop, number * 7)) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    every, rolled = max(1, pushes // max(rollbacks, 1)), 0
    started = time.monotonic()
    try:
        for version in range(2, pushes + 2):
            RetrainRun(source).push.unlink()  # as if by another run: none is pushed twice
            publish([NAME], store, source, source.servable(NAME) / "1", version, version - 1, held=False)
            wait_for(load.address, version, load.histories[0])
            if version % every == 0 and rolled < rollbacks:
                for number in (version - 1, version):
                    set_stable(store, number)
                    wait_for(load.address, number, load.histories[0])
                rolled += 1
            retain(config, store)
    finally:
        stop.set()
        for client in clients:
            client.join()
    return {
        "pushes": pushes,
        "rollbacks": rolled,
        "requests": load.requests,
        "failed": len(load.failures),
        "slowest_seconds": round(load.slowest, 3),
        "seconds": round(time.monotonic() - started, 1),
    }


if __name__ == "__main__":
    main()
