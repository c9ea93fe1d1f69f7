"""What a stage of the pipeline depends on, what it refuses, and what it does when it is forced."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

import contracts
import serving.validate
import trainer.train
from contracts import artifact
from contracts.config import Config, Section
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Workdir
from pipeline.datasets.synthetic import SyntheticLog, generate
from pipeline.runner import run_stages
from pipeline.stage import Stage
from pipeline.stages import STAGES
from serving.validation.validate_process import check_servables

BY_NAME = {stage.name: stage for stage in STAGES}
SMALL = ["evaluation.baselines=[popularity, single_vector]", "evaluation.ks=[10]", "evaluation.bootstrap_samples=2"]
SMALL += ["training.epochs=1", "data.num_buckets=2", "serving.validation_requests=4", "serving.warmup_requests=4"]

NO_DEPENDENCY = {
    "beam": "how a job runs",
    "evaluation.baselines": "each is an output of train: one that is missing is trained",
}
"""Key or section -> why what is made need not change with it."""


MADE_BY = {"events": "ingest", "item_statistics": "statistics", "item_groups": "groups", "model": "train"}
MADE_BY |= {name: name for name in ("transform", "windows")} | {"evaluation": "evaluate", "export": "export"}
"""Name of an artifact in `Workdir` -> the stage that writes it."""


@dataclass
class Read:
    """What a stage's run reads: the config's keys, as "section.key", and artifacts, by the stage that writes them."""

    keys: set[str] = field(default_factory=set)
    artifacts: set[str] = field(default_factory=set)


@pytest.fixture(scope="module")
def reads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Read]]:
    """Stage -> what its run reads, in a small run of all stages."""
    folder = tmp_path_factory.mktemp("reads")
    generate(SyntheticLog(num_events=4_000, num_users=200, num_items=100), folder / "data")
    keys = ["evaluation.baselines=[popularity]", f"data.events={folder}/data/events-*.csv"]
    keys += [f"data.{table}_features.path={folder}/data/{table}s.csv" for table in ("user", "item")]
    config, workdir = load_config(Path("configs/smoke.yaml"), [*SMALL, *keys]), Workdir(folder / "run")
    workdir.path.mkdir()
    sections = {type(section): name for name, section in config if isinstance(section, Section)}
    found: dict[str, Read] = {}
    seen = Read()

    def read(self: Section, name: str) -> Any:
        section = "" if type(self) is Config else sections.get(type(self))
        if section is not None and name in type(self).model_fields and name not in sections.values():
            seen.keys.add(f"{section}.{name}".removeprefix("."))
        return object.__getattribute__(self, name)

    def find(self: Workdir, name: str) -> Any:
        if name in MADE_BY:
            seen.artifacts.add(MADE_BY[name])
        return object.__getattribute__(self, name)

    def in_this_process(config: Config, workdir: Workdir, servable: Path, *_: object) -> None:
        check_servables(config, workdir, servable)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Section, "__getattribute__", read)
        patch.setattr(Workdir, "__getattribute__", find)
        patch.setattr(serving.validate, "validate", in_this_process)
        for stage in STAGES:
            seen = found[stage.name] = Read()
            stage.run(config, workdir, "f")
    yield found


def named(stage: str) -> set[str]:
    """The sections and keys that the stage names, and those before it."""
    return set(BY_NAME[stage].sections).union(*(named(name) for name in BY_NAME[stage].after))


@pytest.mark.parametrize("stage", BY_NAME)
def test_a_stage_names_what_it_reads(stage: str, reads: dict[str, Read]) -> None:
    """Otherwise it would be skipped where it must run."""
    known, read = {*named(stage), *NO_DEPENDENCY}, reads[stage]
    assert read.keys
    assert {key for key in read.keys if not {key, key.split(".")[0]} & known} == set()
    # Each by itself: with `--from`, one may be there that those after it were not made of.
    assert read.artifacts - {stage, *BY_NAME[stage].after} == set()


def test_what_a_stage_reads_is_seen(reads: dict[str, Read]) -> None:
    assert "windows.popularity_exponent" in reads["statistics"].keys
    assert "windows.easy_negatives" in reads["windows"].keys - reads["statistics"].keys
    assert {"seed", "training.loss", "model.dropout"} <= reads["train"].keys
    assert "serving.recall_target" in reads["validate"].keys
    assert {"statistics", "groups", "transform", "windows", "train"} <= reads["export"].artifacts


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


def test_another_log_s_evaluation_does_not_pass_for_this_one_s(tmp_path: Path) -> None:
    """Windows of b, with the model of a, then a again: what was measured on b's users is none of a's."""

    def made(stage: Stage) -> Stage:
        def run(config: Config, workdir: Workdir, fingerprint: str) -> None:
            for path in stage.outputs(config, workdir):
                with artifact.writing(path, stage.name, fingerprint) as writer:
                    writer.details = {"length": config.windows.length, "of": length_of_windows(workdir)}

        return replace(stage, run=run, sources=lambda config: ())

    def length_of_windows(workdir: Workdir) -> int | None:
        manifest = artifact.find_manifest(workdir.windows.path)
        return manifest and manifest.details["length"]

    stages, workdir = tuple(made(stage) for stage in STAGES), Workdir(tmp_path / "run")
    a, b = (load_config(None, [f"windows.length={length}", "evaluation.baselines=[]"]) for length in (11, 12))
    run_stages(stages, a, workdir)
    run_stages(stages, b, workdir, last="windows")
    run_stages(stages, a, workdir, first="evaluate")
    run_stages(stages, a, workdir)
    for path in (workdir.model("dnc").path, workdir.evaluation, workdir.export, workdir.validation):
        assert artifact.read_manifest(path).details["of"] == 11, path


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
            r"training.warm_start='runs/nope' has no model runs/nope/models/dnc",
        ),
        (
            ["training.loss={exact_softmax_max_items: 0, fresh_pool: 0, easy_pool: 0}"],
            r"windows.easy_negatives=2 and training.loss.easy_pool=0: set both to at least 1",
        ),
        (
            [
                "training.loss={exact_softmax_max_items: 0, fresh_pool: 0, global_weight: 0}",
                "windows.easy_negatives=0",
                "evaluation.baselines=[single_vector_mixed]",  # the model does without easy negatives, it does not
            ],
            r"windows.easy_negatives=0 and training.loss.easy_pool=512: set both",
        ),
        (["groups.previous=nope"], r"groups.previous: no artifact at nope: check the path, .* groups.previous=null"),
        (["windows.mined_negatives=2", "windows.mined_from=nope.npz"], r"windows.mined_from='nope.npz' does not exist"),
        (["windows.mined_negatives=2", f"windows.mined_from={__file__}"], r"windows.mined_from: .*\.py cannot be read"),
    ],
)
def test_what_a_late_stage_misses_is_said_before_the_first(keys: list[str], said: str, tmp_path: Path) -> None:
    config = load_config(None, ["data.events=nowhere.csv", *keys])
    with pytest.raises(ValueError, match=said):
        run_stages(STAGES, config, Workdir(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"no file matches 'nowhere.csv'"):
        run_stages(STAGES, config, Workdir(tmp_path / "run"), last="ingest")


def test_a_start_from_weights_of_another_version_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    """Weights of the same shapes load, and mean something else: 0.2.0 and 0.4.0 were made for that alone."""
    with artifact.writing(Workdir(tmp_path / "old").model(MAIN_MODEL).path, "model", "f"):
        pass
    manifest = Workdir(tmp_path / "old").model(MAIN_MODEL).path / artifact.MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace(f'"{contracts.__version__}"', '"0.1.0"'))
    keys = ["data.events=nowhere.csv", "evaluation.baselines=[]", f"training.warm_start={tmp_path / 'old'}"]
    said = rf"dnc was trained by code version 0\.1\.0, .* {re.escape(contracts.__version__)}.*: train it again"
    with pytest.raises(ValueError, match=said):
        run_stages(STAGES, load_config(None, keys), Workdir(tmp_path / "run"))
