"""A user's history out of the events, with context and without."""

from pathlib import Path

import pytest

from beam_jobs import ingest
from contracts.layout import Workdir
from pipeline.histories import example_user, history_of
from tests.beam_jobs.helpers import make_config, write_log

LINES = [
    "anna,i1,1700000000,seen",
    "anna,i2,1700000100,liked",
    "anna,i3,1700000200,seen",
    "anna,i4,1700000300,liked",
    "bert,i1,1700000000,seen",
    "bert,i2,1700000100,seen",
    "bert,i3,1700000200,seen",
]


@pytest.mark.parametrize(
    ("history_level", "items", "marks"),
    [("liked", ["i2", "i4"], [False, False]), (None, ["i1", "i2", "i3", "i4"], [True, False, True, False])],
)
def test_a_history_holds_what_the_model_reads(
    history_level: str | None, items: list[str], marks: list[bool], tmp_path: Path
) -> None:
    log = write_log(tmp_path / "log.csv", LINES, "user_id,item_id,timestamp,event")
    feedback = {"levels": ["seen", "liked"], "target_level": "liked", "history_level": history_level}
    config = make_config(log, data={"feedback": feedback, "columns": {"event": "event"}})
    workdir = Workdir(tmp_path / "run")
    ingest.run(config, workdir, "f")
    assert history_of(config, workdir, "anna") == (items, marks)
    assert history_of(config, workdir, "anna").positives == ["i2", "i4"]
    assert example_user(config, workdir) == "anna"  # who has the most positives
    if history_level == "liked":
        with pytest.raises(ValueError, match="'bert' has no event of level 'liked'"):
            history_of(config, workdir, "bert")


@pytest.mark.parametrize(("counts", "shown"), [((11, 12, 13), "b"), ((5, 11, 11), "b"), ((1, 0, 0), "a")])
def test_the_example_is_the_first_user_of_enough_positives_else_the_first_of_most(
    counts: tuple[int, ...], shown: str, tmp_path: Path
) -> None:
    users = dict(zip("abc", counts, strict=True))
    lines = [f"{user},i{place},{place},liked" for user, number in users.items() for place in range(number)]
    lines += [f"{user},s{place},{place},seen" for user in users for place in range(20)]  # no positives
    log = write_log(tmp_path / "log.csv", lines, "user_id,item_id,timestamp,event")
    feedback = {"levels": ["seen", "liked"], "target_level": "liked"}
    config = make_config(log, data={"num_buckets": 1, "feedback": feedback, "columns": {"event": "event"}})
    ingest.run(config, Workdir(tmp_path / "run"), "f")
    assert example_user(config, Workdir(tmp_path / "run")) == shown


def test_an_item_that_comes_back_is_one_item(tmp_path: Path) -> None:
    """Messages to two friends, and a user with fewer events and more items."""
    lines = [f"talker,i{place % 2},{place}" for place in range(20)]
    lines += [f"wanderer,i{place},{place}" for place in range(3)]
    config = make_config(write_log(tmp_path / "log.csv", lines), data={"num_buckets": 1})
    ingest.run(config, Workdir(tmp_path / "run"), "f")
    assert history_of(config, Workdir(tmp_path / "run"), "talker").positives == ["i0", "i1"]
    assert example_user(config, Workdir(tmp_path / "run")) == "wanderer"
