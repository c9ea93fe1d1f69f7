"""`dnc serve` as a command."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from contracts.config import ServerConfig
from contracts.serving_labels import ServingLabels, write_labels
from pipeline.cli import main
from serving.client import RetrievalClient
from serving.server.grpc_api import start_grpc
from serving.server.metrics import Metrics
from serving.server.models import Models
from serving.server.ports import bound_socket
from serving.server.rest_api import start_rest
from tests.serving.server.conftest import add_version

ROOT = Path(__file__).parents[3]
SLOW_TO_LOAD = """
import sys, time
import serving.server.model
from pipeline.cli import main

load = serving.server.model.LoadedServable

def slow(path, *arguments):
    if path.name == sys.argv[1]:
        print("loading", flush=True)
        time.sleep(600)
    return load(path, *arguments)

serving.server.model.LoadedServable = slow
main(sys.argv[2:])
"""
"""`dnc` with a version, the first argument, whose load takes ten minutes."""


def test_it_serves_until_it_is_told_to_stop(base, tmp_path):
    flags = ["--set", "server.grpc_port=0", "--set", "server.rest_port=0", "--set", "server.session_threads=1"]
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--model", f"dnc={base}", *flags]
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, cwd=ROOT) as process,
    ):
        assert process.stdout
        listening = re.fullmatch(r"dnc: gRPC (\S+), REST (\S+)\n", process.stdout.readline())
        assert listening
        with RetrievalClient.grpc(listening[1], "dnc", timeout=30) as client:
            (over_grpc,) = client.recommend([["i1"]], num_candidates=3)
        with RetrievalClient.rest(listening[2], "dnc", timeout=30) as client:
            (over_rest,) = client.recommend([["i1"]], num_candidates=3)
        assert over_grpc.item_ids == over_rest.item_ids
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert "version 1 is loaded" in log.read_text()
    assert "deprecated" not in log.read_text()


def test_it_serves_though_it_cannot_say_where(base, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    flags = ["--set", "server.grpc_port=0", "--set", f"server.rest_port={port}", "--set", "server.session_threads=1"]
    command = [sys.executable, "-m", "pipeline.cli", "serve", "--model", f"dnc={base}", *flags]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full, subprocess.Popen(command, stdout=full, cwd=ROOT, env=buffered) as process:
        with RetrievalClient.rest(f"http://127.0.0.1:{port}", "dnc", timeout=30) as client:
            client.wait_until_ready(60)
            assert client.recommend([["i1"]], num_candidates=3)[0].item_ids
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("slow", [1, 2], ids=["the first", "a new version's"])
def test_it_stops_without_waiting_for_a_load(slow, base, servable):
    flags = ["--set", "server.grpc_port=0", "--set", "server.rest_port=0", "--set", "server.session_threads=1"]
    command = [sys.executable, "-c", SLOW_TO_LOAD, str(slow), "serve", "--model", f"dnc={base}", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        try:
            if slow == 2:
                listening = re.fullmatch(r"dnc: gRPC (\S+), REST (\S+)\n", process.stdout.readline())
                assert listening
                add_version(base, 2, servable)
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to serve: give --workdir DIR"),
        (["--model", "dnc"], "must have the form NAME=PATH"),
        (["--model", "dnc=/a", "--model", "dnc=/b"], "the name must be unique"),
        (["--model", "a/b=/nowhere"], "without / or :"),
        (["--model", "dnc=/nowhere"], "no version of dnc under /nowhere"),
        (["--workdir", "/nowhere"], "no version of dnc under /nowhere/servable/dnc"),
        (["--workdir", "/nowhere"], "/nowhere/run_config.yaml is not there: the server has default settings; give"),
        (["--model", "dnc=/nowhere", "--set", "server.max_batch_size=0"], "server.max_batch_size"),
        (["--model", "dnc=/nowhere", "--set", "server.nope=0"], "server.nope: unknown key"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    run = CliRunner().invoke(main, ["serve", *arguments])
    assert run.exit_code == 2
    assert message in run.stderr


def test_a_version_that_only_tf_serving_would_read_is_explained(tmp_path):
    """Its own samples have such names."""
    (tmp_path / "00000123").mkdir()
    (tmp_path / "00000123" / "saved_model.pb").touch()
    run = CliRunner().invoke(main, ["serve", "--model", f"dnc={tmp_path}"])
    assert run.exit_code == 2
    assert (
        "directories named by numbers without leading zeros, each with a saved_model.pb; run the export stage"
        in run.stderr
    )


@pytest.mark.parametrize(("taken", "free"), [("rest_port", "grpc_port"), ("grpc_port", "rest_port")])
def test_a_taken_port_is_told_before_anything_is_loaded(taken, free, base, monkeypatch):
    """To load takes long, and memory that another server may need."""
    monkeypatch.setattr("serving.server.model.LoadedServable", lambda *_: pytest.fail("it is loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = ["--set", f"server.{taken}={other.getsockname()[1]}", "--set", f"server.{free}=0"]
        run = CliRunner().invoke(main, ["serve", "--model", f"dnc={base}", *ports])
    assert run.exit_code == 2
    assert f"set server.{taken} to a free port" in run.stderr


def test_two_ports_that_are_one_are_told_before_anything_is_loaded(base, monkeypatch):
    monkeypatch.setattr("serving.server.model.LoadedServable", lambda *_: pytest.fail("it is loaded"))
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    ports = ["--set", f"server.grpc_port={free}", "--set", f"server.rest_port={free}"]
    run = CliRunner().invoke(main, ["serve", "--model", f"dnc={base}", *ports])
    assert run.exit_code == 2
    assert "set server.rest_port to a free port" in run.stderr


@pytest.mark.parametrize("start", [start_grpc, start_rest])
def test_a_port_that_is_taken_meanwhile_is_told_too(start):
    async def listen() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            taken = other.getsockname()[1]
            await start(Models({}, config := ServerConfig(grpc_port=taken, rest_port=taken), Metrics([])), None, config)

    with pytest.raises(ValueError, match=r"cannot listen on 127.0.0.1:\d+ \(.*\); set server.\w+_port to a free port"):
        asyncio.run(listen())


@pytest.mark.parametrize(
    ("host", "why"), [("192.0.2.1", "Cannot assign requested address"), ("nowhere.invalid", "(?!Unknown)[^()]+")]
)
def test_a_host_that_is_none_of_this_machine_is_told_once(host: str, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot listen on {host}:8500 \({why}\); set server.grpc_port"):
        bound_socket(ServerConfig(host=host), "grpc_port")


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_listens_on_ipv6(serve, base):
    server = serve(base, host="::1")
    with RetrievalClient.grpc(server.address, "dnc") as client, RetrievalClient.rest(server.url, "dnc") as other:
        assert client.recommend([["i1"]])[0].item_ids == other.recommend([["i1"]])[0].item_ids


@pytest.mark.skipif(not (has_ipv6() and socket.has_dualstack_ipv6()), reason="this machine has no IPv6 beside IPv4")
def test_at_every_address_of_ipv6_it_answers_ipv4_too(serve, base):
    server = serve(base, host="::")
    grpc_port, rest_port = (int(at.rpartition(":")[2]) for at in (server.address, server.url))
    with (
        RetrievalClient.grpc(f"127.0.0.1:{grpc_port}", "dnc") as client,
        RetrievalClient.rest(f"http://127.0.0.1:{rest_port}", "dnc") as other,
    ):
        assert client.recommend([["i1"]])[0].item_ids == other.recommend([["i1"]])[0].item_ids


def test_what_cannot_be_loaded_is_explained(base):
    write_labels(base, ServingLabels(stable=2))  # without, version 1 would be served
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"\xffnonsense")
    ports = ["--set", "server.rest_port=0", "--set", "server.grpc_port=0"]
    run = CliRunner().invoke(main, ["serve", "--model", f"dnc={base}", *ports])
    assert run.exit_code == 2
    assert "the label stable cannot move to version 2" in run.stderr
