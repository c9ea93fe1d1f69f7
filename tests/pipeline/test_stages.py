"""What a stage of the pipeline depends on, what it refuses, and what it does when it is forced."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import serving.validate
import trainer.train
from contracts import artifact
from contracts.config import Config, Section
from contracts.config_io import load_config
from contracts.layout import Workdir
from pipeline.datasets.synthetic import SyntheticLog, generate
from pipeline.runner import run_stages
from pipeline.stages import STAGES
from serving.validate_process import check_servables

BY_NAME = {stage.name: stage for stage in STAGES}
SMALL = ["evaluation.baselines=[popularity, single_vector]", "evaluation.ks=[10]", "evaluation.bootstrap_samples=2"]
SMALL += ["training.epochs=1", "data.num_buckets=2", "serving.validation_requests=4", "serving.warmup_requests=4"]

NO_DEPENDENCY = {
    "beam": "how a job runs",
    "evaluation.baselines": "each is an output of train: one that is missing is trained",
}
"""Key or section -> why what is made need not change with it."""


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, set[str]]]:
    """Stage -> the config's keys that its run reads, as "section.key", in a small run of all stages."""
    folder = tmp_path_factory.mktemp("reads")
    generate(SyntheticLog(num_events=4_000, num_users=200, num_items=100), folder / "data")
    keys = ["evaluation.baselines=[popularity]", f"data.events={folder}/data/events-*.csv"]
    keys += [f"data.{table}_features.path={folder}/data/{table}s.csv" for table in ("user", "item")]
    config, workdir = load_config(Path("configs/smoke.yaml"), [*SMALL, *keys]), Workdir(folder / "run")
    workdir.path.mkdir()
    sections = {type(section): name for name, section in config if isinstance(section, Section)}
    found: dict[str, set[str]] = {}
    seen: set[str] = set()

    def read(self: Section, name: str) -> Any:
        section = "" if type(self) is Config else sections.get(type(self))
        if section is not None and name in type(self).model_fields and name not in sections.values():
            seen.add(f"{section}.{name}".removeprefix("."))
        return object.__getattribute__(self, name)

    def in_this_process(config: Config, workdir: Workdir, servable: Path, *_: object) -> None:
        check_servables(config, workdir, servable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", read)
        patch.setattr(serving.validate, "validate", in_this_process)
        for stage in STAGES:
            seen.clear()
            stage.run(config, workdir, "f")
            found[stage.name] = set(seen)
    yield found


def named(stage: str) -> set[str]:
    """The sections and keys that the stage names, and those before it."""
    return set(BY_NAME[stage].sections).union(*(named(name) for name in BY_NAME[stage].after))


@pytest.mark.parametrize("stage", BY_NAME)
def test_a_stage_names_what_it_reads(stage: str, reads: dict[str, set[str]]) -> None:
    """Otherwise it would be skipped where it must run."""
    known = {*named(stage), *NO_DEPENDENCY}
    assert reads[stage]
    assert {key for key in reads[stage] if not {key, key.split(".")[0]} & known} == set()


def test_what_a_stage_reads_is_seen(reads: dict[str, set[str]]) -> None:
    assert "windows.popularity_exponent" in reads["statistics"]
    assert "windows.easy_negatives" in reads["windows"] - reads["statistics"]
    assert {"seed", "training.loss", "model.dropout"} <= reads["train"]
    assert "serving.recall_target" in reads["validate"]


@pytest.mark.parametrize("split", ["validation", "test"])
def test_nothing_is_trained_that_cannot_be_measured(split: str, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    write_windows(workdir, **{f"{split}_users": 0})
    with pytest.raises(ValueError, match=f"on the {split} split: 3 of its users .* 7 no event before it"):
        BY_NAME["train"].run(Config(), workdir, "f")


def test_forced_training_trains_every_model_and_a_killed_one_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workdir = load_config(None, SMALL), Workdir(tmp_path / "run")
    write_windows(workdir)
    stages = (replace(BY_NAME["train"], after=()),)
    trained: list[str] = []
    killed_at = ""

    def train(config: Config, workdir: Workdir, name: str, fingerprint: str) -> None:
        if name == killed_at:
            raise KeyboardInterrupt
        trained.append(name)
        with artifact.writing(workdir.model(name).path, "model", fingerprint):
            pass

    monkeypatch.setattr(trainer.train, "train", train)
    for _ in range(2):
        run_stages(stages, config, workdir)
    assert trained == ["dnc", "single_vector"]
    killed_at = "single_vector"
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, config, workdir, first="train")
    killed_at = ""
    run_stages(stages, config, workdir)
    assert trained == ["dnc", "single_vector"] * 2


def write_windows(workdir: Workdir, **others: int) -> None:
    """A windows artifact that has nothing but its counts."""
    counts = {f"{split}_{what}": 3 for split in ("validation", "test") for what in ("users", "repeat_targets")}
    counts |= {"validation_users_without_history": 7, "test_users_without_history": 7, **others}
    with artifact.writing(workdir.windows.path, "windows", "f") as writer:
        writer.counts.update(counts)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            ["training.warm_start=runs/nope"],
            r"training.warm_start='runs/nope' names no run with the model runs/nope/models/dnc",
        ),
        (["windows.mined_negatives=2", "windows.mined_from=nope.npz"], r"windows.mined_from='nope.npz' is not there"),
    ],
)
def test_what_a_late_stage_misses_is_said_before_the_first(keys: list[str], said: str, tmp_path: Path) -> None:
    config = load_config(None, ["data.events=nowhere.csv", *keys])
    with pytest.raises(ValueError, match=said):
        run_stages(STAGES, config, Workdir(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"no file matches 'nowhere.csv'"):
        run_stages(STAGES, config, Workdir(tmp_path / "run"), last="ingest")
