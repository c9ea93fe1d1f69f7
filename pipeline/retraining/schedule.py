"""`dnc schedule`: retrains by a cron expression on one machine, each time in a process of its own."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger

log = logging.getLogger(__name__)

_GRACE_SECONDS = 3600
"""A start that was missed, e.g. by a sleeping machine, is made up for within this time."""


def scheduler(cron: str, job: Callable[[], Any], kind: type[BaseScheduler] = BlockingScheduler) -> BaseScheduler:
    """A scheduler, not yet started, that runs `job` by a five-field cron expression, UTC.

    A run that is still going when the next is due is not joined by a second; starts that were missed
    are made up for once.

    Raises:
        ValueError: `cron` is not a cron expression.
    """
    try:
        trigger = CronTrigger.from_crontab(cron, timezone="UTC")
    except ValueError as error:
        raise ValueError(f"--cron {cron!r}: {error}; give five fields, e.g. '0 4 * * *' for 04:00 UTC") from None
    made = kind(timezone="UTC")
    made.add_job(job, trigger, id="retrain", max_instances=1, coalesce=True, misfire_grace_time=_GRACE_SECONDS)
    return made


def run_process(arguments: Sequence[str]) -> int:
    """Runs `dnc retrain` with the given arguments; its output goes where this process's goes.

    A process each time: what TensorFlow and Beam hold is given back, and new code is picked up.
    """
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", "retrain", *arguments], check=False)
    log.info("retrain ended with exit code %d", done.returncode)
    return done.returncode
