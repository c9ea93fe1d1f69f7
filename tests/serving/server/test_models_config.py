"""serving.deploy.models_config: against the protos that TF Serving reads, and against its rules for labels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from contracts.serving_labels import ServingLabels, write_labels
from serving.deploy.models_config import main, models_config
from tests.serving.server.conftest import add_version, eventually

ROOT = Path(__file__).parents[3]


def test_models_config_follows_the_labels(tmp_path, servable):
    for number in (1, 2, 3):
        add_version(tmp_path / "dnc", number, servable)
    newest = text_format.Parse(
        models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m")), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config[0]
    assert newest.base_path == "/m/dnc"
    assert dict(newest.version_labels) == {"stable": 3}
    write_labels(tmp_path / "dnc", ServingLabels(stable=1, canary=3))
    run = CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}"])
    pinned = text_format.Parse(run.stdout, model_server_config_pb2.ModelServerConfig()).model_config_list.config[0]
    assert list(pinned.model_version_policy.specific.versions) == [1, 3]
    assert dict(pinned.version_labels) == {"stable": 1, "canary": 3}
    write_labels(tmp_path / "dnc", ServingLabels(stable=3, canary=3))
    promoted = text_format.Parse(
        models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m")), model_server_config_pb2.ModelServerConfig()
    ).model_config_list.config[0]
    assert list(promoted.model_version_policy.specific.versions) == [3]
    assert dict(promoted.version_labels) == {"stable": 3, "canary": 3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dnc={base}/nothing"], "no version of dnc"),
        (["dnc={base}"], "labels {'stable': 9}"),
        (["{base}"], "must have the form NAME=PATH"),
        (["dnc={base}", "dnc={base}/other"], "the name dnc is already taken"),
        (["dnc={base}", "--every", "1", "--server", "http://localhost:8501"], "--every needs --out"),
        (["dnc={base}", "--every", "1", "--out", "{base}/models.config"], "and --server URL"),
        (["dnc={base}", "--server", "localhost:8501"], "'localhost:8501' must be a URL"),
    ],
    ids=str,
)
def test_a_models_config_that_cannot_be_is_explained(tmp_path, servable, arguments, said):
    add_version(tmp_path, 1, servable)
    write_labels(tmp_path, ServingLabels(stable=9))
    run = CliRunner().invoke(main, [argument.format(base=tmp_path) for argument in arguments])
    assert run.exit_code == 2
    assert said in run.stderr


def test_a_models_config_gets_its_directory(tmp_path, servable):
    add_version(tmp_path / "dnc", 1, servable)
    out = tmp_path / "new" / "models.config"
    assert CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}", "--out", str(out)]).exit_code == 0
    assert 'name: "dnc"' in out.read_text()
    (tmp_path / "file").touch()
    run = CliRunner().invoke(main, [f"dnc={tmp_path / 'dnc'}", "--out", str(tmp_path / "file" / "models.config")])
    assert (run.exit_code, run.stderr) == (
        2,
        f"models_config: --out {tmp_path / 'file'} cannot be created as a directory: it is a file; "
        "choose another one\n",
    )


def test_a_models_config_is_kept_at_the_labels(tmp_path, servable):
    base, out = tmp_path / "dnc", tmp_path / "models.config"
    for number in (1, 2):
        add_version(base, number, servable)
    flags = ["--out", str(out), "--every", "0.1", "--server", "http://127.0.0.1:9"]  # nobody is there yet
    keeper = subprocess.Popen(
        [sys.executable, "-m", "serving.deploy.models_config", f"dnc={base}", *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        eventually(lambda: out.exists() and 'key: "stable"' in out.read_text())
        write_labels(base, ServingLabels(stable=9))
        assert "labels {'stable': 9}" in keeper.stderr.readline()
        assert "value: 2" in out.read_text()
        write_labels(base, ServingLabels(stable=1))
        eventually(lambda: "value: 1" in out.read_text())
    finally:
        keeper.kill()
        keeper.wait()


class Labelled:
    """TF Serving's versions and labels, as ServerCore::ReloadConfig (model_servers/server_core.cc) keeps them."""

    def __init__(self) -> None:
        self.labels: dict[str, int] = {}
        self.loaded: set[int] = set()
        self.listed: set[int] = set()
        self.known: set[int] = set()
        self.broken: set[int] = set()
        self.reachable = True

    def reload(self, config: str) -> bool:
        """Labels come first. With one in use that names a version not loaded, all of the config is refused."""
        (model,) = text_format.Parse(config, model_server_config_pb2.ModelServerConfig()).model_config_list.config
        labels = dict(model.version_labels)
        accepted = all(self.labels.get(one, to) == to or to in self.loaded for one, to in labels.items())
        if accepted:
            self.labels, self.listed = labels, set(model.model_version_policy.specific.versions)
            self.known |= self.listed
        return accepted

    def load(self) -> None:
        """What is listed, as far as it can be, and then unloads what is not."""
        self.loaded = self.listed - self.broken

    def get(self, url: str, timeout: float) -> Any:
        """In place of `requests.get`."""
        if not self.reachable:
            raise requests.ConnectionError(url)
        return SimpleNamespace(json=lambda: self.answer(url.removeprefix("http://server")))

    def answer(self, path: str) -> dict[str, Any]:
        """By http_rest_api_handler.cc, get_model_status_impl.cc and get_model_metadata_impl.cc."""
        if not path.startswith("/v1/models/dnc"):
            return {"error": f"Malformed request: GET {path}"}
        _, _, label = path.removesuffix("/metadata").partition("/labels/")
        if not path.endswith("/metadata"):  # a label makes no difference, and what was unloaded is listed, too
            state = {version: "AVAILABLE" if version in self.loaded else "LOADING" for version in self.listed}
            versions = sorted(self.known, reverse=True)
            found = [{"version": str(version), "state": state.get(version, "END")} for version in versions]
            return {"model_version_status": found} if found else {"error": "Could not find any versions of model dnc"}
        if label not in self.labels:
            return {"error": f"Unrecognized servable version label: {label}"}
        if (version := self.labels[label]) not in self.loaded:
            return {"error": f"Servable not found for request: Specific(dnc, {version})"}
        return {"model_spec": {"name": "dnc", "signature_name": "", "version": str(version)}, "metadata": {}}


@pytest.mark.parametrize("url", ["http://server", "http://server/"])
def test_a_label_in_use_moves_once_tf_serving_has_loaded_its_version(tmp_path, servable, monkeypatch, url):
    """In one step, TF Serving would refuse the config at every look, and never load the version."""
    server, base = Labelled(), tmp_path / "dnc"
    monkeypatch.setattr("serving.deploy.models_config.requests.get", server.get)
    for number in (1, 2, 3):
        add_version(base, number, servable)
    seen = []
    for labels in (
        ServingLabels(stable=1),
        ServingLabels(stable=2, canary=3),
        ServingLabels(stable=1, canary=3),  # to a version that is not loaded, beside a newer one
        ServingLabels(stable=1),
        ServingLabels(stable=2, canary=2),  # after a newer one was unloaded
        ServingLabels(stable=2, canary=3),
        ServingLabels(stable=3, canary=3),
    ):
        write_labels(base, labels)
        for _ in range(2):
            server.reload(models_config({"dnc": base}, PurePosixPath("/m"), url))
            seen.append((server.labels["stable"], server.labels["stable"] in server.loaded))
            server.load()
        assert (server.labels, server.loaded) == (labels.by_label(), set(labels.by_label().values()))
    # Nothing is loaded before the first config; since then, stable has always had a version that answers.
    assert [version for version, _ in seen] == [1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert [answers for _, answers in seen] == [False] + [True] * 13


class Kept:
    """A TF Serving beside what keeps its config, with versions 7 to 10 on disk."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.base = tmp_path / "dnc"
        for number in (7, 8, 9, 10):
            (self.base / str(number)).mkdir(parents=True)
            (self.base / str(number) / "saved_model.pb").touch()
        self.server = Labelled()
        monkeypatch.setattr("serving.deploy.models_config.requests.get", self._get)

    def _get(self, url: str, timeout: float) -> Any:
        return self.server.get(url, timeout)

    def look(self) -> bool:
        """One look; whether TF Serving takes the config. Stable is never dropped, and answers if it did before."""
        server = self.server
        answered = server.labels.get("stable") in server.loaded
        taken = server.reload(models_config({"dnc": self.base}, PurePosixPath("/m"), "http://server"))
        assert server.labels["stable"] in server.loaded or not answered
        server.load()
        assert server.labels["stable"] in server.loaded or not answered
        return taken

    def follow(self, *, stable: int, canary: int | None = None) -> tuple[dict[str, int], set[int]]:
        """Labels and loaded versions of TF Serving after a few looks, of which it takes every config."""
        write_labels(self.base, ServingLabels(stable=stable, canary=canary))
        assert [self.look() for _ in range(3)] == [True] * 3
        return self.server.labels, self.server.loaded

    def restart(self, *broken: int) -> None:
        """TF Serving starts with the config that was written while it could not be reached."""
        self.server = Labelled()
        self.server.broken, self.server.reachable = set(broken), False
        assert self.look()
        self.server.reachable = True


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path, monkeypatch)


def test_a_canary_that_cannot_be_loaded_holds_up_nothing(kept):
    """TF Serving gives a new label to any version; it then is in use, at a version that does not answer."""
    kept.server.broken = {8}
    assert kept.follow(stable=7) == ({"stable": 7}, {7})
    assert kept.follow(stable=7, canary=8) == ({"stable": 7, "canary": 8}, {7})
    assert kept.follow(stable=10, canary=8) == ({"stable": 10, "canary": 8}, {10})
    assert kept.follow(stable=7, canary=8) == ({"stable": 7, "canary": 8}, {7})
    assert kept.follow(stable=7, canary=9) == ({"stable": 7, "canary": 9}, {7, 9})
    assert kept.follow(stable=10, canary=9) == ({"stable": 10, "canary": 9}, {9, 10})
    assert kept.follow(stable=10, canary=10) == ({"stable": 10, "canary": 10}, {10})


def test_labels_wait_where_they_are_for_versions_that_cannot_be_loaded(kept):
    kept.server.broken = {8, 9}
    kept.follow(stable=7, canary=8)
    assert kept.follow(stable=7, canary=9) == ({"stable": 7, "canary": 8}, {7})
    assert kept.follow(stable=9, canary=9) == ({"stable": 7, "canary": 8}, {7})
    assert kept.follow(stable=10, canary=9) == ({"stable": 10, "canary": 8}, {10})
    kept.server.broken = {8}
    assert kept.follow(stable=10, canary=9) == ({"stable": 10, "canary": 9}, {9, 10})
    kept.server.broken = set()
    assert kept.follow(stable=10, canary=8) == ({"stable": 10, "canary": 8}, {8, 10})


def test_a_canary_that_is_loaded_late_needs_nothing_more(kept):
    kept.server.broken = {8}
    kept.follow(stable=7, canary=8)
    kept.server.broken = set()
    assert kept.follow(stable=7, canary=8) == ({"stable": 7, "canary": 8}, {7, 8})


@pytest.mark.parametrize(("stable", "canary", "broken"), [(7, 8, 8), (8, 7, 8)], ids=["canary", "stable"])
def test_a_server_that_started_with_a_version_that_cannot_be_loaded(kept, stable, canary, broken):
    """It serves REST once any version is loaded."""
    write_labels(kept.base, ServingLabels(stable=stable, canary=canary))
    kept.restart(broken)
    assert kept.server.labels == {"stable": stable, "canary": canary}
    assert kept.follow(stable=9, canary=9) == ({"stable": 9, "canary": 9}, {9})


def test_stable_keeps_its_label_while_a_starting_server_loads_it(kept):
    """The canary was loaded first."""
    write_labels(kept.base, ServingLabels(stable=7, canary=8))
    kept.restart(7)
    assert kept.look()
    kept.server.broken = set()
    kept.server.load()
    assert (kept.server.labels, kept.server.loaded) == ({"stable": 7, "canary": 8}, {7, 8})


def test_a_config_that_is_refused_after_no_answer_holds_up_nothing_either(kept):
    """A running server that did not answer is taken for one that starts."""
    kept.server.broken = {8}
    kept.follow(stable=7, canary=8)
    write_labels(kept.base, ServingLabels(stable=10, canary=9))
    kept.server.reachable = False
    assert not kept.look()
    kept.server.reachable = True
    assert kept.follow(stable=10, canary=9) == ({"stable": 10, "canary": 9}, {9, 10})


@pytest.mark.parametrize(
    "answer",
    [
        [],
        "up",
        None,
        {"model_version_status": None},
        {"model_version_status": {"version": "1"}},
        {"model_version_status": [{"version": "1"}]},
        {"model_version_status": [{"version": "newest", "state": "AVAILABLE"}]},
        {"model_version_status": [{"version": float("inf"), "state": "AVAILABLE"}]},
        {"model_spec": None},
        {"model_spec": "dnc"},
        {"model_spec": {"version": None}},
        {"error": None},
        {"error": "Unrecognized servable version label: stable"},
        {"error": "Servable not found for request: Latest(dnc)"},
    ],
    ids=str,
)
def test_what_another_server_answers_is_no_answer(tmp_path, servable, monkeypatch, answer):
    """The process that keeps the labels would end."""
    monkeypatch.setattr(
        "serving.deploy.models_config.requests.get", lambda url, timeout: SimpleNamespace(json=lambda: answer)
    )
    add_version(tmp_path / "dnc", 1, servable)
    found = models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m"), "http://server")
    assert found == models_config({"dnc": tmp_path / "dnc"}, PurePosixPath("/m"))
