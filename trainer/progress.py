"""The training's progress bar."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class TrainingProgress:
    """A bar on stderr over epochs: loss, positives per second, validation recall, time left."""

    def __init__(self, name: str, first_epoch: int, epochs: int):
        self._progress = Progress(
            TextColumn(f"train {name}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} positives/s  {task.fields[quality]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(
            name, total=epochs, completed=first_epoch, loss=float("nan"), rate=0.0, quality=""
        )

    def __enter__(self) -> TrainingProgress:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, loss: float, rate: float) -> None:
        """Shows a step's loss and the epoch's positives per second."""
        self._progress.update(self._task, loss=loss, rate=rate)

    def epoch_done(self, quality: str) -> None:
        """Moves on by an epoch; `quality` says what the last validation found."""
        self._progress.update(self._task, advance=1, quality=quality)
