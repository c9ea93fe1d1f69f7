"""What a program says on stderr while it runs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.logging import RichHandler

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 60.0
_ROOMS = ("contracts", "beam_jobs", "trainer", "serving", "pipeline")


class _Line(logging.Handler):
    """Writes each record on one line to the current stderr: lines cut at 80 columns could not be searched."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            click.echo(self.format(record), err=True)
        except OSError:  # such as a full disk, which is no reason to end the work
            self.handleError(record)


def log_to_stderr(level: int) -> None:
    """Shows our rooms' messages from `level` on, and other packages' warnings; in a log, one dated line each.

    Each newly started process has to call it: without it, Python shows only warnings.
    """
    verbose = level <= logging.DEBUG
    console = Console(stderr=True)
    handler: logging.Handler = _Line()
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=verbose, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        form = "%(asctime)s %(levelname)s %(message)s" if verbose else "%(asctime)s %(message)s"
        handler.setFormatter(logging.Formatter(form, "%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for room in _ROOMS:
        logging.getLogger(room).setLevel(level)
    # Beam logs a worker's exception with its traceback, and then raises it here, where it is reported in one line.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    # TensorFlow warns about its own loader whenever a servable is loaded, and nobody here can do anything about it.
    logging.getLogger("tensorflow").setLevel(logging.WARNING if verbose else logging.ERROR)


class _LastLine(logging.Handler):
    """Remembers when a message was last logged."""

    def __init__(self) -> None:
        super().__init__()
        self.at = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.at = time.monotonic()


@contextmanager
def sign_of_life(what: str) -> Iterator[None]:
    """In a log, says after each minute without a message that `what` is still running.

    Not in a terminal, where training draws a progress bar, nor if logging is not set up: Python then shows warnings
    only, and only as long as it finds no handler.
    """
    if Console(stderr=True).is_terminal or not logging.getLogger().handlers:
        yield
        return
    started, last, over = time.monotonic(), _LastLine(), threading.Event()

    def watch() -> None:
        while not over.wait(max(last.at + SECONDS_BETWEEN_LINES - time.monotonic(), 0)):
            if time.monotonic() - last.at >= SECONDS_BETWEEN_LINES:
                last.at = time.monotonic()
                log.info("%s: still running after %.0f s", what, last.at - started)

    thread = threading.Thread(target=watch, daemon=True)
    logging.getLogger().addHandler(last)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        logging.getLogger().removeHandler(last)
