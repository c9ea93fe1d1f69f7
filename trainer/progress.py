"""What long work says while it runs: a bar of training in a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 60.0

Part = TypeVar("Part")


def line_a_minute(parts: Sequence[Part], what: str) -> Iterator[Part]:
    """The parts of a job, one by one; each minute a line says what share of them is done."""
    last_line = time.monotonic()
    for done, part in enumerate(parts):
        if time.monotonic() - last_line > _SECONDS_BETWEEN_LINES:
            logger.info("%s: %.0f%%", what, 100 * done / len(parts))
            last_line = time.monotonic()
        yield part


class TrainingProgress:
    """Epochs, loss, positives per second and validation recall, on stderr."""

    def __init__(self, name: str, first_epoch: int, epochs: int, positives: int):
        """`positives`: of an epoch."""
        self._name, self._epoch, self._epochs, self._positives = name, first_epoch, epochs, positives
        self._quality = ""
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._in_terminal = console.is_terminal
        self._progress = Progress(
            TextColumn(f"train {name}"),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("", total=epochs, completed=first_epoch)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, loss: float, seen: int, seconds: float) -> None:
        """Shows a step's loss; `seen` positives of the epoch took `seconds`."""
        share = min(seen / self._positives, 1.0)
        text = (
            f"epoch {self._epoch + 1} of {self._epochs}, {share:4.0%}  loss {loss:.4f}  "
            f"{seen / seconds:,.0f} positives/s  {self._quality}"
        )
        self._progress.update(self._task, completed=self._epoch + share, description=text)
        if not self._in_terminal and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            logger.info("train %s: %s", self._name, text.rstrip())
            self._last_line = time.monotonic()

    def epoch_done(self, quality: str) -> None:
        """Moves on by an epoch; `quality` says what the last validation found."""
        self._epoch, self._quality = self._epoch + 1, quality
        self._progress.update(self._task, completed=self._epoch)
