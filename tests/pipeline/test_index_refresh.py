"""What `dnc index` continues: the end-to-end test is beside that of the smoke run."""

from dataclasses import asdict
from pathlib import Path

import pytest

import contracts
from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Workdir
from pipeline import index_refresh
from pipeline.applied_transform import apply_transform
from serving.export import MANIFEST_FILE


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


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ({"rebuilt_groups": [2]}, "1 of 3 groups reindexed"),
        ({"rebuilt_groups": []}, "0 of 3 groups reindexed"),
        ({}, "groups searched exactly, without an index: 3"),  # 0 of 3, whatever had changed
    ],
)
def test_what_is_said_of_the_groups_indexes(details: dict[str, list[int]], said: str, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with artifact.writing(workdir.model(MAIN_MODEL).path, "model", "f") as writer:
        writer.counts |= {"kept_items": 7, "new_items": 5}
    with artifact.writing(workdir.export, "export", "f") as writer:
        writer.details |= {"model_name": "dnc", "version": 1}
    manifest = artifact.Manifest("servable", "f", counts={"groups": 3}, details=details)
    path = workdir.servable("dnc") / "1" / MANIFEST_FILE
    path.parent.mkdir(parents=True)
    artifact.write_json(path, asdict(manifest))
    assert index_refresh._outcome(workdir).indexed == said


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


def test_a_model_of_another_version_of_the_project_is_refused(trained: Workdir) -> None:
    manifest = trained.model(MAIN_MODEL).path / artifact.MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace(f'"{contracts.__version__}"', '"0.1.0"'))
    with pytest.raises(artifact.ArtifactError, match=r"mine/models/dnc was trained by .* 0\.1\.0.*: train it again"):
        index_refresh.refresh_index(Config(), Workdir(trained.path.with_name("today")), trained)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.num_heads=1", "model.num_heads=1 (trained with 2): the model in"),
        ("model.num_layers=1", "model.num_layers=1 (trained with 2)"),
        ("model.conditioning=none", "model.conditioning='none' (trained with 'mmoe')"),
        ("training.loss.global_weight=0", "training.loss.global_weight=0.0 (trained with 1.0)"),
        (
            "data={columns: {event: event}, feedback: {levels: [seen, liked], target_level: liked}}",
            "data.feedback.history_level (histories hold events below target_level in only one of the runs)",
        ),
        ("data.request_features=[{name: page, values: [home]}]", "data.request_features: the model in"),
        ("groups.embedding_dim=32", "groups.embedding_dim=32 (trained with 64): the model in"),
        ("windows.length=51", "windows.length=51 (trained with 50)"),
        ("windows.repeats=keep", "windows.repeats='keep' (trained with 'drop')"),
    ],
)
def test_another_model_of_the_same_weights_is_refused_before_a_stage_runs(
    trained: Workdir, setting: str, said: str
) -> None:
    with artifact.writing(trained.item_groups.path, "item_groups", "f"):
        pass
    with artifact.writing(trained.transform.path, "transform", "f") as writer:
        artifact.write_json(writer.path / trained.transform.feature_spec.name, {"item": [], "user": []})
    trained.model(MAIN_MODEL).config.write_text(Config().model_dump_json())
    today = Workdir(trained.path.with_name("today"))
    with pytest.raises(ValueError, match="an index refresh trains nothing") as error:
        index_refresh.refresh_index(load_config(None, [setting]), today, trained)
    assert said in str(error.value) and not today.events.path.exists()
    with pytest.raises(ValueError, match=r"data\.events is empty"):  # the first stage
        index_refresh.refresh_index(Config(), today, trained)


def test_a_trained_run_keeps_its_model(trained: Workdir) -> None:
    """Its metrics were not measured on another."""
    other = Workdir(trained.path.with_name("other"))
    other.evaluation.mkdir(parents=True)
    other.metrics.write_text("{}")
    with pytest.raises(ValueError, match=r"-w .*other holds a trained run, in place of whose model .*mine: name"):
        index_refresh.refresh_index(Config(), other, trained)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ("[{name: brand, kind: categorical}]", ["brand (categorical)", "trained with genres (tokens of 4)"]),
        ("[{name: genres, kind: text, max_tokens: 5}]", ["genres (tokens of 5)", "genres (tokens of 4)"]),
        ("[]", ["has the features none"]),
    ],
)
def test_features_that_the_model_was_not_trained_with_are_refused(
    trained: Workdir, features: str, said: list[str]
) -> None:
    with artifact.writing(trained.transform.path, "transform", "f") as writer:
        spec = {"item": [{"name": "genres", "kind": "tokens", "vocabulary_size": 9, "width": 4}], "user": []}
        artifact.write_json(writer.path / trained.transform.feature_spec.name, spec)
    config = load_config(None, [f"data.item_features={{path: items.csv, id: item_id, features: {features}}}"])
    with pytest.raises(ValueError, match="an index refresh trains nothing") as error:
        apply_transform(trained, config, Workdir(trained.path.with_name("today")), "f")
    for words in said:
        assert words in str(error.value)


@pytest.mark.parametrize("table", ["item_features", "user_features"])
def test_cells_that_the_models_graph_takes_apart_otherwise_are_refused(trained: Workdir, table: str) -> None:
    """The graph splits by the separator that it was made with, whatever the config says."""
    with artifact.writing(trained.item_groups.path, "item_groups", "f"):
        pass
    spec = {"item": [], "user": []}
    spec[table.removesuffix("_features")] = [{"name": "genres", "kind": "tokens", "vocabulary_size": 9, "width": 8}]
    with artifact.writing(trained.transform.path, "transform", "f") as writer:
        artifact.write_json(writer.path / trained.transform.feature_spec.name, spec)

    def config(**settings: str) -> Config:
        features = [{"name": "genres", "kind": "tokens"} | settings]
        return Config.model_validate({"data": {table: {"path": "items.csv", "id": "id", "features": features}}})

    trained.model(MAIN_MODEL).config.write_text(config().model_dump_json())
    today = Workdir(trained.path.with_name("today"))
    for settings, said in (
        ({"separator": ", "}, f"data.{table}: separator of genres=', ' (trained with '|'): the model in"),
        ({"kind": "text"}, f"data.{table}: kind of genres='text' (trained with 'tokens'): the model in"),
    ):
        with pytest.raises(ValueError, match="an index refresh trains nothing") as error:
            index_refresh.refresh_index(config(**settings), today, trained)
        assert said in str(error.value)
    with pytest.raises(ValueError, match=r"data\.events is empty"):  # the first stage
        index_refresh.refresh_index(config(max_vocabulary="7"), today, trained)
