"""Logs whose every row is sound and whose shape is odd: windows of them, or a clear error, never a traceback."""

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from beam_jobs import groups, ingest, statistics, statistics_steps, windows
from beam_jobs.features.feature_tables import read_feature_table
from contracts.artifact import Manifest
from contracts.config import FeatureTable
from contracts.layout import Workdir
from tests.beam_jobs.helpers import HEADER, make_config, read_events, write_log

TIME = {"split": {"protocol": "time"}}
ONE_GROUP = {"groups": {"num_groups": 1}}


def lines(rows: int, users: int = 5, items: int = 8, step: int = 60) -> list[str]:
    return [f"u{row % users},i{row * 7 % items},{1_700_000_000 + row * step}" for row in range(rows)]


def run(folder: Path, rows: list[str], sections: dict[str, Any]) -> Manifest:
    config = make_config(write_log(folder / "log.csv", rows), **sections)
    workdir = Workdir(folder / "run")
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    return windows.run(config, workdir, "f")


# name -> (rows, config, positives to train on). Each user's items count once: by leave-one-out two of them are held
# out, and the first one is context only.
ODD: dict[str, tuple[list[str], dict[str, Any], int]] = {
    "one moment": (lines(100, step=0), {}, 25),  # 5 users own the 8 items once each, and 8 - 3 of them are targets
    "one user": (lines(100, users=1), {}, 5),
    "every row twice": ([row for row in lines(100) for _ in range(2)], {}, 25),
    "as many items as rows": (lines(100, items=100), {}, 85),
    "more buckets than users": (lines(100, users=2), {"data": {"num_buckets": 20}}, 2),
    "dimensions beyond the items": (lines(100, items=4), {"groups": {"embedding_dim": 64}}, 5),
    "one very long history": (
        [f"u,i{row % 50},{1_700_000_000 + row}" for row in range(150_000)] + lines(100),
        TIME,
        49 + 5 * 7,
    ),
    "a user who owns all items": (lines(400, users=3, items=4), {}, 3),
    "items that training never saw": (lines(100, items=100), {**TIME, "groups": {"num_groups": 10}}, 74),  # 79 of 100
}


@pytest.mark.parametrize("name", ODD)
def test_odd_logs_become_windows(name: str, tmp_path: Path) -> None:
    rows, sections, positives = ODD[name]
    assert run(tmp_path, rows, sections).counts["train_positives"] == positives


def test_many_rows_of_long_ids_are_all_read(tmp_path: Path) -> None:
    # From some 8,192 rows with cells of more than ten bytes on, pyarrow reads by another path.
    rows = [f"{'customer-' * 6}{row % 500},{'article-' * 4}{row % 100},{1_700_000_000 + row}" for row in range(20_000)]
    config = make_config(write_log(tmp_path / "log.csv", rows))
    counts = ingest.run(config, Workdir(tmp_path / "run"), "f").counts
    assert (counts["rows"], counts["events"], counts["dead_letters"], counts["users"]) == (20_000, 20_000, 0, 500)


# name -> (rows, config, what the message must hold)
REFUSED: dict[str, tuple[list[str], dict[str, Any], str]] = {
    "more groups than items": (lines(100, items=5), {"groups": {"num_groups": 9}}, "groups.num_groups=9 .* the log, 5"),
    "more groups than one item": (lines(100, items=1), {}, "items in the log, 1: set groups.num_groups to 1"),
    "one row": (lines(1), ONE_GROUP, "no user in .* has two items of level 'interaction' to train on"),
    "one row, many times": (lines(1) * 100, ONE_GROUP, "no user in .* has two items"),
    "one item": (lines(100, items=1), ONE_GROUP, "no user in .* has two items"),
    "one user, one item": (lines(100, users=1, items=1), ONE_GROUP, "no user in .* has two items"),
    "nobody comes back": (lines(100, users=100), {}, "no user in .* has two items"),
    "users of the test split alone": (lines(100, users=100), TIME, "no user in .* has two items"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_on_is_refused(name: str, tmp_path: Path) -> None:
    rows, sections, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run(tmp_path, rows, sections)


def test_more_text_of_ids_than_an_array_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_steps, "_MOST_ID_BYTES", 10)  # u0 to u4 are as much, i0 to i7 are 16
    with pytest.raises(ValueError, match="item_id: the 8 distinct ids are 16 bytes of text, more than the limit of 10"):
        run(tmp_path, lines(100), ONE_GROUP)


def test_a_split_that_measures_nothing_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert run(tmp_path, lines(100, users=1), TIME).counts["test_users"] == 0  # the one user knows all items
    said = [record.getMessage() for record in caplog.records if "nothing can be measured" in record.getMessage()]
    assert len(said) == 2 and "validation" in said[0] and "test" in said[1]


def test_rare_positives_are_no_items_that_live_shortly(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As of purchases in a log of views: what was never bought in training was seen in it often enough."""
    rows = [
        f"u{row // 5},i{(row + seen) % 50},{row},{'view' if seen else 'buy'}" for row in range(50) for seen in (5, 0)
    ]
    feedback = {"levels": ["view", "buy"], "target_level": "buy"}
    log = write_log(tmp_path / "log.csv", rows, header="user_id,item_id,timestamp,what")
    data = {"events": str(log), "num_buckets": 3, "columns": {"event": "what"}, "feedback": feedback}
    for job in (ingest, statistics, groups, windows):
        job.run(make_config(log, data=data), Workdir(tmp_path / "run"), "f")
    assert "items without positives of level 'buy' or above in training" in caplog.text
    assert "are few for" in caplog.text and "are that short-lived" not in caplog.text


@pytest.mark.parametrize(("target", "said"), [(None, "rated"), ("liked", "liked")])
def test_which_levels_are_positives_is_said(
    target: str | None, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a target_level, what was rated 1 is one as well as what was rated 5."""
    rows = [f"{row},{place % 5 + 1}" for place, row in enumerate(lines(100))]
    feedback = {"levels": ["rated", "liked"], "rating_thresholds": {"liked": 4}, "target_level": target}
    log = write_log(tmp_path / "log.csv", rows, header="user_id,item_id,timestamp,stars")
    data = {"events": str(log), "num_buckets": 3, "columns": {"rating": "stars"}, "feedback": feedback}
    with caplog.at_level("INFO"):
        ingest.run(make_config(log, data=data), Workdir(tmp_path / "run"), "f")
    assert f"ingest: events by level: 60 rated, 40 liked; positives are {said!r} and above" in caplog.text


def test_side_features_that_tell_nothing_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids that pandas has made floats, and prices with a currency."""
    (tmp_path / "items.csv").write_text("id,price\n" + "".join(f"{item}.0,$9\n" for item in range(8)) + "1.0,$8\n")
    features = [{"name": "price", "kind": "numeric"}]
    table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": features}
    rows = [row.replace(",i", ",") for row in lines(100)]
    log = write_log(tmp_path / "log.csv", rows)
    config = make_config(log, data={"events": str(log), "num_buckets": 3, "item_features": table})
    for job in (ingest, statistics):
        job.run(config, Workdir(tmp_path / "run"), "f")
    said = "\n".join(record.getMessage() for record in caplog.records)
    assert "items.csv: 8; left out or repaired: 1 repeated_ids" in said
    assert "none of the 8 rows of " in said and "has a value of kind numeric in column 'price'" in said
    assert "none of the 8 ids of data.item_features" in said and "it has '0.0', and the log '" in said


def test_ticks_of_dot_net_are_told_from_nanoseconds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """100 ns since the year 1, which as nanoseconds since 1970 are of 1990; the remedy makes microseconds of them."""
    first = (datetime(2024, 1, 31) - datetime(1, 1, 1)) // timedelta(microseconds=1) * 10
    ticks = [first + hour * 36_000_000_000 for hour in range(60)]
    for name, times in (("ticks", ticks), ("remedy", [(tick - 621_355_968_000_000_000) // 10 for tick in ticks])):
        caplog.clear()
        log = write_log(tmp_path / f"{name}.csv", [f"u{row % 9},i{row},{time}" for row, time in enumerate(times)])
        found = ingest.run(make_config(log), Workdir(tmp_path / name), "f")
        said = "60 are before 1991 or in the" in caplog.text and "(ticks - 621355968000000000) / 10" in caplog.text
        assert said == (name == "ticks")
    assert found.details["first_event"] == datetime(2024, 1, 31, tzinfo=timezone.utc).timestamp() * 1e6


@pytest.mark.parametrize(("order", "said"), [("item", True), ("user", False), ("nothing", False)])
def test_rows_sorted_by_item_whose_numbers_are_their_times_are_told(
    order: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of 40 users has 15 of 30 items. Sorted by user, each history is in the order of its rows."""
    pairs = [(f"u{user}", f"i{(user * 7 + place) % 30}") for user in range(40) for place in range(15)]
    np.random.default_rng(0).shuffle(pairs)
    pairs.sort(key={"user": lambda pair: pair[0], "item": lambda pair: pair[1], "nothing": lambda pair: 0}[order])
    rows = [f"{user},{item},{number}" for number, (user, item) in enumerate(pairs)]
    config, workdir = make_config(write_log(tmp_path / "log.csv", rows)), Workdir(tmp_path / "run")
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    assert ("each item's events end before the next item's begin" in caplog.text) == said


@pytest.mark.parametrize(
    ("order", "id_of", "time", "said"),
    [
        ("item", "{:03}", "row", True),  # ISBNs, as of Book-Crossing
        ("item", "{}", "row", True),  # numbers: 9 before 10, which as text is after it
        ("item", "i{}", "row", True),
        ("item", "{}", "same", False),  # the remedy
        ("nothing", "{:03}", "row", False),
        ("nearly", "{:03}", "row", False),  # every tenth step leads down, as of new items met soon after they appear
    ],
)
def test_rows_sorted_by_user_and_item_whose_numbers_are_their_times_are_told(
    order: str, id_of: str, time: str, said: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of 30 users has 20 of 120 items, and no item's events end before the next one's begin."""
    random, rows = np.random.default_rng(0), []
    for user in range(30):
        items = random.choice(120, 20, replace=False)
        if order != "nothing":
            items.sort()
        if order == "nearly":
            items[[4, 5, 14, 15]] = items[[5, 4, 15, 14]]
        rows += [f"u{user},{id_of.format(item)}," for item in items]
    rows = [f"{row}{number if time == 'row' else 1}" for number, row in enumerate(rows)]
    config, workdir = make_config(write_log(tmp_path / "log.csv", rows)), Workdir(tmp_path / "run")
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    assert ("have a higher item id" in caplog.text) == said
    assert "each item's events end" not in caplog.text


def test_an_id_that_stands_for_none_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [f"u{row % 9},{item},{row}" for row, item in enumerate([r"\N", "a", "nullable"] * 9)]
    config, workdir = make_config(write_log(tmp_path / "log.csv", rows)), Workdir(tmp_path / "run")
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    assert r"item_id is \N in some rows" in caplog.text
    assert "user_id is" not in caplog.text


def test_one_time_for_all_says_nothing_of_the_items(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, workdir = make_config(write_log(tmp_path / "log.csv", lines(300, items=40, step=0))), Workdir(tmp_path)
    for job in (ingest, statistics):
        job.run(config, workdir, "f")
    assert "each item's events end" not in caplog.text


@pytest.mark.parametrize("cell", [r"\N", "NULL", "null", "NaN", "nan", "None", "NA", "N/A", "<NA>", "?", " ", ""])
def test_a_flag_or_rating_that_says_that_there_is_none_is_absent(cell: str, tmp_path: Path) -> None:
    """As MySQL, Hive, R, pandas and Python write it; of a feature table's numbers it is the same."""
    cells = [f"u,a,1,{cell},5", f"u,b,2,1,{cell}", f"u,c,3,{cell},{cell}"]
    write_log(tmp_path / "log.csv", cells, f"{HEADER},read,stars")
    feedback = {"levels": ["shelved", "read", "liked"], "flags": {"read": "read"}, "rating_thresholds": {"liked": 4}}
    data = {"events": str(tmp_path / "log.csv"), "columns": {"rating": "stars"}, "feedback": feedback}
    counts = ingest.run(make_config("x", data=data), Workdir(tmp_path / "run"), "f").counts
    levels = {event["item_id"]: event["feedback_level"] for event in read_events(Workdir(tmp_path / "run"))}
    assert (levels, counts["dead_letters"]) == ({"a": 2, "b": 1, "c": 0}, 0)
    (tmp_path / "items.csv").write_text(f"id,price\na,{cell}\nb,5\n")
    features = [{"name": "price", "kind": "numeric"}]
    table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": features}
    found = read_feature_table(FeatureTable.model_validate(table), "data.item_features")
    assert found.counts["malformed_price"] == 0 and np.isnan(found.columns["price"][0].as_py())
