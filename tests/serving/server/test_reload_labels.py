"""HandleReloadConfigRequest: what TF Serving would take, and `dnc serve` refuses without changing anything."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest
from tensorflow_serving.config import model_server_config_pb2

from contracts.config import ServerConfig
from contracts.serving_labels import LABELS_FILE, ServingLabels, read_labels, write_labels
from serving.server.errors import Code, RequestError
from serving.server.metrics import Metrics
from serving.server.model import ServedModel
from serving.server.models import Models
from serving.server.reload_labels import reload_labels
from tests.contracts.nobody import as_nobody
from tests.serving.server.test_labels_while_loading import Loads, base_of


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Versions 1, which is stable, and 2, seen from where nobody needs a right to what lies above."""
    Loads(monkeypatch, set())
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    base = base_of(Path("dnc"), 1, 2)
    write_labels(base, ServingLabels(stable=1))
    return base


def reload(base: Path, **config: Any) -> Code | None:
    """What a server of `base` refuses a ModelConfig with."""
    wanted = model_server_config_pb2.ModelServerConfig()
    wanted.model_config_list.config.add(**{"name": "dnc", **config})

    async def ask() -> None:
        async with Models({"dnc": base}, ServerConfig(), Metrics(["dnc"])) as models:
            await reload_labels(models, wanted)

    try:
        asyncio.run(ask())
    except RequestError as error:
        return error.code
    return None


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({"name": "another", "base_path": "another"}, Code.NOT_FOUND),
        ({"base_path": "another"}, Code.INVALID_ARGUMENT),
        ({"version_labels": {"canary": 2}}, Code.INVALID_ARGUMENT),
        ({"version_labels": {"stable": 2, "beta": 2}}, Code.INVALID_ARGUMENT),
    ],
    ids=str,
)
def test_a_reload_can_only_move_the_two_labels_of_a_model_that_is_served(base, config, code):
    base_of(Path("another"), 1)
    assert reload(base, **config) == code
    assert read_labels(base) == ServingLabels(stable=1)


def test_a_reload_needs_a_base_path_that_can_be_written(base):
    base.chmod(0o555)
    with as_nobody():
        assert reload(base, version_labels={"stable": 2}) == Code.FAILED_PRECONDITION
    assert read_labels(base) == ServingLabels(stable=1)
    base.chmod(0o755)
    assert reload(base, version_labels={"stable": 2}) is None
    assert read_labels(base) == ServingLabels(stable=2)


@pytest.mark.parametrize("asked", [{"version_labels": {"stable": 2}}, {}], ids=str)
def test_labels_that_are_written_while_versions_load_stay(asked, base, monkeypatch):
    """As by a retrain that pushes, or by somebody who rolls back in a hurry."""
    canaries, load = itertools.cycle([1, 2]), ServedModel._load

    async def written_meanwhile(model: ServedModel, number: int) -> bool:
        write_labels(base, ServingLabels(stable=1, canary=next(canaries)))
        return await load(model, number)

    monkeypatch.setattr(ServedModel, "_load", written_meanwhile)
    assert reload(base, **asked) == Code.FAILED_PRECONDITION
    labels = read_labels(base)
    assert labels is not None and labels.stable == 1 and labels.canary is not None


def test_a_file_that_cannot_be_read_can_be_replaced(base):
    """As one that another user has written, in a directory that both may write to."""
    base.chmod(0o777)
    (base / LABELS_FILE).chmod(0o000)
    with as_nobody():
        assert reload(base, version_labels={"stable": 2}) is None
    assert read_labels(base) == ServingLabels(stable=2)
