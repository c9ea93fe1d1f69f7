"""Spans that no model can be trained on, or measured by: what is served serves on, and the next day goes on."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.errors import TooFewEvents
from contracts.layout import Workdir
from contracts.names import Split
from contracts.serving_labels import ServingLabels, read_labels
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining import retrain as retraining
from pipeline.retraining.plan import run_id_of
from pipeline.retraining.records import Record, digest_of, keep_files, write_record
from pipeline.retraining.retrain_stages import _require_judges
from pipeline.stage import Stage
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.stubbed_calls import StubbedCalls
from tests.pipeline.test_retrain import Calls
from trainer.input.evaluation_users import EvaluationUsers


def serve_a_version(store: Store) -> None:
    served = store.servable("dnc") / "1"
    served.mkdir(parents=True)
    (served / "saved_model.pb").touch()


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


def until_training(stages: Sequence[Stage], config: Config, workdir: Workdir, last: str | None) -> None:
    for stage in stages:
        if stage.name in ("ingest", "statistics", "groups", "windows", "train"):
            stage.run(config, workdir, "f")


@pytest.mark.parametrize("users", ["who repeat themselves", "who are new"])
def test_a_newest_span_that_nobody_can_be_measured_on_is_waited_out(
    users: str, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is trained, which would take hours. Where nothing is served yet, somebody must hear of it."""
    before, path = (tmp_path / "log" / day / "events.parquet" for day in DAYS[:2])
    had, table = pq.read_table(before), pq.read_table(path)
    last_item = dict(zip(had["user_id"].to_pylist(), had["item_id"].to_pylist(), strict=True))
    repeating = users == "who repeat themselves"
    table = table.filter(pa.array([(user in last_item) == repeating for user in table["user_id"].to_pylist()]))
    if repeating:
        at = table.schema.get_field_index("item_id")
        table = table.set_column(at, "item_id", pa.array([last_item[user] for user in table["user_id"].to_pylist()]))
    pq.write_table(table, path)

    monkeypatch.setattr(retraining, "run_stages", until_training)
    call = ("--span", DAYS[1], "--set", "data.min_volume=0.05", "--set", "retrain.gate.min_users=1")
    failed = calls.here(*call)
    outcome = json.loads(failed.stdout)
    assert (failed.exit_code, outcome["outcome"]) == (1, "failed"), outcome
    assert "no user can be measured on the validation split" in outcome["reasons"][0]
    assert outcome["reasons"][0].endswith("or wait for the next span)")

    serve_a_version(calls.store)
    idle = calls.here(*call)
    outcome = json.loads(idle.stdout)
    assert (idle.exit_code, outcome["outcome"]) == (4, "nothing_new"), outcome
    assert outcome["reasons"][0].startswith(
        "version 1 keeps serving, and the next span's run will learn from this span"
    )
    assert "no user can be measured on the validation split" in outcome["reasons"][0]


def test_a_newest_span_of_too_few_users_is_waited_out_as_well(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be counted by the gate, after hours of training whose result it must refuse."""
    trained: list[Workdir] = []
    monkeypatch.setattr("trainer.train.train", lambda config, workdir, *_: trained.append(workdir))
    monkeypatch.setattr(retraining, "run_stages", until_training)
    call = ("--span", DAYS[1], "--set")
    failed = calls.here(*call, "retrain.gate.min_users=400")
    users = int(re.search(r"(\d+) users of the newest span can judge", failed.stdout)[1])  # type: ignore[index]
    assert (failed.exit_code, json.loads(failed.stdout)["outcome"]) == (1, "failed")

    serve_a_version(calls.store)
    idle = calls.here(*call, f"retrain.gate.min_users={users + 1}")
    outcome = json.loads(idle.stdout)
    assert (idle.exit_code, outcome["outcome"]) == (4, "nothing_new"), outcome
    assert outcome["reasons"][0].startswith(
        "version 1 keeps serving, and the next span's run will learn from this span"
    )
    assert f"fewer than retrain.gate.min_users={users + 1}: lower that" in outcome["reasons"][0]
    assert trained == []
    [run] = calls.store.runs.iterdir()
    assert users == len(EvaluationUsers.load(Workdir(run), Split.TEST).user_index)
    calls.here(*call, f"retrain.gate.min_users={users}")
    assert trained == [Workdir(run)]


@pytest.mark.parametrize(("strangers", "asked"), [(3, False), (367, True)])
def test_a_newest_span_mostly_of_new_users_asks_whether_ids_have_changed(
    strangers: int, asked: bool, tmp_path: Path
) -> None:
    """Somebody who re-hashes them every day would otherwise see no more than days on which nothing was new."""
    workdir = Workdir(tmp_path)
    with artifact.writing(workdir.windows.path, "windows", "f") as writer:
        writer.counts.update(test_users=4, test_users_without_history=strangers)
    with pytest.raises(TooFewEvents, match=r"^4 users of the newest span can judge a model.*lower that") as error:
        _require_judges(Config(), workdir, "lower")
    said = f"({strangers} others have no event before it: have user ids changed? If they come only once, as sessions do"
    assert (said in str(error.value)) == asked


@pytest.mark.slow
def test_a_span_that_brings_nothing_to_learn_from_leaves_what_is_served(calls: Calls, tmp_path: Path) -> None:
    """Everybody of day 3 came once, and what they did before has left the window of two days."""
    short = ["--set", "retrain.window_spans=2", "--set", "data.min_volume=0.05"]
    path, last = (tmp_path / "log" / day / "events.parquet" for day in DAYS[2:4])
    table = pq.read_table(path)
    _, first = np.unique(table["user_id"].to_numpy(zero_copy_only=False), return_index=True)
    pq.write_table(table.take(pa.array(np.sort(first))), path)
    # A span begins where 1% of its events have happened: here no event is before that.
    table = pq.read_table(last)
    at = table.schema.get_field_index("timestamp")
    times = table["timestamp"].to_numpy()
    pq.write_table(
        table.set_column(at, "timestamp", pa.array(np.maximum(times, np.sort(times)[len(times) // 10]))), last
    )
    assert calls.retrain(DAYS[1], *short)[0] == 0
    code, outcome = calls.retrain(DAYS[3], *short)
    assert (code, outcome["outcome"]) == (4, "nothing_new"), outcome
    assert "version 1 keeps serving" in outcome["reasons"][0]
    assert read_labels(calls.store.servable("dnc")) == ServingLabels(stable=1)


def test_a_log_whose_column_is_renamed_says_what_to_do_and_goes_on_once_that_is_done(
    calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config names what the newest span has, and no earlier one can be read by it."""
    trained: list[str] = []
    monkeypatch.setattr(retraining, "run_stages", lambda stages, config, workdir, last: trained.append(workdir) or [])

    def rename(day: str) -> None:
        path = tmp_path / "log" / day / "events.parquet"
        table = pq.read_table(path)
        names = ["uid" if name == "user_id" else name for name in table.column_names]
        pq.write_table(table.rename_columns(names), path)

    call = ("--span", DAYS[2], "--set", "data.columns.user_id=uid", "--to", "ingest")
    rename(DAYS[2])
    failed = calls.here(*call)
    [reason] = json.loads(failed.stdout)["reasons"]
    assert failed.exit_code == 1
    assert f"only span {DAYS[2]} of the window can be used" in reason and "rewrite the earlier files like the" in reason
    assert all(f"\n  {day}: {tmp_path}/log/{day}/events.parquet has no column 'uid'" in reason for day in DAYS[:2])
    rename(DAYS[1])
    assert calls.here(*call).exit_code == 0
    assert len(trained) == 1


@pytest.mark.parametrize("by_older_code", [False, True])
def test_a_log_that_has_lost_its_oldest_days_has_nothing_new(by_older_code: bool, tmp_path: Path) -> None:
    """Rotation alone would train, and push, the newest span once more. Records once held all files, here 20 a day."""
    for day in DAYS[:4]:
        (tmp_path / "log" / day).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "log" / day / f"events-{number}.csv").write_text(day)
    store = Store(tmp_path / "store")
    pattern = f"data.events='{tmp_path}/log/{{date}}/*.csv'"
    config = load_config(None, [pattern])
    window = retraining.find_window(config)
    run_id = run_id_of(config, [span.identity() for span in window])
    spans = [
        {"key": span.key, "order": span.order, "files": span.files_json() if by_older_code else span.digest}
        for span in window
    ]
    assert [digest_of(span) for span in spans] == [span.digest for span in window]
    nothing: dict[str, object] = {}
    pushed = (run_id, "pushed", 1, "stable", "2024-02-01", 1.0, spans, {}, nothing, nothing, nothing, nothing, nothing)
    store.run(run_id).path.mkdir(parents=True)
    write_record(store, Record(*pushed))
    if by_older_code:  # nor did it name the spans that were left out
        path = RetrainRun(store.run(run_id)).record
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "unused"}))
    for span in window if not by_older_code else ():
        keep_files(store, span)

    def reason(config: Config) -> str | None:
        window = retraining.find_window(config)
        return retraining._nothing_new(config, store, window, run_id_of(config, [span.identity() for span in window]))

    shutil.rmtree(tmp_path / "log" / DAYS[0])
    assert "since then, the log has lost the oldest spans of that run's window and gained nothing new" in (
        reason(config) or ""
    )
    assert reason(load_config(None, [pattern, "groups.num_groups=7"])) is None
    (tmp_path / "log" / DAYS[2] / "late.csv").write_text("late")
    assert reason(config) is None


def test_a_log_that_is_rotated_after_its_newest_day_was_mended_has_nothing_new(tmp_path: Path) -> None:
    """Of two runs of that day it is the later one that has read what is there now."""
    log = tmp_path / "log"
    log.mkdir()
    for day in DAYS[:3]:
        (log / f"{day}.csv").write_text(day)
    store, config = Store(tmp_path / "store"), load_config(None, [f"data.events='{log}/{{date}}.csv'"])

    def reason() -> str | None:
        window = retraining.find_window(config)
        return retraining._nothing_new(config, store, window, run_id_of(config, [span.identity() for span in window]))

    for version, content in ((1, "first"), (2, "mended")):
        (log / f"{DAYS[2]}.csv").write_text(content)
        assert reason() is None
        window = retraining.find_window(config)
        run_id, nothing = run_id_of(config, [span.identity() for span in window]), dict[str, object]()
        spans = [{"key": span.key, "order": span.order, "files": span.digest} for span in window]
        pushed = (run_id, "pushed", version, "stable", f"2024-02-0{version}", 1.0, spans, {}, *[nothing] * 5)
        store.run(run_id).path.mkdir(parents=True)
        write_record(store, Record(*pushed))
        for span in window:
            keep_files(store, span)
    (log / f"{DAYS[0]}.csv").unlink()
    assert "version 2; since then, the log has lost the oldest spans of that run's window" in (reason() or "")


def test_a_log_that_is_rotated_after_its_newest_day_was_refused_has_nothing_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rotation would train for hours, to be refused again; but other limits of the gate may let it pass."""
    calls = StubbedCalls(tmp_path, monkeypatch)
    calls.refuses()
    day = ("--span", DAYS[2])
    assert calls.version(*day) == "not_blessed"
    shutil.rmtree(tmp_path / "log" / DAYS[0])
    outcome = calls.outcome(*day)
    assert (outcome["outcome"], len(calls.ran)) == ("nothing_new", 1)
    assert "not_blessed (too slow); since then, the log has lost the oldest spans" in outcome["reasons"][0]
    assert calls.version(*day, "--set", "retrain.gate.max_latency_ms=9000") == "not_blessed"
    assert len(calls.ran) == 2


def test_a_disk_that_is_mounted_at_a_stores_base_path_is_refused_before_a_span_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in DAYS[:2]:
        (tmp_path / "log" / day).mkdir(parents=True)
        (tmp_path / "log" / day / "events.csv").write_text(day)  # which no ingest would take
    config, store = load_config(None, [f"data.events='{tmp_path}/log/{{date}}/*.csv'"]), Store(tmp_path / "store")
    base = store.servable("dnc")
    monkeypatch.setattr(Path, "is_mount", lambda path: path == base)
    with pytest.raises(ValueError, match=f"{base} is a mount point"):
        retraining.retrain(config, store, retraining.find_window(config))
