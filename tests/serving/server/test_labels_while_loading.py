"""Labels that move while a version loads, of the same model or of another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.apis import model_pb2

from contracts.config import ServerConfig
from contracts.serving_labels import ServingLabels, write_labels
from serving.server.metrics import Metrics
from serving.server.model import ServedModel, State
from serving.server.models import Models

POLL = ServerConfig(poll_seconds=0.02)


class Loads:
    """Loads that are over when a test says so, and what was loaded and drained in turn."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, held: set[tuple[str, int]]):
        """`held`: model and version of those that wait for `gate`."""
        self.gate, self.begun, self.done, self._held = threading.Event(), threading.Event(), [], held
        monkeypatch.setattr("serving.server.model.LoadedServable", self._load)
        monkeypatch.setattr("serving.server.model.Version", self._version)

    def _load(self, path: Path, num_threads: int) -> Any:
        if (path.parent.name, int(path.name)) in self._held:
            self.begun.set()
            self.gate.wait(20)
        return path

    def _version(self, number: int, path: Path, *_: Any) -> Any:
        done = self.done
        done.append(f"{path.parent.name} {number} loaded")

        class Loaded:
            def __init__(self) -> None:
                self.number = number

            async def drain(self) -> None:
                done.append(f"{path.parent.name} {number} drained")

        return Loaded()


def base_of(path: Path, *versions: int) -> Path:
    for number in versions:
        (path / str(number)).mkdir(parents=True)
        (path / str(number) / "saved_model.pb").touch()
    return path


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.01)


def models_of(tmp_path: Path, *names: str) -> Models:
    return Models({name: tmp_path / name for name in names}, POLL, Metrics(frozenset(names)))


def model_of(models: Models, name: str) -> ServedModel:
    return models.model(model_pb2.ModelSpec(name=name))


def test_a_rollback_that_is_written_while_a_version_loads_is_not_overtaken(tmp_path, monkeypatch):
    base, loads = base_of(tmp_path / "a", 1, 2), Loads(monkeypatch, {("a", 2)})
    write_labels(base, ServingLabels(stable=1))

    async def push_and_roll_back() -> set[int]:
        served = set()
        async with models_of(tmp_path, "a") as models:
            write_labels(base, ServingLabels(stable=2))
            await until(loads.begun.is_set)
            write_labels(base, ServingLabels(stable=1))
            loads.gate.set()
            while "a 2 drained" not in loads.done:
                served.add(model_of(models, "a").find().number)
                await asyncio.sleep(0)
        return served

    assert asyncio.run(push_and_roll_back()) == {1}
    assert loads.done == ["a 1 loaded", "a 2 loaded", "a 2 drained", "a 1 drained"], "version 1 never left"


def test_what_is_pushed_while_a_version_loads_is_loaded_before_anything_is_drained(tmp_path, monkeypatch):
    """1 serves while 2 loads, and 3 is pushed: 2 never serves, and 1 does until 3 is there."""
    base, loads = base_of(tmp_path / "a", 1, 2, 3), Loads(monkeypatch, {("a", 2)})
    write_labels(base, ServingLabels(stable=1))

    async def push_twice() -> None:
        async with models_of(tmp_path, "a") as models:
            write_labels(base, ServingLabels(stable=2))
            await until(loads.begun.is_set)
            write_labels(base, ServingLabels(stable=3))
            loads.gate.set()
            await until(lambda: model_of(models, "a").find().number != 1)
            assert model_of(models, "a").find().number == 3

    asyncio.run(push_twice())
    assert loads.done[:3] == ["a 1 loaded", "a 2 loaded", "a 3 loaded"]
    assert sorted(loads.done[3:5]) == ["a 1 drained", "a 2 drained"]


def test_labels_move_between_loaded_versions_before_and_during_a_load(tmp_path, monkeypatch):
    """Stable goes from 1 to 2, which was the canary, while the next canary, 3, loads; and back again."""
    base, loads = base_of(tmp_path / "a", 1, 2, 3), Loads(monkeypatch, {("a", 3)})
    write_labels(base, ServingLabels(stable=1, canary=2))

    async def promote_and_roll_back() -> None:
        async with models_of(tmp_path, "a") as models:
            try:
                model = model_of(models, "a")
                write_labels(base, ServingLabels(stable=2, canary=3))
                await until(lambda: model.find().number == 2)
                write_labels(base, ServingLabels(stable=1, canary=3))
                await until(lambda: model.find().number == 1)
                assert {one.version: one.state for one in model.status()}[3] == State.LOADING
            finally:
                loads.gate.set()
            await until(lambda: "a 3 loaded" in loads.done)

    asyncio.run(promote_and_roll_back())
    assert loads.done[:3] == ["a 1 loaded", "a 2 loaded", "a 3 loaded"], "none was loaded twice"


def test_labels_of_one_model_do_not_wait_for_the_load_of_another(tmp_path, monkeypatch):
    a, b, loads = base_of(tmp_path / "a", 1, 2), base_of(tmp_path / "b", 1, 2), Loads(monkeypatch, {("b", 2)})
    write_labels(a, ServingLabels(stable=1, canary=2))
    write_labels(b, ServingLabels(stable=1))

    async def move() -> None:
        async with models_of(tmp_path, "b", "a") as models:
            try:
                write_labels(b, ServingLabels(stable=2))
                await until(loads.begun.is_set)
                write_labels(a, ServingLabels(stable=2, canary=1))
                await until(lambda: model_of(models, "a").find().number == 2)
                assert model_of(models, "b").find().number == 1
            finally:
                loads.gate.set()

    asyncio.run(move())
