"""Apache Airflow: one task per stage of `dnc retrain`, with retries and backfills.

Every task is the same idempotent command with another stopping point, so a retried or cleared task continues
where the last one stopped. Copy or link this file into the DAGs folder of an Airflow whose workers share the store's
file system. Airflow 2.6 is the oldest that can run it, as its BashOperator is the first to accept several exit codes to
skip on; the test runs Airflow 3. Airflow needs nothing from this project except the `dnc` command. Settings come from
the environment of the workers and the scheduler:

    DNC           path of the command (default: dnc)
    DNC_CONFIG    the YAML config
    DNC_STORE     the store
    DNC_DIRECTORY working directory, from which relative paths in the config start
    DNC_START     first date to catch up from, e.g. 2024-05-31 (default: 2024-01-01)
    DNC_CRON      when a day's run starts (default: 04:00 UTC)
"""

from __future__ import annotations

import os
import shlex
from datetime import datetime, timedelta, timezone

try:
    from airflow.providers.standard.operators.bash import BashOperator
except ImportError:  # Airflow 2
    from airflow.operators.bash import BashOperator
from airflow import DAG
from airflow.timetables.interval import CronDataIntervalTimetable

STAGES = (
    "ingest", "statistics", "groups", "transform", "windows", "train", "export", "validate", "gate", "catch_up",
    "push",
)  # fmt: skip
NOTHING_NEW, NOT_BLESSED = 4, 3
"""Exit codes of `dnc retrain` that are not failures: the task is skipped, and so are those after it."""


def command(stage: str) -> str:
    """The shell command of a stage's task; the last one runs to the end."""
    words = [os.environ.get("DNC", "dnc"), "retrain", "-c", os.environ.get("DNC_CONFIG", "configs/retrain.yaml")]
    words += ["-s", os.environ.get("DNC_STORE", "store")]
    words += [] if stage == "push" else ["--to", stage]
    return f"{shlex.join(words)} --span {{{{ ds }}}}"


with DAG(
    dag_id="dnc_retrain",
    description="Daily retraining of the retrieval model",
    # Airflow 3 would take a bare expression for a trigger, whose `ds` is the day of the run instead of the day before.
    schedule=CronDataIntervalTimetable(os.environ.get("DNC_CRON", "0 4 * * *"), timezone="UTC"),
    start_date=datetime.fromisoformat(os.environ.get("DNC_START", "2024-01-01")).replace(tzinfo=timezone.utc),
    catchup=True,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5), "depends_on_past": False},
) as dag:
    previous = None
    for name in STAGES:
        task = BashOperator(
            task_id=name,
            bash_command=command(name),
            cwd=os.environ.get("DNC_DIRECTORY"),
            append_env=True,
            skip_on_exit_code=[NOTHING_NEW, NOT_BLESSED],
        )
        if previous is not None:
            previous >> task
        previous = task
