"""What is said about windows: of what is not learnt from, and of who is not measured."""

from pathlib import Path

import pytest

from beam_jobs import groups, ingest, statistics, windows
from contracts.layout import Workdir
from tests.beam_jobs.helpers import make_config, write_log


@pytest.mark.parametrize(("lives", "are_said"), [(100, True), (400, False)])
def test_targets_that_training_never_saw_are_said(
    lives: int, are_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of news, each of which is read on one day; `lives`: events after which items are others."""
    rows = [f"u{row % 20},{row // lives}-{row * 7 % 30},{1_700_000_000 + row}" for row in range(400)]
    log = write_log(tmp_path / "log.csv", rows)
    split = {"protocol": "time", "validation_start": 1_700_000_000 + 300, "test_start": 1_700_000_000 + 360}
    workdir, config = Workdir(tmp_path / "run"), make_config(log, split=split)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    counts = windows.run(config, workdir, "f").counts
    items = [row.split(",")[:2] for row in rows]
    trained = {item for _, item in items[:300]}
    validation = {(user, item) for user, item in items[300:360]} - {(user, item) for user, item in items[:300]}
    cold = sum(item not in trained for _, item in validation)
    assert (counts["validation_targets"], counts["validation_cold_targets"]) == (len(validation), cold)
    said = f"{cold} of {len(validation)} targets in the validation split are items without training events"
    assert (said in caplog.text, "without training events" in caplog.text) == (are_said, are_said)
    assert ("nothing tells where they belong, as data.item_features is not set" in caplog.text) == are_said


@pytest.mark.parametrize(("stay", "is_said"), [(2, True), (9, True), (11, False), (20, False)])
def test_users_who_come_once_are_said(
    stay: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As sessions do, of which nearly none reaches from one part of a log into the next; here `stay` of 20 do."""
    rows = [
        f"{'u' if user < stay else f'{part}-'}{user},i{part * 7 + user + place},{part * 100 + place}"
        for part in range(3)
        for user in range(20)
        for place in range(3)
    ]
    split = {"protocol": "time", "validation_start": 100, "test_start": 200}
    config = make_config(write_log(tmp_path / "log.csv", rows), split=split)
    for job in (ingest, statistics, groups, windows):
        job.run(config, Workdir(tmp_path / "run"), "f")
    for part in ("validation", "test"):
        said = f"{20 - stay} of 20 users in the {part} split have no event before it, so {stay} are measured"
        assert (said in caplog.text) == is_said
    assert ("as sessions do, set split.new_users=last_item" in caplog.text) == is_said
    few = f"{stay} users are measured on the test split, too few"
    assert few in caplog.text


def test_with_new_users_everybody_is_measured(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [
        f"{part}-{user},i{part * 7 + user + place},{part * 100 + place}"
        for part in range(3)
        for user in range(60)
        for place in range(3)
    ]
    split = {"protocol": "time", "validation_start": 100, "test_start": 200, "new_users": "last_item"}
    config = make_config(write_log(tmp_path / "log.csv", rows), split=split)
    for job in (ingest, statistics, groups):
        job.run(config, Workdir(tmp_path / "run"), "f")
    counts = windows.run(config, Workdir(tmp_path / "run"), "f").counts
    assert [counts[f"{part}_{what}"] for part in ("validation", "test") for what in ("users", "targets")] == [60] * 4
    assert "no event before it" not in caplog.text
    assert "too few" not in caplog.text


@pytest.mark.parametrize(("longer", "is_said"), [(4, True), (12, False)])
def test_short_histories_are_said(longer: int, is_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of 40 users, all but some have one item: nothing is learnt from it, and the others alone are measured."""
    rows = [
        f"u{user},i{(user + place) % 9},{place}" for user in range(40) for place in range(4 if user < longer else 1)
    ]
    config = make_config(write_log(tmp_path / "log.csv", rows))
    for job in (ingest, statistics, groups):
        job.run(config, Workdir(tmp_path / "run"), "f")
    # Each of the others has two of four items to train on; the first of these is history.
    counts = windows.run(config, Workdir(tmp_path / "run"), "f").counts
    assert (counts["lone_positives"], counts["train_positives"]) == (40 - longer, longer)
    assert counts["users_without_targets"] == 40 - longer
    said = f"of 40 positives in training, {40 - longer} are the only event of their user"
    assert (said in caplog.text) == (40 - longer > 20)
    assert (f"{longer} of 40 users are measured on the test split" in caplog.text) == is_said


@pytest.mark.parametrize(("again", "are_said"), [(0, False), (1, False), (8, True)])
def test_repeats_that_nothing_learns_from_are_said(
    again: int, are_said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As of groceries; by leave_one_out every user has new items to be measured on, whatever the others are."""
    steps = [0] * again + list(range(9))
    lines = [f"u{user},{(user * 3 + step) % 30}," for user in range(20) for step in steps]
    log = write_log(tmp_path / "log.csv", [f"{line}{1_700_000_000 + row}" for row, line in enumerate(lines)])
    workdir, config = Workdir(tmp_path / "run"), make_config(log)
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    counts = windows.run(config, workdir, "f").counts
    # Of nine items the last two are held out, and the first one is context.
    assert (counts["train_repeats"], counts["train_positives"]) == (20 * again, 20 * 6)
    assert (f"{20 * again} training events are of items that their user had before" in caplog.text) == are_said
