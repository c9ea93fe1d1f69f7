"""What long work says, in a log and in a terminal."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from trainer import progress


def test_a_line_a_minute_says_how_much_is_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of eight parts of 25 seconds each: after 75 seconds three are done, 75 seconds later six."""
    clock = [0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    caplog.set_level(logging.INFO)
    done = []
    for part in progress.line_a_minute("abcdefgh", "count"):
        done.append(part)
        clock[0] += 25
    assert done == list("abcdefgh")
    assert caplog.messages == ["count: 38%", "count: 75%"]


def test_of_a_narrow_terminal_progress_keeps_name_epoch_and_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80)
    monkeypatch.setattr(progress, "Console", lambda stderr: console)
    with progress.TrainingProgress("single_vector", 12, 60, 1000) as shown:
        shown.update(7.1234, 1000, 0.1)
        shown.epoch_done("recall@50 0.4215 (epoch 9)")
        shown.update(7.1234, 1000, 0.1)
    assert "train single_vector: ended after epoch 13 of 60  recall@50 0.4215 (epoch 9)" in written.getvalue()
