"""What `dnc index` continues: the end-to-end test is beside that of the smoke run."""

from pathlib import Path

import pytest

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Workdir
from pipeline import index_refresh


@pytest.fixture
def trained(tmp_path: Path) -> Workdir:
    workdir = Workdir(tmp_path / "mine")
    with artifact.writing(workdir.model(MAIN_MODEL).path, "model", "f"):
        return workdir


def continued(config: Config, trained: Workdir, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The config that the stages get."""
    seen: list[Config] = []
    monkeypatch.setattr(index_refresh, "run_stages", lambda stages, config, workdir: seen.append(config))
    monkeypatch.setattr(index_refresh, "_outcome", lambda workdir: None)
    index_refresh.refresh_index(config, Workdir(trained.path.with_name("today")), trained)
    return seen[0]


def test_groups_continue_the_trained_runs(trained: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    with artifact.writing(trained.item_groups.path, "item_groups", "f"):
        pass
    config = continued(Config(), trained, monkeypatch)
    assert (config.groups.previous, config.training.warm_start) == (str(trained.item_groups.path), str(trained.path))
    given = load_config(None, ["groups.previous=runs/other/item_groups"])
    assert continued(given, trained, monkeypatch).groups.previous == "runs/other/item_groups"


def test_a_model_without_its_groups_is_refused(trained: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"no artifact at .*mine/item_groups"):
        continued(Config(), trained, monkeypatch)
