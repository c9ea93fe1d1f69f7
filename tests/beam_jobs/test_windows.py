"""Windows by hand, records read back by TensorFlow, reruns byte by byte."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_jobs import groups, ingest, statistics, windows
from beam_jobs.buckets.bucket_events import BucketEvents
from beam_jobs.records.example_encoder import RaggedColumn, encode_examples
from beam_jobs.records.window_records import evaluation_records, user_blocks, window_bounds
from contracts.artifact import read_manifest
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import EvaluationField, Split, WindowField
from tests.beam_jobs.helpers import community_log, make_config, read_events
from trainer.input.training_windows import TrainingWindows


def _parse(records: bytes | Path, path: Path) -> list[dict[str, list[int]]]:
    """Reads with TensorFlow, which checks every CRC, and Google's own parser."""
    if isinstance(records, bytes):
        path.write_bytes(records)
        dataset = tf.data.TFRecordDataset(str(path))
    else:
        dataset = tf.data.TFRecordDataset(str(records), compression_type="GZIP")
    parsed = []
    for record in dataset.as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        parsed.append({name: list(feature.int64_list.value) for name, feature in features.items()})
    return parsed


@pytest.mark.parametrize("largest", [0, 1, 127, 128, 16_383, 16_384, 2**21 - 1, 2**21, 2**31, 2**56 - 1, 2**63 - 1])
def test_encoder_against_tensorflows_parsers(largest: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 40, 200)
    edges = np.array([0, 1, 127, 128, 16_383, 16_384, largest])
    values = rng.choice(np.append(edges[edges <= largest], -largest), lengths.sum())
    scalars = rng.integers(0, 2**40, 200)
    encoded = encode_examples({"a": RaggedColumn(values, lengths), "second": RaggedColumn.scalars(scalars)})
    rows = np.split(values, np.cumsum(lengths)[:-1])
    expected = [{"a": row.tolist(), "second": [scalar]} for row, scalar in zip(rows, scalars.tolist(), strict=True)]
    assert _parse(encoded, tmp_path / "x") == expected
    # The trainer's: TensorFlow reads Examples by a parser of its own.
    feature = tf.io.RaggedFeature(tf.int64)
    for batch in tf.data.TFRecordDataset(str(tmp_path / "x")).batch(200):
        parsed = tf.io.parse_example(batch, {"a": feature, "second": feature})
        assert parsed["a"].to_list() == [row["a"] for row in expected]
        assert parsed["second"].to_list() == [row["second"] for row in expected]


def test_encoder_writes_the_same_bytes_each_time() -> None:
    features = {name: RaggedColumn.scalars(np.arange(50) + place) for place, name in enumerate("abcdefgh")}
    assert len({encode_examples(features) for _ in range(5)}) == 1


def test_encoder_of_no_rows() -> None:
    assert encode_examples({"a": RaggedColumn(np.zeros(0, np.int64), np.zeros(0, np.int64))}) == b""


def test_encoder_refuses_features_of_different_numbers_of_rows() -> None:
    with pytest.raises(ValueError, match="shorter"):
        encode_examples({"a": RaggedColumn.scalars(np.arange(2)), "b": RaggedColumn.scalars(np.arange(1))})


def test_bounds_by_hand() -> None:
    # Users with 6, 1, 2 and 0 events, 2 targets a window. User 0: events 0..5, targets 1..5, from the end
    # (4, 5), (2, 3), (1): contexts 3, 1, 0. User 1 (event 6) has none. User 2 (events 7, 8): target 8.
    bounds = window_bounds(np.array([6, 1, 2, 0]), 2)
    assert bounds.starts.tolist() == [0, 1, 3, 7]
    assert bounds.num_targets.tolist() == [1, 2, 2, 1]
    assert bounds.positions().tolist() == [0, 1, 1, 2, 3, 3, 4, 5, 7, 8]
    assert bounds.target_positions().tolist() == [1, 2, 3, 4, 5, 8]


def test_what_came_before_a_window_by_hand() -> None:
    # The windows above begin at events 0, 1, 3 of user 0 and 7 of user 2. Of marked events before them, the last two:
    # none, 0, 0 and 2 (1 is not marked), and none, as 6 is another user's.
    bounds, users = window_bounds(np.array([6, 1, 2, 0]), 2), np.repeat([0, 1, 2], [6, 1, 2])
    places, numbers = bounds.earlier(np.arange(9) != 1, users, 2)
    assert (places.tolist(), numbers.tolist()) == ([0, 0, 2], [0, 1, 2, 0])
    places, numbers = bounds.earlier(np.ones(9, bool), users, 2)
    assert (places.tolist(), numbers.tolist()) == ([0, 1, 2], [0, 1, 2, 0])


def test_bounds_since_a_moment_by_hand() -> None:
    # The users above at 1 event a time unit: 0..5, 6, 7..8. From 4 on, user 0's window (4, 5) is kept whole; of
    # (2, 3) and (1) nothing; user 2's target 8 is kept. From 5 on, 4 is context, too.
    bounds, times = window_bounds(np.array([6, 1, 2, 0]), 2), np.arange(9)
    kept = bounds.since(times, 4)
    assert (kept.starts.tolist(), kept.num_context.tolist(), kept.num_targets.tolist()) == ([3, 7], [1, 1], [2, 1])
    kept = bounds.since(times, 5)
    assert (kept.starts.tolist(), kept.num_context.tolist(), kept.num_targets.tolist()) == ([3, 7], [2, 1], [1, 1])
    assert kept.positions().tolist() == [3, 4, 5, 7, 8]
    assert kept.target_positions().tolist() == [5, 8]
    assert len(bounds.since(times, 99).starts) == 0
    whole = bounds.since(times, 0)
    assert whole.target_positions().tolist() == bounds.target_positions().tolist()


def test_the_newest_windows_by_hand() -> None:
    # User 0's windows above hold the targets (1), (2, 3), (4, 5), of which 5 is none here: 4 or more of them, all but
    # what lies before the newest two or three, and the newest window alone. User 2 has one window.
    bounds, users = window_bounds(np.array([6, 1, 2, 0]), 2), np.repeat([0, 1, 2], [6, 1, 2])
    targets = bounds.count_targets(np.arange(9) != 5)
    assert targets.tolist() == [1, 2, 1, 1]
    for most, expected in ((4, [1, 1, 1, 1]), (3, [0, 1, 1, 1]), (2, [0, 1, 1, 1]), (1, [0, 0, 1, 1])):
        assert bounds.newest(targets, users, most).tolist() == expected


def test_blocks_cover_every_user_once() -> None:
    """As many users as there is room for four events of, and who has more by himself."""
    assert list(user_blocks(np.array([3, 0, 9, 1, 1, 2, 0, 1]), 4)) == [(0, 2), (2, 3), (3, 7), (7, 8)]


def test_evaluation_users_by_hand() -> None:
    # user 0: trained on 5, 3, 5; validation 3 (seen), 8, 7, 8; test 9
    # user 1: trained on 2; validation 2 only: nothing new.  user 2: no training, validation 4.  user 3: test 6 alone
    users = np.array([0] * 8 + [1] * 2 + [2, 3])
    items = np.array([5, 3, 5, 3, 8, 7, 8, 9, 2, 2, 4, 6])
    splits = np.array([0, 0, 0, 1, 1, 1, 1, 2, 0, 1, 1, 2])
    # Each event is of a higher level than all before it, of which a request knows nothing: a repeat is one nonetheless.
    requests = np.arange(12) * 10
    events = BucketEvents(users, items, np.arange(12), np.arange(12), splits, requests, np.array([11, 12, 13, 14]))
    is_first = np.array([1, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1], bool)
    validation = evaluation_records(events, is_first, 0, Split.VALIDATION, 2, drop_repeats=False)
    rows = {name: (ragged.values.tolist(), ragged.lengths.tolist()) for name, ragged in validation.features.items()}
    assert rows == {
        EvaluationField.USER_INDEX: ([11], [1]),
        EvaluationField.HISTORY_ITEM_INDEX: ([3, 5], [2]),
        EvaluationField.HISTORY_CONTEXT: ([], [0]),
        EvaluationField.SEEN_ITEM_INDEX: ([5, 3], [2]),
        EvaluationField.TARGET_ITEM_INDEX: ([8, 7], [2]),
        EvaluationField.REQUEST: ([40], [1]),
    }
    assert (validation.repeat_targets, validation.users_without_history) == (1, 1)
    test = evaluation_records(events, is_first, 0, Split.TEST, 2, drop_repeats=False)
    assert test.features[EvaluationField.HISTORY_ITEM_INDEX].values.tolist() == [7, 8]
    assert test.features[EvaluationField.SEEN_ITEM_INDEX].values.tolist() == [5, 3, 8, 7]
    assert test.features[EvaluationField.TARGET_ITEM_INDEX].values.tolist() == [9]
    assert test.features[EvaluationField.REQUEST].values.tolist() == [70]
    dropped = evaluation_records(events, is_first, 0, Split.VALIDATION, 2, drop_repeats=True)
    assert dropped.features.pop(EvaluationField.HISTORY_ITEM_INDEX).values.tolist() == [5, 3]
    assert {name: (one.values.tolist(), one.lengths.tolist()) for name, one in dropped.features.items()} == {
        name: row for name, row in rows.items() if name != EvaluationField.HISTORY_ITEM_INDEX
    }
    dropped = evaluation_records(events, is_first, 0, Split.TEST, 3, drop_repeats=True)
    assert dropped.features[EvaluationField.HISTORY_ITEM_INDEX].values.tolist() == [3, 8, 7]
    newcomer = events.of_users(2, 3)
    of_newcomers = evaluation_records(newcomer, np.array([True]), 0, Split.VALIDATION, 2, drop_repeats=False)
    assert (of_newcomers.num_users, of_newcomers.repeat_targets, of_newcomers.users_without_history) == (0, 0, 1)


def test_users_who_come_once_are_measured_on_their_last_new_item_by_hand() -> None:
    """As sessions are. Level 1 is a positive, level 0 context.

    user 0: validation 4, 5, 4, 6, 5: the last that is new is 6.  user 1: trained on 1; validation 7, 8.
    user 2: validation 7, context 9; test 8, 3: one item in validation says nothing, in the test split it is history.
    user 3: validation 1, 1: nothing new comes after 1.  user 4: trained context 2; validation 3, 1, context 5.
    """
    users = np.repeat(np.arange(5), [5, 3, 4, 2, 4])
    items = np.array([4, 5, 4, 6, 5, 1, 7, 8, 7, 9, 8, 3, 1, 1, 2, 3, 1, 5])
    splits = np.array([1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 2, 2, 1, 1, 0, 1, 1, 1])
    levels = np.array([1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1, 1, 0])
    is_first = np.array([1, 1, 0, 1, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1], bool)
    events = BucketEvents(users, items, np.arange(18), levels, splits, np.arange(18), np.arange(5) + 1)
    fields = (EvaluationField.HISTORY_ITEM_INDEX, EvaluationField.SEEN_ITEM_INDEX, EvaluationField.TARGET_ITEM_INDEX)

    def rows(split: Split, drop_repeats: bool = True) -> tuple[dict[int, list[list[int]]], int]:
        found = evaluation_records(events, is_first, 1, split, 9, drop_repeats, with_new_users=True)
        ragged = [found.features[name] for name in fields]
        parts = [np.split(one.values, np.cumsum(one.lengths)[:-1]) for one in ragged]
        lists = [[part.tolist() for part in row] for row in zip(*parts, strict=True)]
        return dict(zip(found.features[EvaluationField.USER_INDEX].values - 1, lists, strict=True)), (
            found.users_without_history
        )

    returning, of_test = {1: [[1], [1], [7, 8]]}, {2: [[7, 9], [7], [8, 3]]}
    new = {0: [[4, 5], [4, 5], [6]], 4: [[2, 3], [3], [1]]}
    assert rows(Split.VALIDATION) == (returning | new, 2)
    assert rows(Split.TEST) == (of_test, 0)
    assert rows(Split.VALIDATION, drop_repeats=False)[0][0] == [[4, 5, 4], [4, 5], [6]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workdir]:
    folder = tmp_path_factory.mktemp("windows")
    config = make_config(
        community_log(folder / "log.parquet"), windows={"length": 5, "in_group_negatives": 3, "repeats": "keep"}
    )
    workdir = Workdir(folder / "run")
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "f")
    return config, workdir


def test_training_records_hold_each_positive_once_with_lawful_negatives(
    finished: tuple[Config, Workdir], tmp_path: Path
) -> None:
    config, workdir = finished
    item_ids = pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    user_ids = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    group_of = pq.read_table(workdir.item_groups.groups)["group_id"].to_pylist()
    owned: dict[str, list[str]] = {}
    times: dict[str, list[int]] = {}
    for event in read_events(workdir):
        if event["split"] == Split.TRAIN:
            owned.setdefault(event["user_id"], []).append(event["item_id"])
            times.setdefault(event["user_id"], []).append(event["timestamp"] // 1_000_000)
    targets: dict[str, list[str]] = {}
    for shard in range(config.data.num_buckets):
        for record in _parse(workdir.windows.shard(Split.TRAIN, shard, config.data.num_buckets), tmp_path):
            user = user_ids[record[WindowField.USER_INDEX][0] - 1]
            items = record[WindowField.ITEM_INDEX]
            context = record[WindowField.NUM_CONTEXT][0]
            assert context == 1 and 2 <= len(items) <= 6
            [start] = (
                place
                for place in range(len(owned[user]))
                if owned[user][place : place + len(items)] == [item_ids[item - 1] for item in items]
                and times[user][place : place + len(items)] == record[WindowField.TIMESTAMP]
            )
            # What the user took before the window, each item once; nobody has as many as are cut off.
            earlier = list(dict.fromkeys(owned[user][:start]))
            assert [item_ids[item - 1] for item in record[WindowField.EARLIER_ITEMS]] == earlier
            new = [item for place, item in enumerate(items) if place and place not in record[WindowField.NON_TARGETS]]
            assert new
            targets.setdefault(user, []).extend(item_ids[item - 1] for item in new)
            assert record[WindowField.GROUP_ID] == [group_of[item - 1] for item in items]
            in_group = np.reshape(record[WindowField.IN_GROUP_NEGATIVES], (len(new), 3))
            for target, row in zip(new, in_group, strict=True):
                assert all(item == 0 or group_of[item - 1] == group_of[target - 1] for item in row)
            drawn = [*in_group.ravel().tolist(), *record[WindowField.EASY_NEGATIVES]]
            assert len(record[WindowField.EASY_NEGATIVES]) == len(new) * 2
            assert not {item_ids[item - 1] for item in drawn if item} & set(owned[user])
    # The log has repeats: each item is a target where its user had it first, but for the user's first item.
    assert targets == {user: list(dict.fromkeys(items))[1:] for user, items in owned.items()}
    counts = read_manifest(workdir.windows.path).counts
    assert (
        counts["train_positives"] == sum(map(len, targets.values())) < sum(len(items) - 1 for items in owned.values())
    )


def test_the_trainer_reads_new_items_as_targets_and_repeats_as_context(finished: tuple[Config, Workdir]) -> None:
    _, workdir = finished
    pairs, events = [], 0
    for batch in TrainingWindows(workdir, 1000, seed=0).epoch(0):
        user = np.broadcast_to(batch.user_index[:, None], batch.item_index.shape)
        later = batch.is_target & (np.arange(batch.item_index.shape[1]) > 0)
        pairs += zip(user[later].tolist(), batch.item_index[later].tolist(), strict=True)
        events += int((batch.item_index > 0).sum())
    assert len(pairs) == len(set(pairs)) == read_manifest(workdir.windows.path).counts["train_positives"]
    assert events > 1.2 * len(pairs)


@pytest.mark.parametrize("since", [None, 0.8], ids=["all", "the newest"])
@pytest.mark.parametrize("repeats", ["keep", "drop"])
def test_the_trainer_knows_how_many_targets_an_epoch_has(
    repeats: str, since: float | None, finished: tuple[Config, Workdir], tmp_path: Path
) -> None:
    config, kept = finished
    workdir = Workdir(tmp_path / "run")
    shutil.copytree(kept.path, workdir.path)
    times = sorted(event["timestamp"] for event in read_events(workdir))
    moment = None if since is None else int(times[int(since * len(times))])
    settings = config.windows.model_copy(update={"repeats": repeats, "since": moment})
    windows.run(config.model_copy(update={"windows": settings}), workdir, "f")
    training = TrainingWindows(workdir, 1000, seed=0)
    found = sum(int(batch.is_target.sum()) for batch in training.epoch(0))
    counts = read_manifest(workdir.windows.path).counts
    assert training.num_positives == found
    assert (found < counts["train_positives"] + counts["train_windows"]) == (repeats == "keep" or since is not None)


def test_since_a_moment_only_later_events_are_learnt_from_and_counted(
    finished: tuple[Config, Workdir], tmp_path: Path
) -> None:
    config, kept = finished
    workdir, num_buckets = Workdir(tmp_path / "run"), config.data.num_buckets
    shutil.copytree(kept.path, workdir.path)
    trained = [event for event in read_events(workdir) if event["split"] == Split.TRAIN]
    moment = sorted(event["timestamp"] for event in trained)[int(0.9 * len(trained))]
    windows.run(
        config.model_copy(update={"windows": config.windows.model_copy(update={"since": moment})}), workdir, "f"
    )
    had: dict[str, set[str]] = {}
    targets, repeats = set(), 0
    for event in trained:
        user, item = event["user_id"], event["item_id"]
        is_learnt = event["timestamp"] >= moment and user in had
        if item in had.setdefault(user, set()):
            repeats += is_learnt
        elif is_learnt:
            targets.add((user, item))
        had[user].add(item)
    item_ids = pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    user_ids = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    found = set()
    for bucket in range(num_buckets):
        for record in _parse(workdir.windows.shard(Split.TRAIN, bucket, num_buckets), tmp_path):
            user, items = user_ids[record[WindowField.USER_INDEX][0] - 1], record[WindowField.ITEM_INDEX]
            later = range(record[WindowField.NUM_CONTEXT][0], len(items))
            found |= {(user, item_ids[items[at] - 1]) for at in later if at not in record[WindowField.NON_TARGETS]}
        for split in (Split.VALIDATION, Split.TEST):  # of which users nothing but the future is new
            shards = [run.windows.shard(split, bucket, num_buckets).read_bytes() for run in (workdir, kept)]
            assert shards[0] == shards[1]
    assert found == targets
    assert len({user for user, _ in targets}) < len(had)
    counts = read_manifest(workdir.windows.path).counts
    assert counts["train_positives"] == len(targets)
    assert counts["train_repeats"] == repeats > 0


def test_without_repeats_a_history_holds_each_item_once_and_the_targets_are_the_same(
    finished: tuple[Config, Workdir], tmp_path: Path
) -> None:
    config, kept = finished
    workdir, num_buckets = Workdir(tmp_path / "run"), config.data.num_buckets
    shutil.copytree(kept.path, workdir.path)
    dropping = config.windows.model_copy(update={"repeats": "drop"})
    windows.run(config.model_copy(update={"windows": dropping}), workdir, "f")
    before: dict[Split, dict[int, list[int]]] = {split: {} for split in Split}
    for event in read_events(workdir):
        for split in Split:
            if event["split"] < max(split, 1):
                before[split].setdefault(event["user_id"], []).append(event["item_id"])
    item_ids = pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    user_ids = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    trained: dict[str, list[str]] = {}
    for bucket in range(num_buckets):
        for record in _parse(workdir.windows.shard(Split.TRAIN, bucket, num_buckets), tmp_path):
            assert record[WindowField.NON_TARGETS] == []
            user = user_ids[record[WindowField.USER_INDEX][0] - 1]
            items = [item_ids[item - 1] for item in record[WindowField.ITEM_INDEX]]
            mine = trained.setdefault(user, items[:1])
            assert mine[-1] == items[0]  # a window's context is the event before it
            mine.extend(items[1:])
        for split in (Split.VALIDATION, Split.TEST):
            for record in _parse(workdir.windows.shard(split, bucket, num_buckets), tmp_path):
                user = user_ids[record[EvaluationField.USER_INDEX][0] - 1]
                history = [item_ids[item - 1] for item in record[EvaluationField.HISTORY_ITEM_INDEX]]
                assert history == list(dict.fromkeys(before[split][user]))[-5:]
    assert trained == {user: list(dict.fromkeys(items)) for user, items in before[Split.TRAIN].items()}
    counts, of_kept = read_manifest(workdir.windows.path).counts, read_manifest(kept.windows.path).counts
    assert counts["train_positives"] == of_kept["train_positives"]
    assert counts["train_repeats"] == sum(len(items) - len(set(items)) for items in before[Split.TRAIN].values())


def test_rerun_is_byte_identical(finished: tuple[Config, Workdir]) -> None:
    config, workdir = finished

    def hashes() -> dict[str, str]:
        files = sorted(workdir.windows.path.glob("*.gz"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = hashes()
    windows.run(config, workdir, "again")
    assert hashes() == before
    assert len(before) == 9  # 3 buckets, 3 splits
    windows.run(config.model_copy(update={"seed": 1}), workdir, "other")
    assert hashes() != before


@pytest.mark.parametrize(
    ("section", "setting", "value", "stage"),
    [("data", "num_buckets", 5, "ingest"), ("windows", "popularity_exponent", 1.0, "statistics"),
     ("groups", "num_groups", 3, "groups")],
)  # fmt: skip
def test_artifacts_of_another_config_are_refused(
    finished: tuple[Config, Workdir], section: str, setting: str, value: float, stage: str
) -> None:
    config, workdir = finished
    other = getattr(config, section).model_copy(update={setting: value})
    with pytest.raises(ValueError, match=f"{section}.{setting}={value}.*run {stage}"):
        windows.run(config.model_copy(update={section: other}), workdir, "f")


def test_a_changed_number_of_shards_leaves_none_of_the_old_ones(tmp_path: Path) -> None:
    log, workdir, trained = community_log(tmp_path / "log.parquet"), Workdir(tmp_path / "run"), []
    for buckets in (5, 2):
        config = make_config(log, data={"num_buckets": buckets})
        for job in (ingest, statistics, groups, windows):
            job.run(config, workdir, f"{buckets}")
        listed, path = read_manifest(workdir.windows.path).files, workdir.windows.path
        assert {file.name for file in path.iterdir()} == {*listed, "manifest.json"}
        assert len(list(path.glob("*.gz"))) == len(Split) * buckets
        assert len(list(workdir.events.path.glob("*.parquet"))) == buckets
        batches = TrainingWindows(workdir, 1_000, seed=0).epoch(0)
        rows = [(user, *items) for batch in batches for user, items in zip(*batch[:2], strict=True)]
        trained.append(sorted((int(user), *(int(item) for item in items if item)) for user, *items in rows))
    assert trained[0] == trained[1] != []
