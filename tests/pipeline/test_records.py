"""What a record says of the code that it was made by, and of the command."""

import subprocess
import sys
from pathlib import Path

import pytest

import contracts
from pipeline.retraining.records import code, machine


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
