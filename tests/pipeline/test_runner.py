"""The runner: order, skipping, forcing, refusing."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

import contracts
from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Workdir
from pipeline.runner import run_stages
from pipeline.stage import Stage, fingerprints
from pipeline.stages import STAGES


@pytest.fixture
def journal() -> list[str]:
    return []


@pytest.fixture
def stages(journal: list[str], tmp_path: Path) -> tuple[Stage, ...]:
    """a -> b -> c; a reads a file, b depends on the groups section."""

    def stage(name: str, after: tuple[str, ...], sections: tuple[str, ...], source: str | None = None) -> Stage:
        def run(config: Config, workdir: Workdir, fingerprint: str) -> None:
            journal.append(name)
            with artifact.writing(workdir.path / name, name, fingerprint) as writer:
                writer.counts["runs"] = 1

        return Stage(
            name,
            f"does {name}",
            after,
            sections,
            rooms=(),
            outputs=lambda config, workdir: (workdir.path / name,),
            run=run,
            sources=lambda config: (source,) if source else (),
        )

    (tmp_path / "log.csv").write_text("1")
    return (
        stage("a", (), ("data",), str(tmp_path / "*.csv")),
        stage("b", ("a",), ("groups",)),
        stage("c", ("b",), ("serving",)),
    )


def test_a_second_run_does_nothing(stages: tuple[Stage, ...], journal: list[str], tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    first = run_stages(stages, Config(), workdir)
    second = run_stages(stages, Config(), workdir)
    assert journal == ["a", "b", "c"]
    assert [result.ran for result in first] == [True] * 3
    assert [result.ran for result in second] == [False] * 3
    other = load_config(None, ["training.epochs=1"])  # which none of them reads
    run_stages(stages, other, workdir)
    assert journal == ["a", "b", "c"] and load_config(workdir.config) == other


@pytest.mark.parametrize(
    ("override", "ran"),
    [("groups.num_groups=7", ["b", "c"]), ("serving.alpha=0.5", ["c"]), ("training.epochs=1", [])],
)
def test_a_changed_section_reruns_what_depends_on_it(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path, override: str, ran: list[str]
) -> None:
    run_stages(stages, Config(), Workdir(tmp_path / "run"))
    journal.clear()
    run_stages(stages, load_config(None, [override]), Workdir(tmp_path / "run"))
    assert journal == ran


def test_a_changed_or_a_new_input_file_reruns_everything(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path
) -> None:
    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    time.sleep(0.01)
    (tmp_path / "log.csv").write_text("2")
    run_stages(stages, Config(), workdir)
    (tmp_path / "more.csv").write_text("3")
    run_stages(stages, Config(), workdir)
    assert journal == ["a", "b", "c"] * 3


CHANGED_BY = {
    "contracts": {stage.name for stage in STAGES},
    "beam_jobs": {stage.name for stage in STAGES},
    "trainer": {"train", "evaluate", "export", "validate"},
    "serving": {"export", "validate"},
    "pipeline": set(),
}
"""Room -> the stages that run its code, or read what such a stage has written."""


def test_stages_of_the_same_inputs_are_told_by_their_names(stages: tuple[Stage, ...]) -> None:
    """A model that `dnc index` took over lies where training puts one, and is not one that was trained."""
    first, second, _ = stages
    found = fingerprints([first, second, replace(second, name="other")], Config())
    assert len(set(found.values())) == 3


@pytest.mark.parametrize("room", CHANGED_BY)
def test_other_code_reruns_what_runs_it(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contracts, "__file__", str(tmp_path / "contracts" / "__init__.py"))
    found = []
    for text in ("x = 1", "x = 2"):
        for other in CHANGED_BY:
            (tmp_path / other / "part").mkdir(parents=True, exist_ok=True)
            (tmp_path / other / "part" / "code.py").write_text(text if other == room else "x = 1")
        artifact.code_of.cache_clear()
        found.append(fingerprints(STAGES, Config()))
    artifact.code_of.cache_clear()
    before, after = found
    assert {name for name in before if before[name] != after[name]} == CHANGED_BY[room]


KEY_READERS = {
    "serving.merge=quota": {"evaluate", "export", "validate"},
    "serving.warmup_requests=3": {"export", "validate"},
    "windows.easy_negatives=4": {"windows", "train", "evaluate", "export", "validate"},
    "windows.popularity_exponent=1": {stage.name for stage in STAGES} - {"ingest"},
}


@pytest.mark.parametrize("assignment", KEY_READERS)
def test_a_changed_key_reruns_what_reads_it(assignment: str) -> None:
    before, after = (fingerprints(STAGES, load_config(None, keys)) for keys in ((), (assignment,)))
    assert {name for name in before if before[name] != after[name]} == KEY_READERS[assignment]


def test_training_notices_that_the_model_it_starts_from_is_another(tmp_path: Path) -> None:
    source = Workdir(tmp_path / "earlier [1]")  # a path is no pattern
    config = load_config(None, [f"training.warm_start='{source.path}'"])
    found = set()
    for fingerprint in ("first", "second, retrained in the same place"):
        with artifact.writing(source.model(MAIN_MODEL).path, "model", fingerprint):
            pass
        found.add(fingerprints(STAGES, config)["train"])
    assert len(found) == 2


def test_from_runs_that_stage_anyway(stages: tuple[Stage, ...], journal: list[str], tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    journal.clear()
    run_stages(stages, Config(), workdir, first="b", last="b")
    assert journal == ["b"]


def test_from_runs_what_uses_that_stage_too(stages: tuple[Stage, ...], journal: list[str], tmp_path: Path) -> None:
    """What a stage writes again need not be the same to the bit."""
    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    journal.clear()
    run_stages(stages, Config(), workdir, first="b")
    assert journal == ["b", "c"]
    journal.clear()
    stages = (*stages[:2], replace(stages[2], after=("a",)))
    run_stages(stages, Config(), workdir)
    run_stages(stages, Config(), workdir, first="b")
    assert journal == ["c", "b"]


def test_files_where_a_later_stage_would_write_are_refused_before_the_first_runs(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path
) -> None:
    workdir = Workdir(tmp_path / "run")
    theirs = workdir.path / "c" / "notes.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("mine")
    with pytest.raises(ValueError, match=r"run/c holds notes\.txt"):
        run_stages(stages, Config(), workdir)
    assert journal == [] and theirs.read_text() == "mine"
    assert [result.ran for result in run_stages(stages, Config(), workdir, last="b")] == [True, True]


@pytest.mark.parametrize("link", [False, True])
def test_a_disk_that_is_mounted_at_a_base_path_is_refused_before_the_first_stage_runs(
    stages: tuple[Stage, ...], journal: list[str], link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be renamed into it, which would show once a model is trained."""
    workdir, disk = Workdir(tmp_path / "run"), tmp_path / "disk"
    mounted = disk if link else workdir.servable("dnc")
    mounted.mkdir(parents=True)
    if link:
        workdir.servable("dnc").parent.mkdir(parents=True)
        workdir.servable("dnc").symlink_to(disk)
    monkeypatch.setattr(Path, "is_mount", lambda path: path == mounted)
    last = replace(stages[-1], bases=lambda config, workdir: (workdir.servable("dnc"),))
    with pytest.raises(ValueError, match=f"{mounted} is a mount point, but versions are made beside it"):
        run_stages((*stages[:-1], last), Config(), workdir)
    assert journal == []


def test_a_config_that_lies_in_the_workdir_stays(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    """`dnc run -c config.yaml -w .`: what the run has resolved has another name, and holds every setting."""
    theirs = tmp_path / "config.yaml"
    theirs.write_text("seed: 7  # mine")
    run_stages(stages, load_config(theirs, ["groups.num_groups=3"]), Workdir(tmp_path))
    assert theirs.read_text() == "seed: 7  # mine"
    resolved = load_config(Workdir(tmp_path).config)
    assert (resolved.seed, resolved.groups.num_groups) == (7, 3)


def test_a_forced_run_that_was_killed_is_not_up_to_date(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path
) -> None:
    def die(config: Config, workdir: Workdir, fingerprint: str) -> None:
        raise KeyboardInterrupt

    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    with pytest.raises(KeyboardInterrupt):
        run_stages((stages[0], replace(stages[1], run=die)), Config(), workdir, first="b")
    journal.clear()
    run_stages(stages, Config(), workdir)
    assert journal == ["b"]


def test_a_disk_that_is_full_when_stages_are_forced_leaves_nothing_of_earlier_output(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever stages the next run makes anew, what is made of them is not older than they are."""
    workdir, forget = Workdir(tmp_path / "run"), artifact.forget
    for room in range(3):
        run_stages(stages, Config(), workdir)
        places = iter(range(room))

        def fill(path: Path, places: Iterator[int] = places) -> None:
            if next(places, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            forget(path)

        monkeypatch.setattr(artifact, "forget", fill)
        with pytest.raises(OSError, match="No space left"):
            run_stages(stages, Config(), workdir, first="a")
        monkeypatch.setattr(artifact, "forget", forget)
        journal.clear()
        run_stages(stages, Config(), workdir)
        assert journal == ["a", "b", "c"][3 - room :]


@pytest.mark.parametrize(("killed", "last"), [("b", None), ("c", None), (None, "b")])
def test_what_was_made_of_a_forced_stages_earlier_output_is_made_anew(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path, killed: str | None, last: str | None
) -> None:
    """Wherever the forced run ended: c must be of the b that is there."""

    def die(config: Config, workdir: Workdir, fingerprint: str) -> None:
        raise KeyboardInterrupt

    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    journal.clear()
    dying = tuple(replace(stage, run=die) if stage.name == killed else stage for stage in stages)
    with pytest.raises(KeyboardInterrupt) if killed else nullcontext():
        run_stages(dying, Config(), workdir, first="b", last=last)
    run_stages(stages, Config(), workdir)
    assert journal == ["b", "c"]


@pytest.mark.parametrize("settings", [(7, 10), (10, 7)])  # either fingerprint may come first
def test_a_stage_with_outputs_of_two_configs_is_not_what_either_makes(
    settings: tuple[int, int], stages: tuple[Stage, ...], journal: list[str], tmp_path: Path
) -> None:
    """As a model of today beside a baseline of yesterday, where a run died between them."""

    def outputs(config: Config, workdir: Workdir) -> tuple[Path, ...]:
        return workdir.path / "model", workdir.path / "baseline"

    def run(config: Config, workdir: Workdir, fingerprint: str) -> None:
        for path in outputs(config, workdir):
            if killed and path.name == "baseline":
                raise KeyboardInterrupt
            with artifact.writing(path, "model", fingerprint):
                pass

    workdir, killed = Workdir(tmp_path / "run"), False
    stages = (stages[0], replace(stages[1], outputs=outputs, run=run), stages[2])
    first, other = (load_config(None, [f"groups.num_groups={number}"]) for number in settings)
    run_stages(stages, first, workdir)
    killed = True
    with pytest.raises(KeyboardInterrupt):
        run_stages(stages, other, workdir)
    run_stages(stages, other, workdir, first="c")
    killed = False
    journal.clear()
    run_stages(stages, other, workdir)
    assert journal == ["c"]
    assert len({artifact.read_manifest(path).fingerprint for path in outputs(other, workdir)}) == 1


def test_from_depends_on_what_is_there_and_not_on_what_would_be(
    stages: tuple[Stage, ...], journal: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else what was made of the old log would pass for made of the new one."""
    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    run_stages(stages, Config(), workdir, first="c")
    assert "used as is" not in caplog.text
    (tmp_path / "log.csv").write_text("another")
    run_stages(stages, Config(), workdir, first="c")
    assert "a, b: made from another log, by other code or under another config, and used as is" in caplog.text
    assert "run --from a" in caplog.text
    assert journal == ["a", "b", "c", "c", "c"]
    run_stages(stages, Config(), workdir)
    assert journal[5:] == ["a", "b", "c"]
    run_stages(stages, Config(), workdir)
    assert journal[8:] == []


def test_a_stage_without_its_input_is_refused(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage b needs .*--from a"):
        run_stages(stages, Config(), Workdir(tmp_path / "run"), first="b")


def test_from_after_to_is_refused(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--from c comes after --to a"):
        run_stages(stages, Config(), Workdir(tmp_path / "run"), first="c", last="a")


def test_a_workdir_that_is_a_file_is_refused(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--workdir \S*log\.csv cannot be created as a directory: it is a file"):
        run_stages(stages, Config(), Workdir(tmp_path / "log.csv"))


def test_a_workdir_that_cannot_be_written_to_is_refused(
    stages: tuple[Stage, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def acquire(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))  # root may write wherever the file system lets it

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(ValueError, match="cannot be written to: Read-only file system"):
        run_stages(stages, Config(), Workdir(tmp_path))


def test_a_config_that_no_stage_accepts_leaves_that_of_the_finished_run(
    stages: tuple[Stage, ...], tmp_path: Path
) -> None:
    def refuse(config: Config, workdir: Workdir, fingerprint: str) -> None:
        raise ValueError("no such file")

    workdir = Workdir(tmp_path / "run")
    run_stages(stages, Config(), workdir)
    before = workdir.config.read_text()
    other = load_config(None, ["data.events=none.csv", "serving.alpha=0.5"])
    with pytest.raises(ValueError, match="no such file"):
        run_stages((replace(stages[0], run=refuse), *stages[1:]), other, workdir)
    assert workdir.config.read_text() == before
    run_stages(stages, other, workdir)
    assert load_config(workdir.config) == other


def test_a_second_run_at_once_is_refused(stages: tuple[Stage, ...], journal: list[str], tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    workdir.path.mkdir()
    with FileLock(workdir.lock), pytest.raises(ValueError, match="is held by"):
        run_stages(stages, Config(), workdir)
    assert journal == []
    run_stages(stages, Config(), workdir)
    assert journal == ["a", "b", "c"]
