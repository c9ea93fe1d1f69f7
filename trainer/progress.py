"""Progress of long work: a bar for training in a terminal, a line a minute in a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from contracts.log_lines import SECONDS_BETWEEN_LINES

log = logging.getLogger(__name__)

Part = TypeVar("Part")


def line_a_minute(parts: Sequence[Part], what: str) -> Iterator[Part]:
    """Yields the parts of a job; once a minute, logs what share of them is done."""
    last_line = time.monotonic()
    for done, part in enumerate(parts):
        if time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
            log.info("%s: %.0f%%", what, 100 * done / len(parts))
            last_line = time.monotonic()
        yield part


class TrainingProgress:
    """Epochs, loss, positives per second and validation recall, on stderr."""

    def __init__(self, name: str, first_epoch: int, epochs: int, positives: int):
        """`positives`: number of positives in an epoch."""
        self._name, self._epoch, self._epochs, self._positives = name, first_epoch, epochs, positives
        self._quality = self._cost = ""
        self._last_line = time.monotonic()
        console = Console(stderr=True)
        self._in_terminal = console.is_terminal
        # A single text, cut at its end if the terminal is narrow; a log gets lines, not a bar's last state.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not self._in_terminal,
        )
        self._task = self._progress.add_task("", total=epochs, completed=first_epoch)

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._cost:
            self._show(f"ended after epoch {self._epoch} of {self._epochs}", is_line=True)
        self._progress.stop()

    def update(self, loss: float, seen: int, seconds: float) -> None:
        """Shows the epoch's mean loss so far; its `seen` positives took `seconds`."""
        share = min(seen / self._positives, 1.0)
        self._cost = f"loss {loss:.4f}  {seen / seconds:,.0f} positives/s"
        self._progress.update(self._task, completed=self._epoch + share)
        is_line = time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES
        self._show(f"epoch {self._epoch + 1} of {self._epochs}, {share:4.0%}", is_line)

    def epoch_done(self, quality: str) -> None:
        """Advances by one epoch; `quality` describes the result of the last validation."""
        self._epoch, self._quality = self._epoch + 1, quality
        self._progress.update(self._task, completed=self._epoch)

    def _show(self, where: str, is_line: bool) -> None:
        text = f"train {self._name}: " + "  ".join(part for part in (where, self._quality, self._cost) if part)
        self._progress.update(self._task, description=text)
        if is_line and not self._in_terminal:
            log.info("%s", text)
            self._last_line = time.monotonic()
