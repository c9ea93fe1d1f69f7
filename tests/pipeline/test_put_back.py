"""A file, or a setting, that is put back replaces what was pushed for the same span meanwhile."""

import shutil
from pathlib import Path

import pytest

from contracts.serving_labels import ServingLabels, read_labels
from pipeline.retraining import publish as publishing
from pipeline.retraining.publish import set_stable
from pipeline.retraining.records import all_records
from tests.pipeline.retrain_log import DAYS
from tests.pipeline.stubbed_calls import StubbedCalls

DAY = ["--span", DAYS[2]]
OTHER = [*DAY, "--set", "training.loss.z_weight=0.3"]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StubbedCalls:
    return StubbedCalls(tmp_path, monkeypatch)


def test_a_file_that_is_put_back_is_trained_on_again_and_once(calls: StubbedCalls, tmp_path: Path) -> None:
    path = tmp_path / "log" / DAYS[2] / "events.parquet"
    good, bad = path.with_suffix(".good"), path.with_suffix(".bad")
    bad.write_bytes(b"a part of it")
    assert calls.version(*DAY) == 1
    for version, (away, back) in enumerate([(good, bad), (bad, good), (good, bad), (bad, good)], start=2):
        path.rename(away)
        back.rename(path)
        # What was stopped, or killed, goes on.
        assert [calls.version(*DAY, *to) for to in (["--to", "train"], [], [])] == ["stopped", version, "nothing_new"]
        assert calls.ran[-1] == calls.ran[-2]
        assert read_labels(calls.store.servable("dnc")) == ServingLabels(stable=version)
    assert [record.version for record in all_records(calls.store)] == [1, 2, 3, 4, 5]
    shutil.rmtree(tmp_path / "log" / DAYS[0])  # rotated
    assert calls.version(*DAY) == "nothing_new"
    assert calls.version("--span", DAYS[3]) == 6


def test_a_setting_that_is_put_back_is_trained_with_again(calls: StubbedCalls) -> None:
    assert [calls.version(*words) for words in (DAY, OTHER, DAY, DAY, OTHER)] == [1, 2, 3, "nothing_new", 4]


def test_a_rollback_makes_nothing_new(calls: StubbedCalls) -> None:
    assert [calls.version(*words) for words in (DAY, OTHER)] == [1, 2]
    set_stable(calls.store, 1)
    assert calls.version(*OTHER) == "nothing_new"


def test_a_run_of_what_was_put_back_that_died_in_its_push_is_finished(
    calls: StubbedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise OSError("No space left on device")

    assert [calls.version(*words) for words in (DAY, OTHER)] == [1, 2]
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_appear", die)
        assert calls.version(*DAY) == "failed"
    assert [calls.version(*DAY) for _ in range(2)] == [3, "nothing_new"]
    assert len(calls.ran) == 3
