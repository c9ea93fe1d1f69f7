"""`dnc serve` as a command."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from serving.client import RetrievalClient

ROOT = Path(__file__).parents[3]


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to serve: --workdir DIR"),
        (["--model", "dnc"], "must have the form NAME=PATH"),
        (["--model", "dnc=/a", "--model", "dnc=/b"], "give a name once"),
        (["--model", "a/b=/nowhere"], "without / or :"),
        (["--model", "dnc=/nowhere"], "no version of dnc below /nowhere"),
        (["--workdir", "/nowhere"], "no version of dnc below /nowhere/servable/dnc"),
        (["--model", "dnc=/nowhere", "--set", "server.max_batch_size=0"], "server.max_batch_size"),
        (["--model", "dnc=/nowhere", "--set", "server.nope=0"], "server.nope: unknown key"),
    ],
)
def test_mistakes_are_explained(arguments, message):
    run = CliRunner().invoke(main, ["serve", *arguments])
    assert run.exit_code == 2
    assert message in run.stderr


def test_what_cannot_be_loaded_or_bound_is_explained(base, serve):
    taken = serve(base).address.split(":")[1]
    run = CliRunner().invoke(
        main, ["serve", "--model", f"dnc={base}", "--set", f"server.rest_port={taken}", "--set", "server.grpc_port=0"]
    )
    assert run.exit_code == 2
    assert "set server.rest_port to a free one" in run.stderr
    (base / "2").mkdir()
    (base / "2" / "saved_model.pb").write_bytes(b"\xffnonsense")
    ports = ["--set", "server.rest_port=0", "--set", "server.grpc_port=0"]
    run = CliRunner().invoke(main, ["serve", "--model", f"dnc={base}", *ports])
    assert run.exit_code == 2
    assert "the label stable cannot move to version 2" in run.stderr
