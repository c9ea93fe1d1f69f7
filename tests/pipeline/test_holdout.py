"""Events of the holdout among the training windows: none in honest runs, every one of them in a leaky one.

And what the holdout's users are answered, by both models in the numbers of one catalogue.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from beam_jobs import groups, merge_spans, statistics, windows
from contracts.artifact import writing
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import EventColumn, Signature, Split
from contracts.patterns import identities
from contracts.store_layout import SpanParts
from pipeline.retraining.evidence import measure
from pipeline.retraining.holdout import HoldoutUsers, holdout_events_in_training, index_recall
from pipeline.retraining.span_profile import profile_span
from pipeline.retraining.spans import Span
from serving import servable_session
from serving.servable_session import Recommendations
from tests.beam_jobs.helpers import make_config
from tests.trainer.artifacts import cyclic_log, write_artifacts
from trainer.input import evaluation_users, training_windows
from trainer.input.ragged import Ragged

DAY, FIRST = 86_400, 1_704_067_200
START = (FIRST + 2 * DAY) * 1_000_000
TRIALS = 20


def log_of(seed: int) -> list[pa.Table]:
    """Three days of users who come back to items, and a third day's events that were in the second day's file, too."""
    rng, days = np.random.default_rng(seed), []
    for day in range(3):
        columns = {
            "user_id": np.char.add("u", rng.integers(0, 25, 150).astype(str)),
            "item_id": np.char.add("i", rng.integers(0, 40, 150).astype(str)),
            "timestamp": FIRST + day * DAY + rng.integers(0, DAY, 150),
        }
        days.append(pa.table({name: pa.array(values) for name, values in columns.items()}))
    early = days[2].slice(0, 20)  # the same users and items, stamped a day earlier
    at = early.schema.get_field_index("timestamp")
    shifted = early.set_column(at, "timestamp", pa.array(early["timestamp"].to_numpy() - DAY))
    return [days[0], pa.concat_tables([days[1], shifted]), days[2]]


def run_up_to_windows(folder: Path, seed: int) -> tuple[Config, Workdir]:
    config, workdir = make_config("unused", seed=seed), Workdir(folder / "run")
    parts = [SpanParts(folder / "spans" / str(day)) for day in range(3)]
    for day, (part, table) in enumerate(zip(parts, log_of(seed), strict=True)):
        pq.write_table(table, folder / f"{day}.parquet")
        profile_span(config, Span(day, str(day), identities(str(folder / f"{day}.parquet"))), part)
    merge_spans.run(config, workdir, "x", parts, START)
    for stage in (statistics, groups, windows):
        stage.run(config, workdir, "x")
    return config, workdir


def events_of(paths: list[Path]) -> list[tuple[int, int, int]]:
    """(user, item, second) of each event of training shards, read one record at a time."""
    found = []
    for path in paths:
        for record in tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator():
            fields = tf.train.Example.FromString(record).features.feature
            [user] = fields["user_index"].int64_list.value
            items, seconds = (fields[name].int64_list.value for name in ("item_index", "timestamp"))
            found += [(user, item, second) for item, second in zip(items, seconds, strict=True)]
    return found


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, TRIALS))])
def test_an_honest_run_has_none_and_a_leaky_one_all(tmp_path: Path, seed: int) -> None:
    config, workdir = run_up_to_windows(tmp_path, seed)
    assert holdout_events_in_training(workdir, START) == 0
    # The leak: all events are called training, and the windows of that replace the honest ones.
    honest = {path: path.read_bytes() for path in workdir.windows.path.glob("*") if not path.name.startswith("train-")}
    for path in workdir.events.path.glob("*.parquet"):
        table = pq.read_table(path)
        at = table.schema.get_field_index(EventColumn.SPLIT)
        train = pa.array(np.full(len(table), int(Split.TRAIN), np.int8))
        pq.write_table(table.set_column(at, EventColumn.SPLIT, train), path)
    windows.run(config, workdir, "leaky")
    for path, content in honest.items():
        path.write_bytes(content)
    expected = sum(
        second * 1_000_000 >= START for *_, second in events_of(sorted(workdir.windows.path.glob("train-0-*")))
    )
    assert holdout_events_in_training(workdir, START) == expected > 0


def test_a_target_that_was_trained_on_under_an_earlier_time_is_found(tmp_path: Path) -> None:
    """No event of the holdout's days is among the windows: it is the user and the item that tell."""
    _, workdir = run_up_to_windows(tmp_path, 0)
    path = next(path for path in sorted(workdir.windows.path.glob("test-0-*")) if _records(path))
    records = [tf.train.Example.FromString(record) for record in _records(path)]
    user, seen = (records[0].features.feature[name].int64_list.value for name in ("user_index", "seen_item_index"))
    records[0].features.feature["target_item_index"].int64_list.value[:] = [seen[0]]
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for record in records:
            writer.write(record.SerializeToString())
    events = events_of(sorted(workdir.windows.path.glob("train-0-*")))
    expected = sum((of, item) == (user[0], seen[0]) for of, item, _ in events)
    assert holdout_events_in_training(workdir, START) == expected > 0


def test_an_event_is_the_holdouts_by_its_second_or_as_a_target_of_its_own_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users 1 and 2 have the targets 3 and 1. Item 5 is no target, and more than any."""
    users = SimpleNamespace(user_index=np.array([1, 2]), targets=Ragged(np.array([3, 1]), np.array([0, 1, 2])))
    monkeypatch.setattr(evaluation_users.EvaluationUsers, "load", lambda *_: users)
    events = [(1, 5, 9), (1, 1, 9), (2, 3, 9), (1, 3, 9), (2, 1, 2), (2, 2, 10), (2, 2, 11), (7, 3, 12)]
    told = training_windows.TrainingEvents(*np.array(events).T, is_taken=np.ones(len(events), bool))
    monkeypatch.setattr(training_windows, "training_events", lambda _: [told])
    # (1, 3) and (2, 1), and two events after the second in which the holdout begins.
    assert holdout_events_in_training(Workdir(tmp_path), 10_400_000) == 4
    # Where only users are held out: of user 2, who is, one late event; user 7's is no fault.
    assert holdout_events_in_training(Workdir(tmp_path), 10_400_000, others_learn=True) == 3


def _records(path: Path) -> list[bytes]:
    return list(tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator())


ANSWERS = {
    "candidate": (["i60", "gone", "i2"], [2.0, 1.0, np.nan]),
    "served": (["long gone", "gone", "i1", ""], [3.0, 2.0, 1.0, -np.inf]),
}


class Session(AbstractContextManager):
    """A servable that answers everybody alike, and takes nothing of its own."""

    def __init__(self, path: Path):
        self.specs = {Signature.SERVING_DEFAULT: SimpleNamespace(inputs={})}
        self._items, self._scores = ANSWERS[path.name]

    def recommend(self, histories: list[list[str]], **_: Any) -> Recommendations:
        items, scores = (np.tile(np.array(row), (len(histories), 1)) for row in (self._items, self._scores))
        return Recommendations(items.astype(object), scores, np.zeros(items.shape, int))

    def __exit__(self, *error: object) -> None: ...


def test_items_that_the_catalogue_lacks_have_numbers_of_their_own_and_a_score_of_nan_is_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servable_session, "ServableSession", Session)
    users = HoldoutUsers(write_artifacts(cyclic_log(num_users=70), tmp_path))  # of 60 items, i1 to i60
    candidate, served = users.ask([Path("candidate"), Path("served")], 5)
    assert candidate.lists.tolist() == [[60, 61, 0, 0, 0]] * 70
    assert served.lists.tolist() == [[62, 61, 1, 0, 0]] * 70


def test_the_worst_of_the_exported_indexes_decides(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with writing(workdir.validation, "validation", "f") as writer:
        writer.details["servables"] = {
            "exact": {"recall": 0.99, "recall_high": 1.0},
            "scann": {"recall": 0.8, "recall_high": 0.9},
        }
    for indexes, least in ((("exact", "scann"), 0.9), (("exact",), 1.0)):
        config = Config()
        serving = config.serving.model_copy(update={"indexes": indexes})
        assert index_recall(config.model_copy(update={"serving": serving}), workdir) == least


def test_where_others_learn_the_validation_users_late_events_are_a_fault_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = {
        split: SimpleNamespace(user_index=np.array([user]), targets=Ragged(np.array([3]), np.array([0, 1])))
        for split, user in ((Split.TEST, 1), (Split.VALIDATION, 2))
    }
    monkeypatch.setattr(evaluation_users.EvaluationUsers, "load", lambda _, split: of[split])
    events = [(1, 4, 12), (2, 4, 12), (7, 4, 12)]  # user 7 is another
    told = training_windows.TrainingEvents(*np.array(events).T, is_taken=np.ones(3, bool))
    monkeypatch.setattr(training_windows, "training_events", lambda _: [told])
    assert holdout_events_in_training(Workdir(tmp_path), 10_000_000, others_learn=True) == 2


def test_lists_have_the_length_that_is_asked_for_and_popularity_serves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Obedient(Session):
        def recommend(self, histories: list[list[str]], **inputs: Any) -> Recommendations:
            found, k = super().recommend(histories, **inputs), inputs.get("num_candidates", 1)
            return Recommendations(found.item_ids[:, :k], found.scores[:, :k], found.group_ids[:, :k])

    monkeypatch.setattr(servable_session, "ServableSession", Obedient)
    users = HoldoutUsers(write_artifacts(cyclic_log(num_users=70), tmp_path))
    [served] = users.ask([Path("served")], 2)
    assert served.lists.tolist() == [[61, 62]] * 70
    assert measure(users.holdout(), users.popularity(2)).milliseconds is None
