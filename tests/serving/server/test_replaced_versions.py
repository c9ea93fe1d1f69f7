"""A version that is replaced under its own number, as where a workdir is deleted and its run made anew."""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
import tensorflow as tf

from tests.serving.server.conftest import LiveServer, eventually


def write_times(version: Path, factor: float) -> None:
    """A servable whose `times` multiplies by `factor`, there whole at once."""
    module, staging = tf.Module(), version.with_name("staging")
    times = tf.function(lambda x: {"y": factor * x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(staging), signatures={"times": times.get_concrete_function()})
    staging.rename(version)


def times_seven(server: LiveServer) -> Any:
    asked = {"signature_name": "times", "inputs": {"x": [7.0]}}
    return requests.post(f"{server.url}/v1/models/dnc:predict", json=asked, timeout=10).json().get("outputs")


def status(server: LiveServer) -> tuple[str, str]:
    """The state of the only version, and what is wrong with it."""
    (one,) = requests.get(f"{server.url}/v1/models/dnc", timeout=10).json()["model_version_status"]
    return one["state"], one["status"]["error_message"]


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    """A base path with version 1."""
    write_times(tmp_path / "dnc" / "1", 2.0)
    return tmp_path / "dnc"


def test_it_takes_over_without_a_failed_request(serve, doubling):
    server, stop, answers = serve(doubling), threading.Event(), []

    def ask() -> None:
        while not stop.is_set():
            answers.append(times_seven(server))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        eventually(lambda: len(answers) > 0)
        shutil.rmtree(doubling / "1")
        write_times(doubling / "1", 3.0)
        eventually(lambda: answers[-1] != [14.0])
    finally:
        stop.set()
        thread.join()
    changed = answers.index([21.0])
    assert answers == [[14.0]] * changed + [[21.0]] * (len(answers) - changed)
    assert status(server) == ("AVAILABLE", "")


def test_what_cannot_take_over_is_told_and_the_version_in_memory_serves_on(serve, doubling, caplog):
    caplog.set_level(logging.INFO)
    server = serve(doubling)
    (doubling / "1").rename(doubling / "before")
    (doubling / "1").mkdir()
    (doubling / "1" / "saved_model.pb").write_bytes(b"\xffnonsense")
    eventually(lambda: "cannot be served" in status(server)[1])
    assert status(server)[0] == "AVAILABLE"
    assert times_seven(server) == [14.0]
    eventually(lambda: "version 1 still serves as loaded earlier, not as it is on disk" in caplog.text)
    shutil.rmtree(doubling / "1")
    (doubling / "before").rename(doubling / "1")
    eventually(lambda: status(server)[1] == "")
    assert caplog.text.count("version 1 is loaded") == 1, "its files are those that it was loaded from"
