"""What a record says of the code that it was made by, and of the command; and in which order records are listed."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import contracts
from contracts.store_layout import Store
from pipeline.retraining.housekeeping import retain
from pipeline.retraining.records import all_records, code, machine, write_record
from pipeline.retraining.views import versions_json
from tests.pipeline.small_store import CONFIG, make_run, push


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.mark.parametrize("is_tracked", [True, False])
def test_a_commit_is_that_of_this_code(is_tracked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed into a virtual environment within another project's checkout, it is none of that project's commits."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module = tmp_path / "site-packages" / "contracts" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.touch()
    git("init")
    if is_tracked:
        git("add", ".")
    git("commit", "--allow-empty", "-m", "x")
    monkeypatch.setattr(contracts, "__file__", str(module))
    assert code().get("commit") == (git("rev-parse", "--short", "HEAD") if is_tracked else None)


def test_a_record_does_not_tell_a_secret_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["retrain.webhook=", "--set=retrain.webhook=", "retrain={patience: 2, webhook:", 'retrain={"webhook" :']
    keys += ["beam.options=[--s3_secret_access_key=", "beam.options=[a, '--s3_session_token',"]
    monkeypatch.setattr(sys, "argv", ["dnc", "retrain", *(f"{key} http://x/secret" for key in keys)])
    assert machine()["command"] == ["dnc", "retrain", *(f"{key}..." for key in keys)]
    monkeypatch.setattr(sys, "argv", ["data.item_features={features: [{name: tags, kind: tokens, max_tokens: 3}]}"])
    assert machine()["command"] == sys.argv


def test_a_record_does_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert code().keys() >= {"dnc-retrieval", "python", "tensorflow"}
    assert "commit" not in code()


def test_runs_are_listed_by_time_whatever_came_of_them(store: Store) -> None:
    push(store, 1, None)
    [first] = all_records(store)
    make_run(store, 2)
    write_record(store, replace(first, run_id="run-2", outcome="not_blessed", version=None, created="2024-01-02"))
    push(store, 3, 1)
    assert [row["version"] for row in versions_json(store)] == [1, None, 3]


def test_a_clock_that_was_set_back_makes_no_run_the_newest(store: Store) -> None:
    push(store, 2, None)
    [first] = all_records(store)
    make_run(store, 3)
    refused = replace(first, run_id="run-3", outcome="not_blessed", version=None, created="2024-01-01")
    write_record(store, replace(refused, spans=[{"key": "3", "order": 3}]))
    assert [row["version"] for row in versions_json(store)] == [2, None]
    retain(CONFIG, store)
    assert (store.run("run-3").servable("dnc") / "1" / "saved_model.pb").exists()


def test_of_runs_of_one_span_and_one_second_the_version_tells(store: Store) -> None:
    push(store, 1, None)
    [first] = all_records(store)
    for number in (4, 2, 5, 3):
        make_run(store, 10 - number)  # directories in another order
        write_record(store, replace(first, run_id=f"run-{10 - number}", version=number))
    assert [row["version"] for row in versions_json(store)] == [1, 2, 3, 4, 5]
