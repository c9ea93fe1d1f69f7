"""A long replay is kept in parts: what was measured once is not measured again, and what stopped goes on."""

from pathlib import Path

import pytest

from benchmarks.retrain_replay import Parts, Stopped


def test_a_stopped_replay_goes_on_and_measures_nothing_twice(tmp_path: Path) -> None:
    measured: list[str] = []

    def replay(at_most: int | None) -> list[dict]:
        parts = Parts(tmp_path, at_most)
        return [parts.done(name, lambda name=name: measured.append(name) or {"day": name}) for name in "abc"]

    with pytest.raises(Stopped):
        replay(at_most=2)
    assert measured == ["a", "b"]
    assert replay(at_most=1) == [{"day": "a"}, {"day": "b"}, {"day": "c"}]
    assert replay(at_most=None)[2] == {"day": "c"}
    assert measured == ["a", "b", "c"]


def test_a_part_that_failed_is_measured_again(tmp_path: Path) -> None:
    def fail() -> dict:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        Parts(tmp_path, None).done("day", fail)
    assert Parts(tmp_path, None).done("day", lambda: {"seconds": 1.0}) == {"seconds": 1.0}


def test_parts_of_another_replay_are_not_mixed_in(tmp_path: Path) -> None:
    Parts(tmp_path, None).require_same({"users": "16000"})
    Parts(tmp_path, None).require_same({"users": "16000"})
    with pytest.raises(SystemExit, match="give this one its own --work"):
        Parts(tmp_path, None).require_same({"users": "4000"})
