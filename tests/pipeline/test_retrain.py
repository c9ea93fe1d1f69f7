"""`dnc retrain` from end to end, in fresh processes, as a scheduler calls it."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from contracts.lock import holding_directory
from contracts.serving_labels import ServingLabels, read_labels
from contracts.store_layout import RetrainRun, Store
from pipeline.cli import main
from pipeline.retraining import commands, schedule
from pipeline.retraining import publish as publishing
from pipeline.retraining import retrain as retraining
from pipeline.retraining.fit_spans import FitSpans
from pipeline.retraining.notify import _post, notify
from pipeline.retraining.records import Record, all_records, files_of, record_of_version
from pipeline.retraining.span_profile import SpanProfile
from pipeline.retraining.spans import Span
from tests.pipeline.retrain_log import DAYS, make_log


class Calls:
    """Calls `dnc` on one store: in a process of its own, or, where nothing is trained, in this one."""

    def __init__(self, folder: Path):
        self.config = make_log(folder)
        self.store = Store(folder / "store")

    def dnc(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-m", "pipeline.cli", command, "-s", str(self.store.path), *arguments]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    def retrain(self, span: str, *arguments: str) -> tuple[int, dict]:
        done = self.dnc("retrain", "-c", str(self.config), "--span", span, *arguments)
        assert done.stdout.count("\n") == 1, done.stderr[-3000:]
        return done.returncode, json.loads(done.stdout)

    def here(self, *arguments: str) -> Result:
        words = ["retrain", "-s", str(self.store.path), "-c", str(self.config), *arguments]
        return CliRunner().invoke(main, words)


@pytest.fixture
def calls(tmp_path: Path) -> Calls:
    return Calls(tmp_path)


@pytest.mark.slow
def test_a_week_of_retraining(calls: Calls) -> None:
    base = calls.store.servable("dnc")

    code, outcome = calls.retrain(DAYS[2])
    assert (code, outcome["outcome"], outcome["version"], outcome["label"]) == (0, "pushed", 1, "stable"), outcome
    code, outcome = calls.retrain(DAYS[2])
    assert (code, outcome["outcome"]) == (4, "nothing_new")
    code, outcome = calls.retrain(DAYS[1])
    assert code == 4
    assert "older than 2024-01-03" in outcome["reasons"][0]

    # Stage by stage, as a scheduler with a task a stage does: only the last call pushes.
    assert calls.retrain(DAYS[3], "--to", "windows")[1]["outcome"] == "stopped"
    assert calls.retrain(DAYS[3], "--to", "catch_up")[1]["outcome"] == "stopped"
    assert read_labels(base) == ServingLabels(stable=1)
    code, outcome = calls.retrain(DAYS[3])
    assert (code, outcome["version"], outcome["details"]["stages"]) == (0, 2, {})
    record = record_of_version(calls.store, 2)
    assert record is not None
    assert record.parents["version"] == 1
    assert record.parents["warm_start"]["kept_groups"] == 4
    assert record.parents["groups"]["kept"]
    assert [span["key"] for span in record.spans] == DAYS[1:4]
    assert record.stages["ingest"]["counts"]["events"] == sum(span["events"] for span in record.spans)

    assert "version 1 is stable" in calls.dnc("rollback").stdout
    code, outcome = calls.retrain(DAYS[4])
    assert (code, outcome["version"], outcome["label"]) == (0, 3, "canary")
    assert read_labels(base) == ServingLabels(stable=1, canary=3)
    assert calls.dnc("rollback", "3").returncode == 0

    refused = ["--set", "retrain.gate.min_recall=1"]
    code, outcome = calls.retrain(DAYS[5], *refused)
    assert (code, outcome["outcome"], outcome["version"]) == (3, "not_blessed", None)
    assert any(reason.startswith("recall_at_20 ") for reason in outcome["reasons"])
    assert read_labels(base) == ServingLabels(stable=3, canary=3)
    code, again = calls.retrain(DAYS[5], "--set", "retrain.gate.min_recall=0.99")
    assert (code, again["run_id"], list(again["details"]["stages"])) == (3, outcome["run_id"], ["gate", "catch_up"])

    shown = json.loads(calls.dnc("versions", "--json").stdout)
    assert [(row["version"], row["labels"]) for row in shown] == [
        (1, []),
        (2, []),
        (3, ["stable", "canary"]),
        (None, []),
    ]
    tree = calls.dnc("lineage", "3").stdout
    assert "parent of 3: version 1" in tree
    assert "seed 0" in tree
    assert "groups: kept" in tree
    assert "of 10" in calls.dnc("diff", "1", "3").stdout
    assert calls.dnc("lineage", "9").returncode == 2


@pytest.fixture
def stages(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Nothing is done instead of the stages, and the gate is content; gets the run of each call that would run them."""
    ran: list[str] = []
    profiles = [SpanProfile(day, 1, 1, 0.0, 0.0, start, "", 0, 2**62) for start, day in enumerate(DAYS[:3])]
    monkeypatch.setattr(
        retraining, "fit_spans", lambda config, store, window: FitSpans(profiles[: len(window)], {}, {})
    )
    monkeypatch.setattr(
        retraining, "run_stages", lambda stages, config, workdir, last: ran.append(workdir.path.name) or []
    )
    monkeypatch.setattr(retraining, "stage_records", lambda *_: {})
    monkeypatch.setattr(retraining, "silent_groups", lambda *_: [])
    verdict = {"verdict": {"blessed": True, "reasons": []}, "metrics": {}}
    manifest = artifact.Manifest("any", "f", details={**verdict, "warm_start": None, "is_pushed": False, "why_not": ""})
    # Not within the module: whatever is imported while a test runs would keep it.
    stand_in = SimpleNamespace(**vars(artifact) | {"read_manifest": lambda *_: manifest})
    monkeypatch.setattr(retraining, "artifact", stand_in)
    monkeypatch.setattr(publishing, "exported_servable", lambda workdir: workdir.servable("dnc") / "7")
    return ran


def test_what_is_written_anew_while_a_run_goes_on_is_new_to_the_next(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stages: list[str]
) -> None:
    """The run has read what was there before: were the record to name the new file, nobody would learn from it."""
    late = tmp_path / "log" / DAYS[0] / "events.parquet"
    before = late.stat()
    monkeypatch.setattr(retraining, "run_stages", lambda *_, **__: late.write_bytes(b"other events") and [])
    records: list[Record] = []
    monkeypatch.setattr(publishing, "publish", lambda *_, **__: (1, "stable"))
    monkeypatch.setattr(publishing, "write_record", lambda _, record: records.append(record))
    assert calls.here("--span", DAYS[1]).exit_code == 0
    assert files_of(calls.store, records[0].spans[0]) == [[str(late), before.st_size, before.st_mtime_ns]]


def test_what_files_a_span_had_is_written_down_once(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stages: list[str]
) -> None:
    """Of thousands a day, a record with all of its window is as large as what it describes, and is kept for ever."""
    for version, day in ((1, DAYS[1]), (2, DAYS[2])):
        monkeypatch.setattr(publishing, "publish", lambda *_, number=version, **__: (number, "stable"))
        assert calls.here("--span", day).exit_code == 0
    for path in calls.store.runs.glob("*/record.json"):
        assert [text for text in path.read_text().split('"') if "events.parquet" in text] == [
            f"{tmp_path}/log/{{date}}/events.parquet"
        ]
    assert len(list(calls.store.path.rglob("2024-01-01-*.json"))) == 1
    done = CliRunner().invoke(main, ["lineage", "-s", str(calls.store.path), "2", "--json"])
    logs = [tmp_path / "log" / day / "events.parquet" for day in DAYS[:3]]
    assert [span["files"] for span in json.loads(done.stdout)["spans"]] == [
        [[str(path), path.stat().st_size, path.stat().st_mtime_ns]] for path in logs
    ]


@pytest.mark.parametrize("next_day", [DAYS[1], DAYS[2]])
def test_a_run_that_dies_in_its_push_is_finished_by_any_call(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, stages: list[str], next_day: str
) -> None:
    """The scheduler's next call is a day later, and of another run. Of the run itself no stage runs again.

    Other code would make another model by then, and the record would be of what is not served.
    """

    def die(*_: object, **__: object) -> None:
        [run] = calls.store.runs.iterdir()
        exported = Workdir(run).servable("dnc") / "7"
        exported.mkdir(parents=True)
        (exported / "saved_model.pb").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "publish", die)
        assert calls.here("--span", DAYS[1]).exit_code == 1
    assert record_of_version(calls.store, 1) is None
    # Without a warm start, since there are no weights here; no matter to the run that is left over.
    done = calls.here("--span", next_day, *(["--set", "retrain.warm_start=false"] if next_day == DAYS[2] else []))
    record = record_of_version(calls.store, 1)
    assert record is not None and (record.outcome, record.label) == ("pushed", "stable")
    assert [span["key"] for span in record.spans] == DAYS[:2]
    assert stages[0] == record.run_id
    if next_day == DAYS[1]:
        assert (done.exit_code, json.loads(done.stdout)["version"], len(stages)) == (0, 1, 1)
    else:
        plans = [json.loads(RetrainRun(Workdir(run)).plan.read_text()) for run in calls.store.runs.iterdir()]
        assert sorted((plan["version"], plan["parent_run"]) for plan in plans) == [(1, None), (2, record.run_id)]


def test_what_the_gate_refused_is_judged_again_once_its_limits_differ(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    """To train it again would take hours, and make the same model. What was pushed stays as it is."""
    blessed = retraining.artifact.read_manifest(Path())
    refused = replace(blessed, details=blessed.details | {"verdict": {"blessed": False, "reasons": ["too slow"]}})
    looser, loosest = (["--set", f"retrain.gate.max_latency_ms={limit}"] for limit in (9_000, 9_001))
    monkeypatch.setattr(publishing, "exported_servable", lambda workdir: workdir.servable("dnc") / "7")
    with monkeypatch.context() as patch:
        patch.setattr(retraining.artifact, "read_manifest", lambda *_: refused)
        assert [calls.here("--span", DAYS[1]).exit_code for _ in range(2)] == [3, 4]
        assert calls.here("--span", DAYS[1], *looser).exit_code == 3
    [run] = calls.store.runs.iterdir()
    (run / "servable" / "dnc" / "7").mkdir(parents=True)
    (run / "servable" / "dnc" / "7" / "saved_model.pb").touch()
    tries = (looser, loosest, loosest, looser)
    assert [calls.here("--span", DAYS[1], *limits).exit_code for limits in tries] == [4, 0, 4, 4]
    assert stages == [run.name] * 3
    [record] = all_records(calls.store)
    assert (record.outcome, record.config["retrain"]["gate"]["max_latency_ms"]) == ("pushed", 9_001)


def test_days_that_fail_leave_no_more_than_one_unfinished_run(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, stages: list[str]
) -> None:
    """The disk is full: what the day before has left is gone before anything of the next day is written."""
    found: list[tuple[list[str], list[str]]] = []

    def profile(_: Config, store: Store, window: list[Span]) -> FitSpans:
        runs, spans = ([path.name[:10] for path in store.path.glob(f"{kind}/*")] for kind in ("runs", "spans"))
        found.append((runs, sorted(spans)))
        return FitSpans([SpanProfile(span.key, 1, 1, 0.0, 0.0, span.order, "", 0, 2**62) for span in window], {}, {})

    def fill_the_disk(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(retraining, "fit_spans", profile)
    monkeypatch.setattr(retraining, "run_stages", fill_the_disk)
    for key in DAYS[:4]:
        calls.store.span(key).profile.mkdir(parents=True)
    for until in (DAYS[2], DAYS[2], DAYS[3]):
        assert calls.here("--span", until).exit_code == 1
    [left] = calls.store.runs.iterdir()
    assert left.name.startswith(DAYS[3])
    assert found == [([], DAYS[:3]), ([DAYS[2]], DAYS[:3]), ([], DAYS[1:3])]


@pytest.fixture
def webhook() -> Iterator["Webhook"]:
    with Webhook() as made:
        yield made


class Webhook(HTTPServer):
    """Keeps what it is told, and answers `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: list[dict] = []
        self.status = 204
        self.url = f"http://127.0.0.1:{self.server_port}/secret"
        Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *arguments: object) -> None:
        self.shutdown()
        super().__exit__(*arguments)


class _Handler(BaseHTTPRequestHandler):
    server: Webhook

    def do_POST(self) -> None:
        self.server.heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


def test_a_newest_span_that_is_not_fit_fails_and_is_told(calls: Calls, tmp_path: Path, webhook: Webhook) -> None:
    """The webhook hears of it, too."""
    (tmp_path / "log" / DAYS[2] / "events.parquet").write_bytes(b"PAR1 no more")
    done = calls.here("--span", DAYS[2], "--set", f"retrain.webhook={webhook.url}")
    outcome = json.loads(done.stdout)
    assert (done.exit_code, outcome["outcome"], outcome["span"]) == (1, "failed", DAYS[2])
    assert outcome["seconds"] > 0
    assert f"span {DAYS[2]} is not fit to train on" in outcome["reasons"][0]
    assert webhook.heard == [outcome]


def test_a_change_of_the_log_that_is_meant_is_taken_by_the_switch_that_the_refusal_names(
    calls: Calls, tmp_path: Path
) -> None:
    """Users get other ids from one day on."""
    path = tmp_path / "log" / DAYS[2] / "events.parquet"
    table = pq.read_table(path)
    at = table.schema.get_field_index("user_id")
    pq.write_table(table.set_column(at, "user_id", pc.binary_join_element_wise(table["user_id"], "x", "-")), path)
    arguments = ["--span", DAYS[2], "--to", "ingest"]
    outcome = json.loads(calls.here(*arguments).stdout)
    assert "break the schema" in outcome["reasons"][0]
    assert "dnc retrain: retrain.span.schema_of_last=false" in outcome["reasons"][0]
    done = calls.here(*arguments, "--set", "retrain.span.schema_of_last=false")
    outcome = json.loads(done.stdout)
    assert (done.exit_code, outcome["outcome"], outcome["span"]) == (0, "stopped", DAYS[2]), outcome
    assert outcome["seconds"] > 0
    assert json.loads(calls.here(*arguments).stdout)["outcome"] == "stopped"  # taken once, it is not asked again


def test_a_webhook_is_tried_again_where_that_may_help(
    webhook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_post.retry, "sleep", lambda seconds: None)
    for status, tries in ((404, 1), (503, 3)):
        webhook.heard.clear()
        webhook.status = status
        notify(webhook.url, "{}")
        assert len(webhook.heard) == tries
        assert f"HTTP status {status}" in caplog.messages[-1]
    notify("http://127.0.0.1:1/secret", "{}")
    assert "no answer (ConnectionError)" in caplog.messages[-1]
    assert "secret" not in caplog.text


def test_an_outcome_that_json_does_not_know_is_told_as_it_is_printed(
    calls: Calls, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = {"outcome": "nothing_new", "span": None, "version": None, "reasons": [], "seconds": 0.0, "details": {}}
    monkeypatch.setattr(commands, "_retrain", lambda *arguments: outcome | {"details": {"log": Path("/log")}})
    done = calls.here("--set", f"retrain.webhook={webhook.url}")
    assert done.exit_code == 4, done.output
    assert webhook.heard == [json.loads(done.stdout)] == [outcome | {"details": {"log": "/log"}}]


def test_the_first_span_alone_is_nothing_to_train_on(calls: Calls) -> None:
    done = calls.here("--span", DAYS[0])
    assert done.exit_code == 4
    assert "only one complete span" in json.loads(done.stdout)["reasons"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "retrain.gate.k=0"], "retrain.gate.k"),
        (["--set", "evaluation.max_users=9"], "evaluation.max_users=9 is less than retrain.gate.min_users=10"),
        (["--to", "lunch"], "'lunch' is not one of 'ingest'"),
    ],
)
def test_a_bad_call_is_exit_code_2(calls: Calls, arguments: list[str], message: str) -> None:
    done = calls.here(*arguments)
    assert done.exit_code == 2
    assert message in done.stderr


@pytest.mark.parametrize(
    "words", [["versions"], ["rollback"], ["lineage", "1"], ["diff", "1", "2"]], ids=lambda w: w[0]
)
def test_a_store_that_is_not_there_is_an_error(tmp_path: Path, words: list[str]) -> None:
    done = CliRunner().invoke(main, [*words, "-s", str(tmp_path / "typo")])
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"-s {tmp_path / 'typo'} is not a directory: name a store" in done.stderr


@pytest.mark.parametrize("words", [["retrain"], ["schedule", "--cron", "0 4 * * *"]], ids=lambda w: w[0])
def test_a_store_that_cannot_be_made_is_refused_at_once(
    calls: Calls, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "run_until_stopped", lambda *_: None)
    done = CliRunner().invoke(main, [*words, "-s", str(calls.config), "-c", str(calls.config)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"dnc: -s {calls.config} cannot be created as a directory: it is a file; choose another one\n"


def test_a_second_retrain_at_once_says_who_holds_the_store(calls: Calls) -> None:
    with holding_directory(calls.store.lock, "-s"):
        done = calls.here("--span", DAYS[2])
    assert done.exit_code == 1
    assert f"is held by process {os.getpid()} on" in json.loads(done.stdout)["reasons"][0]


def test_a_dead_owners_lock_is_free(calls: Calls) -> None:
    script = (
        "import os; from pathlib import Path; from contracts.lock import holding_directory\n"
        f"with holding_directory(Path({str(calls.store.lock)!r}), '-s'): os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    assert [path.name for path in sorted(calls.store.path.iterdir())] == [".lock", ".lock-owner"]
    with holding_directory(calls.store.lock, "-s"):
        pass
    assert list(calls.store.path.iterdir()) == [calls.store.lock]
