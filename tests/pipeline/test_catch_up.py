"""Catching up: when a blessed model learns the newest span, what it learns, and which of two models is pushed."""

import json
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.errors import Diverged, Unfit
from contracts.layout import MAIN_MODEL, Workdir
from contracts.names import EventColumn, ItemColumn, Split
from contracts.serving_labels import versions_on_disk
from contracts.storage import StorageError
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import catch_up as catching_up
from pipeline.retraining.catch_up import catch_up, pushed_workdir
from pipeline.retraining.plan import Plan
from pipeline.retraining.publish import push_blessed
from pipeline.retraining.records import Record, read_record
from tests.beam_jobs.helpers import read_events
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.small_store import NAMES, make_run
from tests.pipeline.test_retrain import Calls

CONFIG = load_config(None, ["retrain.gate.min_users=40", "retrain.catch_up_epochs=3"])
HOLDOUT_START = 7
PLAN = Plan("run", ["1", "2"], {}, HOLDOUT_START, None, None, None, None, False, False, 1, [])


def judged_run(folder: Path, *, blessed: bool = True, validation_users: int = 80) -> RetrainRun:
    """A run up to its gate, whose training was warm and best in its second epoch."""
    run = RetrainRun(Workdir(folder / "run"))
    write_model(run.workdir, 2)
    with artifact.writing(run.workdir.windows.path, "windows", "f") as writer:
        writer.counts["validation_users"] = validation_users
    write_verdict(run.workdir, [] if blessed else ["too slow"])
    return run


def write_verdict(workdir: Workdir, reasons: list[str]) -> None:
    with artifact.writing(RetrainRun(workdir).gate, "blessing", "f") as writer:
        writer.details = {"verdict": {"blessed": not reasons, "reasons": reasons}, "metrics": {"of": workdir.path.name}}


def write_model(workdir: Workdir, best_epoch: int) -> None:
    with artifact.writing(workdir.model(MAIN_MODEL).path, "model", "f") as writer:
        writer.details |= {"best": {"epoch": best_epoch}, "warm_start": {"source": "yesterday"}}
        writer.details["exploration_share"] = 0.07


def outcome(run: RetrainRun, config: Config = CONFIG) -> dict[str, object]:
    catch_up(config, PLAN, run.workdir, "f", ())
    return artifact.read_manifest(run.catch_up).details


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Nothing is trained, and the gate is content; gets the configs of the trainings."""
    configs: list[Config] = []

    def run_stages(stages: object, config: Config, workdir: Workdir, part_of: str) -> None:
        configs.append(config)
        write_model(workdir, 1)
        write_verdict(workdir, [])

    monkeypatch.setattr(catching_up, "run_stages", run_stages)
    return configs


def test_what_has_learnt_the_newest_span_is_pushed(tmp_path: Path, trained: list[Config]) -> None:
    run = judged_run(tmp_path)
    found = outcome(run)
    assert (found["is_pushed"], found["why_not"], found["metrics"]) == (True, None, {"of": "caught_up"})
    assert pushed_workdir(run, found) == run.caught_up
    [config] = trained
    # It goes on from the judged model, with that one's groups, and learns from the holdout alone.
    assert config.training.warm_start == str(run.workdir.path)
    assert (config.training.epochs, config.training.early_stopping_patience) == (3, 3)
    assert not config.training.keep_start  # the gate's users decide
    assert config.windows.since == HOLDOUT_START
    # The next day has as many new items as this one had before it was learnt.
    assert config.serving.exploration_share == 0.07
    assert (config.groups.previous, config.groups.refit_drift) == (str(run.workdir.item_groups.path), 1.0)


def test_weights_that_stayed_as_they_were_learn_the_span_before_too(tmp_path: Path, trained: list[Config]) -> None:
    run = judged_run(tmp_path)
    write_model(run.workdir, 0)
    catch_up(CONFIG, replace(PLAN, since=3), run.workdir, "f", ())
    assert [config.windows.since for config in trained] == [3]


@pytest.mark.parametrize(
    ("blessed", "validation_users", "setting", "why"),
    [
        (True, 80, "retrain.catch_up_epochs=0", "retrain.catch_up_epochs=0"),
        (False, 80, "retrain.catch_up_epochs=2", "refused"),
        (True, 79, "retrain.catch_up_epochs=2", "79 users"),
    ],
)
def test_nothing_is_trained_where_it_would_come_to_nothing(
    tmp_path: Path, trained: list[Config], blessed: bool, validation_users: int, setting: str, why: str
) -> None:
    """Of 79 users 39 would judge, one too few."""
    run = judged_run(tmp_path, blessed=blessed, validation_users=validation_users)
    found = outcome(run, load_config(None, ["retrain.gate.min_users=40", setting]))
    assert not found["is_pushed"] and why in str(found["why_not"])
    assert pushed_workdir(run, found) == run.workdir
    assert trained == []


@pytest.mark.parametrize(
    ("error", "reasons", "why"),
    [
        (Diverged("the loss is not finite"), [], "the loss is not finite"),
        (Unfit("the index misses its target"), [], "the index misses its target"),
        (None, ["recall fell", "too slow"], "recall fell; too slow"),
    ],
)
def test_a_model_that_is_no_better_for_it_is_pushed_as_it_was_judged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception | None,
    reasons: list[str],
    why: str,
) -> None:
    caplog.set_level("INFO")
    run = judged_run(tmp_path)

    def run_stages(stages: object, config: Config, workdir: Workdir, part_of: str) -> None:
        if error:
            raise error
        write_verdict(workdir, reasons)

    monkeypatch.setattr(catching_up, "run_stages", run_stages)
    found = outcome(run)
    assert not found["is_pushed"] and why in str(found["why_not"])
    assert pushed_workdir(run, found) == run.workdir
    assert not run.caught_up.path.exists()
    assert f"the newest span was not learnt: {why}" in caplog.text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), StorageError("gs://b: timed out")])
def test_what_may_work_next_time_is_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """The next call goes on, or pushes what has passed as it is."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(catching_up, "run_stages", fail)
    run = judged_run(tmp_path)
    with pytest.raises(type(error)):
        outcome(run)
    assert artifact.find_manifest(run.catch_up) is None
    assert "call again with retrain.catch_up_epochs=0" in caplog.text


@pytest.mark.parametrize("is_pushed", [True, False])
def test_the_push_is_of_the_model_that_the_record_names(tmp_path: Path, is_pushed: bool) -> None:
    store = Store(tmp_path / "store")
    run = RetrainRun(make_run(store, 1))
    for name in NAMES:  # the servables of its catching up
        servable = run.caught_up.servable(name) / "4"
        servable.mkdir(parents=True)
        (servable / "saved_model.pb").write_text("graph that has caught up")
    for workdir, version in ((run.workdir, 1), (run.caught_up, 4)):
        with artifact.writing(workdir.export, "export", "f") as writer:
            writer.details = {"model_name": "dnc", "version": version}
    config = load_config(None, ["serving.indexes=[scann, exact]"]).model_dump(mode="json")
    record = Record("run-1", "not_blessed", None, None, "", 1.0, [{"key": "1", "order": 1}], {}, {}, {}, {}, config, {})
    artifact.write_json(run.pending, asdict(record) | {"catch_up": {"is_pushed": is_pushed}})
    artifact.write_json(run.plan, asdict(PLAN))
    assert push_blessed(store, "run-1").version == 1
    assert versions_on_disk(store.servable("dnc")) == [1]
    for name in NAMES:
        graph = (store.servable(name) / "1" / "saved_model.pb").read_text()
        assert graph == ("graph that has caught up" if is_pushed else "graph 1")


@pytest.mark.slow
def test_of_the_newest_span_all_is_learnt_but_what_judges(tmp_path: Path) -> None:
    """Two real days: the version that serves is that of `caught_up/`, whose events are the window's."""
    calls = Calls(tmp_path)
    # Enough to learn that an epoch is better than the start by any dozen of users.
    settings = ["retrain.gate.max_drop=0.99", "retrain.catch_up_epochs=6", "retrain.learning_rate=0.01"]
    lenient = [word for setting in settings for word in ("--set", setting)]
    for version, day in ((1, DAYS[2]), (2, DAYS[3])):
        code, told = calls.retrain(day, *lenient)
        assert (code, told["version"], told["details"]["catch_up"]["is_pushed"]) == (0, version, True), told
    record = read_record(calls.store, told["run_id"])
    assert record is not None
    assert [record.gate["reference"], record.catch_up["gate"]["reference"]] == [
        "version 1",
        "the model as it was judged",
    ]
    assert record.catch_up["stages"]["train"]["seconds"] > 0
    run = RetrainRun(calls.store.run(record.run_id))
    pushed = calls.store.servable("dnc") / "2" / "saved_model.pb"
    details = json.loads((run.caught_up.export / "manifest.json").read_text())["details"]
    made = run.caught_up.servable("dnc") / str(details["version"]) / "saved_model.pb"
    assert pushed.samefile(made) or pushed.read_bytes() == made.read_bytes()

    # By the log itself: who is held out, of the newest day alone, and nobody whose events judged the first model.
    newest = {
        (row["user_id"], row["item_id"])
        for row in pq.read_table(tmp_path / "log" / DAYS[3] / "events.parquet").to_pylist()
    }
    before, after = ({key(event): event["split"] for event in read_events(one)} for one in (run.workdir, run.caught_up))
    assert before.keys() == after.keys()
    moved = Counter((before[key], after[key]) for key in before)
    assert set(moved) == {
        (Split.TRAIN, Split.TRAIN),
        (Split.TEST, Split.TRAIN),
        (Split.VALIDATION, Split.VALIDATION),
        (Split.VALIDATION, Split.TEST),
    }
    learnt = {key[:2] for key in before if (before[key], after[key]) == (Split.TEST, Split.TRAIN)}
    assert learnt and learnt <= newest
    users = {split: {key[0] for key in after if after[key] == split} for split in (Split.VALIDATION, Split.TEST)}
    assert not users[Split.VALIDATION] & users[Split.TEST]
    # What judges is counted nowhere: neither as popularity, by which negatives are drawn, nor as co-occurrence.
    counted = pq.read_table(run.caught_up.item_statistics.items, columns=[ItemColumn.ITEM_ID, ItemColumn.TRAIN_COUNT])
    trained = Counter(key[1] for key in after if after[key] == Split.TRAIN)
    assert {item: count for item, count in zip(*counted.to_pydict().values(), strict=True) if count} == trained


def key(event: dict[str, object]) -> tuple[object, object, object]:
    return event[EventColumn.USER_ID], event[EventColumn.ITEM_ID], event[EventColumn.TIMESTAMP]
