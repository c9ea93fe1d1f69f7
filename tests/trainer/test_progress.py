"""What long work says in a log."""

import logging

import pytest

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
