"""`dnc schedule`: retrains by a cron expression on one machine, each time in a separate process."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

log = logging.getLogger(__name__)

_NUM_FIELDS = 5
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_DAY = "|".join([*_DAYS, "[0-7]"])
_GRACE_SECONDS = 3600
"""A missed start, e.g. because the machine was asleep, is made up for within this time."""


def scheduler(cron: str, job: Callable[[], Any], kind: type[BaseScheduler] = BlockingScheduler) -> BaseScheduler:
    """A scheduler, not yet started, that runs `job` by a five-field cron expression, UTC.

    No second run starts while one is still going; missed starts are made up for by a single run.

    Raises:
        ValueError: `cron` is not a cron expression.
    """
    try:
        trigger = cron_trigger(cron)
    except ValueError as error:
        raise ValueError(f"--cron {cron!r}: {error}; give five fields, e.g. '0 4 * * *' for 04:00 UTC") from None
    if trigger.get_next_fire_time(None, datetime.now(timezone.utc)) is None:
        raise ValueError(f"--cron {cron!r} never fires: check the day and the month")
    made = kind(timezone="UTC")
    made.add_job(job, trigger, id="retrain", max_instances=1, coalesce=True, misfire_grace_time=_GRACE_SECONDS)
    return made


def cron_trigger(cron: str) -> BaseTrigger:
    """The trigger that cron means by the expression, unlike the one that APScheduler's own parser makes of it.

    APScheduler counts weekdays from Monday, whereas cron's 0 and 7 are Sunday. It also requires both the day of the
    month and the weekday to match, whereas cron fires on either unless one of them begins with `*`, as `*/2` does.

    Raises:
        ValueError: it is not a cron expression.
    """
    fields = cron.split()
    if len(fields) != _NUM_FIELDS:
        raise ValueError(f"it has {len(fields)} fields")
    *start, day, month, weekday = fields
    either = not any(field.startswith("*") for field in (day, weekday))
    days = [(day, "*"), ("*", _named(weekday))] if either else [(day, _named(weekday))]
    triggers = [CronTrigger.from_crontab(" ".join([*start, d, month, w]), timezone="UTC") for d, w in days]
    return triggers[0] if len(triggers) == 1 else OrTrigger(triggers)


def _named(weekday: str) -> str:
    """A weekday field with its numbers replaced by names."""
    if weekday == "*":
        return weekday
    named = []
    for part in weekday.lower().split(","):
        found = re.fullmatch(rf"(?:\*|({_DAY})(?:-({_DAY}))?)(?:/([1-9]))?", part)
        if not found:
            raise ValueError(f"the weekday {part!r} is not 0-7, sun-sat, or a range, list or step of these")
        first, last, step = found.groups()
        begin = 0 if first is None else _day(first)
        end = _day(last) if last else 6 if first is None or step else begin
        named += [_DAYS[number % 7] for number in range(begin, end + 1 + 7 * (end < begin), int(step or 1))]
    return ",".join(named)


def _day(text: str) -> int:
    return _DAYS.index(text) if text in _DAYS else int(text)


class RetrainProcess:
    """Runs a command, `dnc retrain`, each time it is due; its output goes where this process's goes.

    A new process each time gives back what TensorFlow and Beam hold, and picks up new code.
    """

    def __init__(self, command: Sequence[str]):
        self._command = command
        self._starting = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self) -> int | None:
        """Runs the command and returns its exit code; None if `stop` came first."""
        with self._starting:
            if self._stopped:
                return None
            self._process = subprocess.Popen(self._command)
        code = self._process.wait()
        log.info("retrain ended with exit code %d", code)
        return code

    def stop(self, signum: int) -> None:
        """Passes the signal on to the current run, waits for its end, and starts no more runs.

        Otherwise, the run would live on and hold the store, and nobody would stop it.
        """
        with self._starting:
            self._stopped = True
        if self._process is not None:
            self._process.send_signal(signum)  # does nothing to one that has ended
            self._process.wait()


def run_until_stopped(made: BaseScheduler, retrain: RetrainProcess) -> None:
    """Starts the scheduler; SIGTERM and SIGINT stop the current run, then the process, with exit code 0."""

    def stop(signum: int, _: object) -> None:
        retrain.stop(signum)
        sys.exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    made.start()
