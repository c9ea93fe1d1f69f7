"""The schedulers: cron times, one run at a time, and the files for Airflow and Kubernetes."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
import yaml
from apscheduler.events import EVENT_JOB_MAX_INSTANCES
from apscheduler.schedulers.background import BackgroundScheduler
from click.testing import CliRunner

from contracts.store_layout import Store
from pipeline.cli import main
from pipeline.retraining import schedule
from pipeline.retraining.commands import EXIT_CODES
from pipeline.retraining.plan import STEP_NAMES
from pipeline.retraining.records import all_records
from pipeline.retraining.schedule import cron_trigger, scheduler
from tests.pipeline.retrain_log import DAYS, make_log

SCHEDULERS = Path("pipeline/schedulers")


def test_cron_times_are_utc() -> None:
    made = scheduler("30 4 * * mon", lambda: None, BackgroundScheduler)
    at = made.get_jobs()[0].trigger.get_next_fire_time(None, datetime(2024, 5, 31, tzinfo=timezone.utc))
    assert at == datetime(2024, 6, 3, 4, 30, tzinfo=timezone.utc)  # the Monday after that Friday


@pytest.mark.parametrize(
    ("cron", "days"),
    [
        ("0 4 * * 0", ["Sun 29", "Sun 06", "Sun 13"]),
        ("0 4 * * 7", ["Sun 29", "Sun 06", "Sun 13"]),
        ("0 4 * * 1-3", ["Mon 30", "Tue 01", "Wed 02"]),
        ("0 4 * * 5-7", ["Sun 29", "Fri 04", "Sat 05"]),
        ("0 4 * * sat-mon", ["Sun 29", "Mon 30", "Sat 05"]),  # a range over the end of the week
        ("0 4 * * 1/3", ["Mon 30", "Thu 03", "Mon 07"]),  # from Monday to the end of the week
        ("0 4 * * */2", ["Sun 29", "Tue 01", "Thu 03"]),
        ("0 4 * * MON,sat", ["Mon 30", "Sat 05", "Mon 07"]),
        ("0 4 1 * 5", ["Tue 01", "Fri 04", "Fri 11"]),  # either day will do
        ("0 4 */2 * 1", ["Mon 07", "Mon 21", "Mon 11"]),  # Mondays of odd date: a field that begins with * restricts
        ("0 4 1 * */2", ["Tue 01", "Thu 01", "Sat 01"]),  # the first of December, of April and of May
    ],
)
def test_weekdays_are_those_of_cron(cron: str, days: list[str]) -> None:
    trigger, now, found = cron_trigger(cron), datetime(2026, 11, 29, tzinfo=timezone.utc), []  # a Sunday
    for _ in days:
        now = trigger.get_next_fire_time(None, now + timedelta(seconds=1))
        found.append(now.strftime("%a %d"))
    assert found == days


def test_a_day_that_never_comes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0 0 31 2 \*' never fires"):
        scheduler("0 0 31 2 *", lambda: None)


@pytest.mark.parametrize("cron", ["tomorrow", "61 * * * *", "* * * *", "0 4 * * 8", "0 4 * * 1/x"])
def test_what_is_not_cron_is_refused(cron: str) -> None:
    with pytest.raises(ValueError, match=r"--cron .* give five fields"):
        scheduler(cron, lambda: None)


def test_runs_do_not_overlap() -> None:
    """A job that is due ten times a second, and begins only once the last run of it is over."""
    running, most, runs = 0, 0, 0
    guard, go_on, skipped, again = threading.Lock(), threading.Event(), threading.Event(), threading.Event()

    def job() -> None:
        nonlocal running, most, runs
        with guard:
            running += 1
            most, runs = max(most, running), runs + 1
            if runs > 1:
                again.set()
        assert go_on.wait(10)
        with guard:
            running -= 1

    made = scheduler("* * * * *", job, BackgroundScheduler)
    made.add_listener(lambda _: skipped.set(), EVENT_JOB_MAX_INSTANCES)
    made.reschedule_job("retrain", trigger="interval", seconds=0.1)
    made.start()
    try:
        assert skipped.wait(10)  # it was due while it ran
        assert (most, runs) == (1, 1)
    finally:
        go_on.set()
        is_run_again = again.wait(10)
        made.shutdown()
    assert is_run_again
    assert most == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_schedule_stops_its_retrain(number: signal.Signals) -> None:
    """In a process of its own, whose "retrain" tells its id and waits."""
    script = (
        "import sys\n"
        "from pipeline.retraining.schedule import RetrainProcess, run_until_stopped, scheduler\n"
        "waits = 'import os, time; print(os.getpid(), flush=True); time.sleep(600)'\n"
        "process = RetrainProcess([sys.executable, '-c', waits])\n"
        "made = scheduler('* * * * *', process.run)\n"
        "made.reschedule_job('retrain', trigger='interval', seconds=0.1)\n"
        "run_until_stopped(made, process)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as schedule:
        assert schedule.stdout is not None
        child = int(schedule.stdout.readline())
        schedule.send_signal(number)
        assert schedule.wait() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.parametrize(("given", "handed_on"), [([], ""), (["-v"], "--verbose "), (["--verbose"], "--verbose ")])
def test_the_schedule_calls_the_program_that_it_is(
    given: list[str], handed_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the working directory has a package `pipeline` of its own, in which `python -m` would look."""
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").touch()
    program = tmp_path / "bin" / "dnc"
    program.parent.mkdir()
    program.write_text("import pathlib, sys\npathlib.Path('called').write_text(' '.join(sys.argv[1:]))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(program), "schedule"])
    monkeypatch.setattr(schedule, "run_until_stopped", lambda made, process: process.run())
    keys = ["--set", "data.events=log/{date}.csv"]
    done = CliRunner().invoke(main, [*given, "schedule", "-s", "store", "--cron", "0 4 * * *", *keys])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "called").read_text() == f"{handed_on}retrain -s store --set data.events=log/{{date}}.csv"


def test_the_cronjob_retries_what_a_retry_can_change() -> None:
    manifest = yaml.safe_load((SCHEDULERS / "kubernetes_cronjob.yaml").read_text())
    job = manifest["spec"]["jobTemplate"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert set(rule["onExitCodes"]["values"]) == {2, EXIT_CODES["not_blessed"]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # a pod failure policy needs it


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (1, 1), (3, 3), (EXIT_CODES["nothing_new"], 0)])
def test_to_the_cronjob_nothing_new_is_no_failure(tmp_path: Path, code: int, seen: int) -> None:
    manifest = yaml.safe_load((SCHEDULERS / "kubernetes_cronjob.yaml").read_text())
    [container] = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    dnc = tmp_path / "dnc"
    dnc.write_text(f"#!/bin/sh\nexit {code}\n")
    dnc.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(container["command"], env=environment, check=False).returncode == seen


def test_the_cronjob_hands_its_signal_on(tmp_path: Path) -> None:
    manifest = yaml.safe_load((SCHEDULERS / "kubernetes_cronjob.yaml").read_text())
    [container] = manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    dnc = tmp_path / "dnc"
    dnc.write_text(f"#!/bin/sh\ntrap 'touch {tmp_path}/told; exit 143' TERM\ntouch {tmp_path}/up\nsleep 60 & wait\n")
    dnc.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    with subprocess.Popen(container["command"], env=environment) as shell:
        until = time.monotonic() + 30
        while not (tmp_path / "up").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        shell.terminate()
        assert shell.wait(30) == 143
    assert (tmp_path / "told").exists()


def test_the_dag_has_a_task_for_each_stage() -> None:
    text = (SCHEDULERS / "airflow_dag.py").read_text()
    namespace: dict = {}
    start = text.index("STAGES = (")
    exec(text[start : text.index(")", start) + 1], namespace)
    assert list(namespace["STAGES"]) == [*STEP_NAMES, "push"]


def airflow() -> str | None:
    return os.environ.get("AIRFLOW") or shutil.which("airflow")


@pytest.mark.slow
@pytest.mark.skipif(airflow() is None, reason="no airflow on PATH: install apache-airflow in a venv, set AIRFLOW to it")
def test_airflow_runs_the_dag(tmp_path: Path) -> None:
    config = make_log(tmp_path)
    dnc = tmp_path / "dnc"
    dnc.write_text(f'#!/bin/sh\nPYTHONPATH={Path.cwd()} exec {sys.executable} -m pipeline.cli "$@"\n')
    dnc.chmod(0o755)
    (tmp_path / "airflow" / "dags").mkdir(parents=True)
    shutil.copy(SCHEDULERS / "airflow_dag.py", tmp_path / "airflow" / "dags")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DNC": str(dnc),
        "DNC_CONFIG": str(config),
        "DNC_STORE": str(tmp_path / "store"),
        "DNC_DIRECTORY": str(Path.cwd()),
        "DNC_START": (datetime.fromisoformat(DAYS[2]) - timedelta(days=1)).date().isoformat(),
    }
    for arguments in (["db", "migrate"], ["dags", "test", "dnc_retrain", DAYS[2]]):
        done = subprocess.run(
            [str(airflow()), *arguments], env=environment, capture_output=True, text=True, check=False
        )
        (tmp_path / "airflow.log").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert [(record.outcome, record.version) for record in all_records(Store(tmp_path / "store"))] == [("pushed", 1)]
