"""HandleReloadConfigRequest on a directory that the server may only read."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

import serving.server.model
from contracts.config import ServerConfig
from contracts.serving_labels import ServingLabels, read_labels, write_labels
from serving.server.errors import Code, RequestError
from serving.server.metrics import Metrics
from serving.server.models import Models
from serving.server.reload_labels import reload_labels

READ_ONLY = "read_only"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Versions that were loaded, of two models with versions 1 and 2, one of them in a directory only to read."""
    found: list[str] = []
    access = os.access

    def load(path: Path, num_threads: int) -> SimpleNamespace:
        found.append(str(path.relative_to(tmp_path)))
        return SimpleNamespace(definitions={}, signatures={}, close=lambda: None)

    def allowed(path: Path, mode: int) -> bool:  # root may write to whatever is not mounted read-only
        return access(path, mode) and not (mode & os.W_OK and path == tmp_path / READ_ONLY)

    for version in ("dnc/1", "dnc/2", f"{READ_ONLY}/1", f"{READ_ONLY}/2"):
        (tmp_path / version).mkdir(parents=True)
        (tmp_path / version / "saved_model.pb").touch()
    monkeypatch.setattr(serving.server.model, "LoadedServable", load)
    monkeypatch.setattr(os, "access", allowed)
    return found


def reload(root: Path, *models: str) -> None:
    """`models`: fields of each ModelConfig, as text."""
    config = model_server_config_pb2.ModelServerConfig()
    for fields in models:
        text_format.Parse(fields, config.model_config_list.config.add())

    async def run() -> None:
        bases = {name: root / name for name in ("dnc", READ_ONLY)}
        await reload_labels(Models(bases, ServerConfig(), Metrics(bases)), config)

    asyncio.run(run())


def pinned(name: str) -> str:
    return f"name: '{name}' model_version_policy {{ specific {{ versions: 1 }} }}"


def test_nothing_is_loaded_for_labels_that_cannot_be_written(tmp_path, loaded):
    with pytest.raises(RequestError, match=rf"cannot write .*{READ_ONLY}/serving\.json: mount it writable") as refused:
        reload(tmp_path, pinned("dnc"), pinned(READ_ONLY))
    assert refused.value.code == Code.FAILED_PRECONDITION
    assert loaded == []
    assert read_labels(tmp_path / "dnc") is read_labels(tmp_path / READ_ONLY) is None
    reload(tmp_path, pinned("dnc"))
    assert loaded == ["dnc/1"]
    assert read_labels(tmp_path / "dnc") == ServingLabels(stable=1)


def test_the_newest_needs_no_writing_unless_a_file_says_otherwise(tmp_path, loaded):
    reload(tmp_path, f"name: '{READ_ONLY}'")
    assert loaded == [f"{READ_ONLY}/2"]
    write_labels(tmp_path / READ_ONLY, ServingLabels(stable=1))
    with pytest.raises(RequestError, match="mount it writable"):
        reload(tmp_path, f"name: '{READ_ONLY}'")
    assert loaded == [f"{READ_ONLY}/2"]
