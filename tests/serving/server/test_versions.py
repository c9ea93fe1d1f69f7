"""Versions come and go, labels move, and no request notices."""

from __future__ import annotations

import asyncio
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from google.protobuf import text_format
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

import serving.server.model
from contracts.config import ServerConfig
from contracts.serving_labels import LABELS_FILE, ServingLabels, read_labels, versions_on_disk, write_labels
from serving.client import RetrievalClient, RetrievalError
from serving.server.errors import Code, RequestError
from serving.server.metrics import Metrics
from serving.server.model import ServedModel, State
from serving.server.models import Models
from serving.server.reload_labels import reload_labels
from tests.serving.server.conftest import LiveServer, add_version, eventually


def states(server: LiveServer, path: str = "") -> dict[int, str]:
    answer = requests.get(f"{server.url}/v1/models/dnc{path}", timeout=10).json()
    return {int(one["version"]): one["state"] for one in answer.get("model_version_status", [])}


def test_a_new_version_takes_over_without_a_failed_request(serve, base, servable):
    server = serve(base)
    stop, failures, answered = threading.Event(), [], [0]

    def load() -> None:
        with RetrievalClient.grpc(server.address, "dnc") as client:
            while not stop.is_set():
                try:
                    assert len(client.recommend([["i1"]], num_candidates=5)[0].item_ids) == 5
                    answered[0] += 1
                except Exception as error:
                    failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in (2, 3):
            add_version(base, number, servable)
            expected = {**dict.fromkeys(range(1, number), "END"), number: "AVAILABLE"}
            eventually(lambda expected=expected: states(server) == expected)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert answered[0] > 10


def test_labels_pin_versions_and_a_smaller_stable_is_a_rollback(serve, base, servable):
    for number in (2, 3):
        add_version(base, number, servable)
    write_labels(base, ServingLabels(stable=2, canary=3))
    server = serve(base)
    assert states(server) == {3: "AVAILABLE", 2: "AVAILABLE", 1: "END"}
    assert states(server, "/labels/canary") == {3: "AVAILABLE"}
    with RetrievalClient.rest(server.url, "dnc", label="canary") as canary:
        assert canary.recommend([["i1"]])
    write_labels(base, ServingLabels(stable=1))
    eventually(lambda: states(server) == {3: "END", 2: "END", 1: "AVAILABLE"})
    assert states(server, "/labels/stable") == {1: "AVAILABLE"}
    with RetrievalClient.grpc(server.address, "dnc", label="canary") as canary, pytest.raises(RetrievalError) as gone:
        canary.recommend([["i1"]])
    assert gone.value.code == Code.INVALID_ARGUMENT
    (base / LABELS_FILE).unlink()
    eventually(lambda: states(server) == {3: "AVAILABLE", 2: "END", 1: "END"})


@pytest.mark.parametrize("label", [2, 1], ids=["promoted", "given up"])
def test_whoever_asks_for_the_canary_is_answered_while_it_is_promoted_or_given_up(serve, base, servable, label):
    add_version(base, 2, servable)
    write_labels(base, ServingLabels(stable=1, canary=2))
    server = serve(base)
    with RetrievalClient.grpc(server.address, "dnc", label="canary") as canary:
        assert canary.recommend([["i1"]])
        write_labels(base, ServingLabels(stable=label, canary=label))
        moved = {label: "AVAILABLE", 3 - label: "END"}
        eventually(lambda: bool(canary.recommend([["i1"]])) and states(server) == moved)
        assert canary.recommend([["i1"]])
    assert states(server, "/labels/canary") == states(server, "/labels/stable") == {label: "AVAILABLE"}


@pytest.mark.parametrize("damage", ["not a SavedModel", "labels are no JSON", "labels name no version", "all are gone"])
def test_what_is_wrong_on_disk_leaves_what_is_served(serve, base, damage, caplog):
    server = serve(base)
    if damage == "not a SavedModel":
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"\xffnonsense")
        message = "cannot be served"
    elif damage == "labels are no JSON":
        (base / LABELS_FILE).write_text("{stable: 1")
        message = f"{LABELS_FILE}: the file: "
    elif damage == "labels name no version":
        write_labels(base, ServingLabels(stable=7))
        message = "there is no version 7"
    else:
        shutil.rmtree(base)
        message = "no version under"
    eventually(lambda: message in caplog.text)
    time.sleep(0.3)
    with RetrievalClient.grpc(server.address, "dnc") as client:
        assert client.recommend([["i1"]])
    assert caplog.text.count(message) == 1


def test_a_broken_version_says_why_and_is_taken_up_once_it_is_repaired(serve, base, servable):
    server = serve(base)
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"\xffnonsense")

    def error() -> str:
        answer = requests.get(f"{server.url}/v1/models/dnc/versions/2", timeout=10).json()
        seen = answer.get("model_version_status")  # not before the base path was looked at
        return seen[0]["status"]["error_message"] if seen else ""

    eventually(lambda: "cannot be served" in error())
    shutil.rmtree(base / "2")
    add_version(base, 2, servable)
    eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
    assert error() == ""


def test_a_server_that_starts_serves_the_newest_whole_version_until_a_newer_one_is_repaired(serve, base, servable):
    """As one that runs does: a broken version must not keep a server that restarts from answering."""
    add_version(base, 2, servable)
    for number in (3, 4):
        (base / str(number)).mkdir()
        (base / str(number) / "saved_model.pb").write_bytes(b"\xffnonsense")
    server = serve(base)
    assert states(server) == {4: "END", 3: "END", 2: "AVAILABLE", 1: "END"}
    with RetrievalClient.grpc(server.address, "dnc", label="stable") as client:
        assert client.recommend([["i1"]])[0].item_ids
    shutil.rmtree(base / "4")
    add_version(base, 4, servable)
    eventually(lambda: states(server) == {4: "AVAILABLE", 3: "END", 2: "END", 1: "END"})


def test_a_version_is_taken_up_that_was_seen_while_it_was_copied(serve, base, servable):
    """The graph comes first, by `cp -r`; what fails then must be tried again once there is more."""
    server = serve(base)
    (base / "2").mkdir()
    shutil.copyfile(servable / "saved_model.pb", base / "2" / "saved_model.pb")
    answer = f"{server.url}/v1/models/dnc/versions/2"
    eventually(lambda: "cannot be served" in requests.get(answer, timeout=10).text)
    shutil.copytree(servable, base / "2", dirs_exist_ok=True)
    eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})
    with RetrievalClient.grpc(server.address, "dnc", version=2) as client:
        assert client.recommend([["i1"]])[0].item_ids


@pytest.mark.parametrize("name", ["²", "20261129013524123456"], ids=["a digit, no number to int", "beyond 64 bits"])
def test_a_directory_of_no_number_is_no_version(serve, base, servable, name):
    shutil.copytree(servable, base / name)
    assert states(serve(base)) == {1: "AVAILABLE"}


def test_a_base_path_that_is_away_for_a_while_leaves_every_label(serve, base, servable, caplog):
    add_version(base, 2, servable)
    write_labels(base, ServingLabels(stable=1, canary=2))
    server = serve(base)
    base.rename(base.with_name("away"))
    eventually(lambda: f"no version under {base}" in caplog.text)
    time.sleep(0.3)
    assert states(server, "/labels/canary") == {2: "AVAILABLE"}
    assert states(server, "/labels/stable") == {1: "AVAILABLE"}
    base.with_name("away").rename(base)
    write_labels(base, ServingLabels(stable=2))
    eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})


def test_a_disk_that_stalls_holds_no_request_up(serve, base, monkeypatch):
    server = serve(base)
    stalled, gate = threading.Event(), threading.Event()

    def stalling(path: Path) -> list[int]:
        stalled.set()
        gate.wait(30)
        return versions_on_disk(path)

    monkeypatch.setattr("serving.server.model.versions_on_disk", stalling)
    try:
        assert stalled.wait(10)
        with RetrievalClient.grpc(server.address, "dnc", timeout=5) as client:
            assert client.recommend([["i1"]])
        assert states(server) == {1: "AVAILABLE"}
        assert not gate.is_set()
    finally:
        gate.set()


def refusal(models: Any, request: Any) -> str:
    """What a reload is refused with, an error of the call as in TF Serving; "" of one that is not."""
    try:
        assert not models.HandleReloadConfigRequest(request).status.error_code
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return ""


def test_reload_config_moves_labels_and_keeps_them(serve, base, servable):
    add_version(base, 2, servable)
    server = serve(base)
    with server.channel() as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(**labels: int) -> str:
            request = model_management_pb2.ReloadConfigRequest()
            config = request.config.model_config_list.config.add(name="dnc", base_path=str(base))
            config.version_labels.update(labels)
            return refusal(models, request)

        assert reload(stable=1, canary=2) == ""
        assert states(server) == {2: "AVAILABLE", 1: "AVAILABLE"}
        assert read_labels(base) == ServingLabels(stable=1, canary=2)
        assert re.match("INVALID_ARGUMENT: .*names version 9", reload(stable=9))
        assert "must be stable and, optionally, canary" in reload(beta=1)
        assert reload(stable=1, canary=1) == ""
        assert read_labels(base) == ServingLabels(stable=1, canary=1)
        assert states(server, "/labels/canary") == {1: "AVAILABLE"}
        assert reload(stable=1, canary=2) == ""
        twice = model_management_pb2.ReloadConfigRequest()
        for _ in range(2):
            twice.config.model_config_list.config.add(name="dnc", base_path=str(base))
        assert re.match("INVALID_ARGUMENT: .*lists dnc 2 times", refusal(models, twice))
        assert read_labels(base) == ServingLabels(stable=1, canary=2)
        (base / "3").mkdir()
        (base / "3" / "saved_model.pb").write_bytes(b"\xffnonsense")
        for refused in (reload(stable=3), reload(stable=2, canary=3), reload()):
            assert re.match("FAILED_PRECONDITION: .*cannot move to version 3", refused)
        assert states(server, "/labels/stable") == {1: "AVAILABLE"}
        assert read_labels(base) == ServingLabels(stable=1, canary=2), "a restart would find nothing to serve"
        shutil.rmtree(base / "3")
        assert reload() == ""
        assert read_labels(base) is None
        eventually(lambda: states(server) == {2: "AVAILABLE", 1: "END"})


def reload_policy(server: LiveServer, policy: str, **labels: int) -> str:
    """The error, or ""; `policy` is a ServableVersionPolicy as text."""
    request = model_management_pb2.ReloadConfigRequest()
    config = request.config.model_config_list.config.add(name="dnc")
    text_format.Parse(policy, config.model_version_policy)
    config.version_labels.update(labels)
    with server.channel() as channel:
        return refusal(model_service_pb2_grpc.ModelServiceStub(channel), request)


def test_a_reload_goes_on_when_its_caller_has_given_up(serve, base, servable, monkeypatch):
    """A load may take longer than any caller waits: begun anew with each call, it would never be done."""
    add_version(base, 2, servable)
    write_labels(base, ServingLabels(stable=1))
    server = serve(base)
    gate, load = threading.Event(), serving.server.model._load

    def slow(*arguments: Any) -> Any:
        gate.wait(30)
        return load(*arguments)

    monkeypatch.setattr("serving.server.model._load", slow)
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="dnc").model_version_policy.specific.versions.append(2)
    try:
        with server.channel() as channel, pytest.raises(grpc.RpcError) as raised:
            model_service_pb2_grpc.ModelServiceStub(channel).HandleReloadConfigRequest(request, timeout=1)
        assert raised.value.code() == Code.DEADLINE_EXCEEDED
        time.sleep(0.3)  # the server hears of it
        assert states(server) == {2: "LOADING", 1: "AVAILABLE"}
    finally:
        gate.set()
    eventually(lambda: states(server, "/labels/stable") == {2: "AVAILABLE"})
    assert read_labels(base) == ServingLabels(stable=2)


def test_a_reload_that_names_a_version_pins_it_and_only_latest_unpins(serve, base, servable):
    add_version(base, 2, servable)
    server = serve(base)
    assert reload_policy(server, "specific { versions: 1 }") == ""
    assert read_labels(base) == ServingLabels(stable=1)
    assert states(server, "/labels/stable") == {1: "AVAILABLE"}
    assert reload_policy(server, "specific { versions: 2 versions: 1 }", stable=1, canary=2) == ""
    assert read_labels(base) == ServingLabels(stable=1, canary=2)
    assert reload_policy(server, "latest { num_versions: 1 }") == ""
    assert read_labels(base) is None
    assert states(server, "/labels/stable") == {2: "AVAILABLE"}


@pytest.mark.parametrize(
    ("policy", "labels"),
    [
        ("all { }", {}),
        ("latest { num_versions: 2 }", {}),
        ("specific { }", {}),
        ("specific { versions: 1 versions: 2 }", {}),
        ("specific { versions: 1 versions: 2 }", {"stable": 1}),
        ("specific { versions: 1 }", {"stable": 2}),
    ],
)
def test_a_policy_that_labels_cannot_meet_is_refused_and_changes_nothing(tmp_path, policy, labels):
    base = tmp_path / "dnc"
    for number in (1, 2):
        (base / str(number)).mkdir(parents=True)
        (base / str(number) / "saved_model.pb").touch()
    write_labels(base, ServingLabels(stable=1))
    config = model_server_config_pb2.ModelServerConfig()
    one = config.model_config_list.config.add(name="dnc")
    text_format.Parse(policy, one.model_version_policy)
    one.version_labels.update(labels)

    async def reload() -> None:
        await reload_labels(Models({"dnc": base}, ServerConfig(), Metrics(["dnc"])), config)

    with pytest.raises(RequestError, match=r"dnc: model_version_policy .* ask for the latest version") as refused:
        asyncio.run(reload())
    assert refused.value.code == Code.INVALID_ARGUMENT
    assert read_labels(base) == ServingLabels(stable=1)


def test_a_version_that_is_dropped_again_while_its_last_requests_run_is_waited_for(tmp_path, monkeypatch):
    """Version 1 is served, left, gone back to, and left again; requests of its first time end last."""
    base, gates, ended = tmp_path / "dnc", [], []
    for number in (1, 2):
        (base / str(number)).mkdir(parents=True)
        (base / str(number) / "saved_model.pb").touch()

    class Slow:
        def __init__(self, number: int, *_: object):
            self.number, self.gate = number, asyncio.Event()
            gates.append(self.gate)

        async def drain(self) -> None:
            await self.gate.wait()
            ended.append(self.number)

    async def swap() -> dict[int, int]:
        model = ServedModel("dnc", base, ServerConfig(), None, ThreadPoolExecutor(1), Metrics(["dnc"]))
        for stable in (1, 2, 1, 2):
            write_labels(base, ServingLabels(stable=stable))
            await model.refresh()
        gates[2].set()  # of version 1's second time; its first still has requests
        await asyncio.sleep(0.01)
        states = {one.version: one.state for one in model.status()}
        for gate in gates:
            asyncio.get_running_loop().call_later(0.05, gate.set)
        await model.close()
        return states

    monkeypatch.setattr("serving.server.model.LoadedServable", lambda *_: None)
    monkeypatch.setattr("serving.server.model.Version", Slow)
    assert asyncio.run(swap()) == {1: State.UNLOADING, 2: State.AVAILABLE}
    assert sorted(ended) == [1, 1, 2, 2]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_swaps(serve, base, servable):
    """Without a collection, a swap of this servable leaves 18 MB. benchmarks/soak.py runs longer."""
    server = serve(base)

    def swap(to: int) -> int:
        add_version(base, to, servable)
        eventually(lambda: states(server).get(to) == "AVAILABLE")
        shutil.rmtree(base / str(to - 1))
        eventually(lambda: states(server) == {to: "AVAILABLE"})
        return resident_kib()

    sizes = [swap(to) for to in range(2, 10)]
    assert sizes[-1] - sizes[3] < 4 * 9_000


def resident_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1])
