"""What a user was shown and did not take, as context of the history: by hand, and against brute force."""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from beam_jobs import groups, ingest, statistics, windows
from beam_jobs.buckets.bucket_events import BucketEvents
from beam_jobs.records.history_events import history_events, latest_context
from beam_jobs.records.window_records import evaluation_records
from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.config.data import FeedbackConfig
from contracts.layout import Workdir
from contracts.names import MOST_CONTEXT, EvaluationField, Split
from tests.beam_jobs.helpers import make_config, read_events
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged
from trainer.input.training_windows import TrainingWindows

LEVELS = ("seen", "opened", "liked", "bought")
TARGET = 2


def bucket(users: np.ndarray, items: np.ndarray, levels: np.ndarray, splits: np.ndarray) -> BucketEvents:
    return BucketEvents(users, items, np.arange(len(users)), levels, splits, np.arange(len(users)), np.arange(9))


@given(
    events=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(0, 3)), max_size=60),
    history_level=st.sampled_from([None, "opened", "liked"]),
)
def test_context_is_the_first_event_below_of_an_item_that_its_user_never_takes(
    events: list[tuple[int, int, int]], history_level: str | None
) -> None:
    events = sorted(events, key=lambda event: event[0])
    users, items, levels = np.array(events, int).reshape(-1, 3).T
    feedback = FeedbackConfig(levels=LEVELS, target_level=LEVELS[TARGET], history_level=history_level)
    found = history_events(bucket(users, items, levels, np.zeros_like(users)), feedback, 4)
    lowest = 0 if history_level is None else LEVELS.index(history_level)
    taken = {(user, item) for user, item, level in events if level >= TARGET}
    expected, met = [], set()
    for place, (user, item, level) in enumerate(events):
        is_context = lowest <= level < TARGET and (user, item) not in taken | met
        if is_context:
            met.add((user, item))
        if is_context or level >= TARGET:
            expected.append(place)
    assert found.times.tolist() == expected


@given(events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=60))
def test_the_latest_context_before_each_positive_stays(events: list[tuple[int, int]]) -> None:
    events = sorted(events, key=lambda event: event[0])
    users, levels = np.array(events, int).reshape(-1, 2).T
    found = latest_context(bucket(users, users, levels, users), TARGET)
    expected = []
    for place, (user, level) in enumerate(events):
        following = [level for other, level in events[place + 1 :] if other == user]
        run = list(itertools.takewhile(lambda level: level < TARGET, following))
        if level >= TARGET or len(run) < MOST_CONTEXT:
            expected.append(place)
    assert found.times.tolist() == expected


def test_evaluation_histories_hold_context_and_nothing_else_changes() -> None:
    # user 0: liked 5, seen 3, liked 4; validation: liked 7, seen 8; test: liked 6
    # user 1: seen 2 alone; validation: liked 1. They have no positive before, with context or without.
    users = np.array([0] * 6 + [1] * 2)
    items = np.array([5, 3, 4, 7, 8, 6, 2, 1])
    levels = np.array([2, 0, 2, 2, 1, 3, 0, 2])
    splits = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    events = bucket(users, items, levels, splits)
    found = {
        split: evaluation_records(events, np.ones(8, bool), TARGET, split, 4, drop_repeats=True)
        for split in (Split.VALIDATION, Split.TEST)
    }
    validation, test = (
        {name: ragged.values.tolist() for name, ragged in records.features.items()} for records in found.values()
    )
    assert validation == {
        EvaluationField.USER_INDEX: [0],
        EvaluationField.HISTORY_ITEM_INDEX: [5, 3, 4],
        EvaluationField.HISTORY_CONTEXT: [1],
        EvaluationField.SEEN_ITEM_INDEX: [5, 4],
        EvaluationField.TARGET_ITEM_INDEX: [7],
        EvaluationField.REQUEST: [3],
    }
    # The four newest of five.
    assert test[EvaluationField.HISTORY_ITEM_INDEX] == [3, 4, 7, 8]
    assert test[EvaluationField.HISTORY_CONTEXT] == [0, 3]
    assert test[EvaluationField.SEEN_ITEM_INDEX] == [5, 4, 7]
    assert found[Split.VALIDATION].users_without_history == 1


def levelled_log(path: Path) -> Path:
    """Users who like some of what they see, where everything liked was seen a moment before."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(80):
        for place, item in enumerate(rng.permutation(40)[:20].tolist()):
            rows.append((f"u{user}", f"i{item}", 1_700_000_000 + 100 * place, "seen"))
            if rng.random() < 0.5:
                rows.append((f"u{user}", f"i{item}", 1_700_000_001 + 100 * place, "liked"))
    names = ("user_id", "item_id", "timestamp", "event")
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    return path


def run_jobs(
    log: Path, folder: Path, history_level: str | None, target_level: str = "liked", repeats: str = "drop"
) -> tuple[Config, Workdir]:
    feedback = {"levels": ["seen", "liked"], "target_level": target_level, "history_level": history_level}
    data = {"feedback": feedback, "columns": {"event": "event"}}
    config, workdir = make_config(log, data=data, windows={"length": 8, "repeats": repeats}), Workdir(folder)
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "f")
    return config, workdir


def test_the_trainer_reads_context_and_predicts_the_same_positives(tmp_path: Path) -> None:
    log = levelled_log(tmp_path / "log.parquet")
    (_, plain), (_, mixed) = (run_jobs(log, tmp_path / f"{level}", level) for level in ("liked", None))
    targets, of_plain = predicted(mixed), predicted(plain)
    assert max(targets.values()) == max(of_plain.values()) == 1
    # What its user liked first has something before it only where something was shown before.
    assert of_plain.keys() < targets.keys()
    first = len(targets) - len(of_plain)
    assert 0 < first <= len({user for user, _ in targets})
    longest = 0
    for batch in TrainingWindows(mixed, 1000, seed=0).epoch(0):
        is_context = (batch.item_index > 0) & (batch.feedback_level == 0)
        assert not (batch.is_target & is_context).any()
        longest = max(longest, *(longest_run(row) for row in is_context.tolist()))
    assert longest == MOST_CONTEXT
    for split in (Split.VALIDATION, Split.TEST):
        mine, theirs = EvaluationUsers.load(mixed, split), EvaluationUsers.load(plain, split)
        for name in ("seen", "targets"):
            np.testing.assert_array_equal(getattr(mine, name).values, getattr(theirs, name).values)
        assert (theirs.history.values > 0).all()
        assert max(longest_run((row < 0).tolist()) for row in rows_of(mine.history)) == MOST_CONTEXT
        # Nobody is shown what they are about to take.
        shown = np.abs(mine.history.values) + 1000 * mine.history.row_ids()
        assert not np.isin(shown, mine.targets.values + 1000 * mine.targets.row_ids()).any()


@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_what_is_taken_in_a_later_split_is_context_before(repeats: str, tmp_path: Path) -> None:
    """Liked a, seen x, liked b; validation: liked c; test: liked x, shown once more a moment before."""
    named = [("a", "liked"), ("x", "seen"), ("b", "liked"), ("c", "liked"), ("x", "seen"), ("x", "liked")]
    events = [(f"u{user}", f"{name}{user % 4}", place, level) for user in range(20) for place, (name, level) in
              enumerate(named)]  # fmt: skip
    names = ("user_id", "item_id", "timestamp", "event")
    log = tmp_path / "log.parquet"
    pq.write_table(pa.table(dict(zip(names, map(list, zip(*events, strict=True)), strict=True))), log)
    _, workdir = run_jobs(log, tmp_path / "run", None, repeats=repeats)
    item_ids = ["", *pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()]

    def letters(items: np.ndarray) -> str:
        return "".join(item_ids[abs(item)][:1] for item in items)

    windows = [row for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0) for row in batch.item_index]
    assert [letters(row) for row in windows] == ["axb"] * 20
    of_split = {split: EvaluationUsers.load(workdir, split) for split in (Split.VALIDATION, Split.TEST)}
    found = {split: {letters(row) for row in rows_of(users.history)} for split, users in of_split.items()}
    assert found == {Split.VALIDATION: {"axb"}, Split.TEST: {"abc"}}


@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_what_was_taken_twice_is_one_earlier_item(repeats: str, tmp_path: Path) -> None:
    """Liking what was only seen before takes no second place among the earlier items."""
    log = levelled_log(tmp_path / "log.parquet")
    _, workdir = run_jobs(log, tmp_path / "run", None, target_level="seen", repeats=repeats)
    most = 0
    for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0):
        for row in batch.earlier_items:
            items = row[row > 0]
            assert len(items) == len(set(items))
            most = max(most, len(items))
    assert most > 8, "no window follows two others"


@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_liking_what_was_seen_is_no_target_and_where_it_is_dropped_what_was_seen_is_liked(
    repeats: str, tmp_path: Path
) -> None:
    _, workdir = run_jobs(levelled_log(tmp_path / "l.parquet"), tmp_path / "run", None, "seen", repeats)
    assert set(predicted(workdir).values()) == {1}
    of_user: dict[str, list[tuple[str, int]]] = {}
    for event in read_events(workdir):
        if event["split"] == Split.TRAIN:
            of_user.setdefault(event["user_id"], []).append((event["item_id"], event["feedback_level"]))
    if repeats == "drop":
        of_user = {user: list(merged(events)) for user, events in of_user.items()}
    item_ids = ["", *pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()]
    user_ids = ["", *pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()]
    num_liked = 0
    for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0):
        for user, items, levels in zip(batch.user_index, batch.item_index, batch.feedback_level, strict=True):
            found = [(item_ids[item], level) for item, level in zip(items, levels, strict=True) if item]
            mine = of_user[user_ids[user]]
            assert found in [mine[start : start + len(found)] for start in range(len(mine))]
            num_liked += sum(level for _, level in found)
    assert num_liked > 100
    assert read_manifest(workdir.windows.path).counts["train_repeats"] == 0  # nobody comes back to what they had


def merged(events: list[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Each item once, where it was first, with its highest level."""
    for item in dict.fromkeys(item for item, _ in events):
        yield item, max(level for other, level in events if other == item)


def longest_run(marks: list[bool]) -> int:
    return max((len(list(run)) for marked, run in itertools.groupby(marks) if marked), default=0)


def rows_of(ragged: Ragged) -> list[np.ndarray]:
    return np.split(ragged.values, ragged.splits[1:-1])


def predicted(workdir: Workdir) -> Counter[tuple[int, int]]:
    """User and item of each target that has something before it."""
    found: Counter[tuple[int, int]] = Counter()
    for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0):
        user = np.broadcast_to(batch.user_index[:, None], batch.item_index.shape)
        later = batch.is_target & (np.arange(batch.item_index.shape[1]) > 0)
        found.update(zip(user[later].tolist(), batch.item_index[later].tolist(), strict=True))
    return found
