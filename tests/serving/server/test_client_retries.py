"""What a client asks again, by a clock of the test's own."""

import time

import pytest

from serving.client import RetrievalClient, RetrievalError
from serving.client.transport import Code, Target


class Away:
    """A transport whose server is never there; each try takes ten milliseconds."""

    def __init__(self) -> None:
        self.now, self.left = 0.0, list[float]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def signatures(self, target: Target, timeout: float) -> None:
        self.left.append(timeout)
        self.now += 0.01
        raise RetrievalError(Code.UNAVAILABLE, "away")


def test_no_try_is_too_short_to_say_more_than_that_the_time_is_up(monkeypatch):
    """It would hide what the server said before. Pauses are drawn, so that many calls are looked at."""
    away = Away()
    monkeypatch.setattr(time, "monotonic", lambda: away.now)
    monkeypatch.setattr(time, "sleep", away.sleep)
    client = RetrievalClient(away, Target("dnc"), timeout=0.5)
    for _ in range(200):
        away.now = 0.0
        with pytest.raises(RetrievalError, match="UNAVAILABLE: away"):
            client.recommend([["i1"]])
        assert away.now < 0.5
    assert min(away.left) >= 0.05 - 1e-9
    assert max(away.left) <= 0.5 + 1e-9
    assert len(away.left) > 2 * 200
