"""What Beam wrote into tables and records is exactly what the servable computes from the same raw values.

Raw values are random and hostile: ids and tokens of any text, long ids, separators that are themselves
regular expressions, missing and infinite numbers, rows that nobody has seen.
"""

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
import tensorflow_transform.beam as tft_beam
from apache_beam.testing.util import assert_that, equal_to
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from beam_jobs import groups, ingest, statistics, transform, windows
from beam_jobs.features.preprocessing import raw_feature_spec
from contracts.config import Config, FeatureTable
from contracts.layout import Workdir
from contracts.names import EvaluationField, Split, WindowField
from serving.export import export
from serving.graph.transform_graphs import TransformGraph, UserFeatures, VocabularyLookup
from serving.servable_session import ServableSession
from trainer.catalogue import Catalogue
from trainer.train import train

ODD = [
    "😀",
    "👩‍👩‍👧",
    "é",
    "e\u0301",
    "日本",
    " ",
    "|",
    ",",
    '"',
    "\\",
    "[",
    "$",
    ".*",
    "%s",
    "\u2028",
    "NaN",
    "0",
    "-1",
]
FEATURES = [
    {"name": "tags", "kind": "tokens", "separator": "||", "max_tokens": 3},
    {"name": "words", "kind": "tokens", "separator": ".", "max_tokens": 2, "max_vocabulary": 5},
    {"name": "colour", "kind": "categorical", "max_vocabulary": 6},
    {"name": "size", "kind": "numeric"},
    {"name": "title", "kind": "text", "max_tokens": 4, "max_vocabulary": 30},
    {"name": "picture", "kind": "vector", "dim": 3},
]


class RawValues:
    """A seeded source of hostile values."""

    def __init__(self, seed: int):
        self._rng = np.random.default_rng(seed)

    def text(self, pieces: int = 4) -> str:
        return "".join(self._rng.choice(ODD, self._rng.integers(1, pieces + 1)))

    def id(self) -> str:
        """Distinct by its number; one in eight is as long as an id may be."""
        text = f"{self.text()}{self._rng.integers(1 << 60)}"
        return text + "x" * (1024 - len(text.encode())) if self._rng.random() < 0.125 else text

    def row(self) -> dict[str, Any]:
        """Values of FEATURES, each missing now and then; few enough distinct ones to repeat."""
        tokens = ["", *ODD[: self._rng.integers(1, len(ODD))]]
        return {
            "tags": "||".join(self._rng.choice(tokens, self._rng.integers(0, 6))),
            "words": ".".join(self._rng.choice(tokens, self._rng.integers(0, 4))),
            "colour": self._rng.choice(["", *ODD]),
            "size": self._rng.choice([np.nan, np.inf, -np.inf, 0.0, *self._rng.normal(0, 1e3, 8)]),
            "title": " ".join(self._rng.choice(["ÉTÉ", "Straße", "3rd", "x-Ray", *ODD], self._rng.integers(0, 6))),
            "picture": self._rng.choice([np.nan, 0.0, 1e20, -7.5, 0.1], 3, p=[0.1, 0.2, 0.05, 0.3, 0.35]).tolist(),
        }


def feature_table(path: Path, id_name: str, ids: list[str], source: RawValues) -> tuple[dict[str, Any], list[dict]]:
    """Writes a table with a row for most ids; returns its config and the row of every id."""
    absent = {"tags": "", "words": "", "colour": "", "size": np.nan, "title": "", "picture": [np.nan] * 3}
    rows = [absent if index % 9 == 0 else source.row() for index, _ in enumerate(ids)]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in absent}
    table = pa.table({id_name: ids} | columns)
    pq.write_table(table.filter(pa.array([index % 9 != 0 for index in range(len(ids))])), path)
    return {"path": str(path), "id": id_name, "features": FEATURES}, rows


class Run:
    """A random log and its artifacts up to the windows."""

    def __init__(self, folder: Path):
        source, rng = RawValues(0), np.random.default_rng(1)
        self.users, self.items = ([source.id() for _ in range(count)] for count in (60, 50))
        histories = [rng.choice(self.items, rng.integers(3, 12), replace=False).tolist() for _ in self.users]
        self.items = sorted({item for history in histories for item in history})
        self.histories = dict(zip(self.users, histories, strict=True))
        events = [(user, item) for user, history in self.histories.items() for item in history]
        times = 1_600_000_000 + np.arange(len(events))
        log = pa.table({"user_id": [u for u, _ in events], "item_id": [i for _, i in events], "timestamp": times})
        pq.write_table(log.take(pa.array(rng.permutation(len(events)))), folder / "log.parquet")
        item_table, self.item_rows = feature_table(folder / "items.parquet", "item_id", self.items, source)
        user_table, self.user_rows = feature_table(folder / "users.parquet", "user_id", self.users, source)
        tables = {"item_features": item_table, "user_features": user_table}
        data = {"events": str(folder / "log.parquet"), "num_buckets": 2, **tables}
        self.config = Config.model_validate({"data": data, "groups": {"num_groups": 3, "embedding_dim": 8}})
        self.workdir = Workdir(folder / "run")
        for job in (ingest, statistics, groups, transform, windows):
            job.run(self.config, self.workdir, "fingerprint")
        self.catalogue = Catalogue.load(self.workdir)
        self.item_lookup = VocabularyLookup(self.workdir.item_statistics.item_vocabulary, len(self.items))
        self.user_graph = TransformGraph(self.workdir.transform.user_graph)
        self.user_features = UserFeatures(self.config, self.workdir, self.catalogue)

    def records(self, split: Split) -> list[dict[str, list[int]]]:
        found = []
        for path in sorted(self.workdir.windows.path.glob(f"{split.name.lower()}-*")):
            for record in tf.data.TFRecordDataset(str(path), "GZIP"):
                features = tf.train.Example.FromString(record.numpy()).features.feature
                found.append({name: list(value.int64_list.value) for name, value in features.items()})
        return found

    def item_index(self, item_ids: list[str]) -> list[int]:
        return self.item_lookup(tf.constant(item_ids, tf.string)).numpy().tolist()

    def user_index(self, user_ids: list[str]) -> list[int]:
        return self.user_graph({"user_id": tf.constant(user_ids)})["user_index"].numpy().tolist()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("parity"))


def tensors(rows: list[dict[str, Any]]) -> dict[str, tf.Tensor]:
    dtypes = {"size": tf.float32, "picture": tf.float32}
    return {name: tf.constant([row[name] for row in rows], dtypes.get(name, tf.string)) for name in rows[0]}


def assert_same(served: dict[str, tf.Tensor], expected: dict[str, np.ndarray], names: list[str]) -> None:
    for name in names:
        values = served[name].numpy()
        assert values.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
        assert np.any(expected[name]), f"{name} is all missing: the test would show nothing"


def names_of(id_name: str) -> list[str]:
    return [f"{id_name.removesuffix('_id')}_index", *(feature["name"] for feature in FEATURES)]


def test_every_user_row_is_what_a_request_gives(run: Run):
    order = dict(zip(run.users, run.user_rows, strict=True))
    users = pq.read_table(run.workdir.item_statistics.users)["user_id"].to_pylist()
    raw = tensors([order[user] for user in users])
    written = {name: values[1:] for name, values in run.catalogue.user_features.items()}
    assert_same(run.user_features(tf.constant(users), raw), written, list(raw))
    absent = {"tags": "", "words": "", "colour": "", "size": np.nan, "title": "", "picture": [np.nan] * 3}
    nothing = tensors([absent] * len(users))
    assert_same(run.user_features(tf.constant(users), nothing), written, list(raw))
    assert run.user_index(users) == list(range(1, len(users) + 1))


def test_every_item_row_is_what_the_graph_gives(run: Run):
    order = dict(zip(run.items, run.item_rows, strict=True))
    ids = run.catalogue.item_ids.tolist()
    graph = TransformGraph(run.workdir.transform.item_graph)
    outputs = graph({"item_id": tf.constant(ids), **tensors([order[item] for item in ids])})
    written = {name: values[1:] for name, values in run.catalogue.item_features.items()}
    written["item_index"] = np.arange(1, len(ids) + 1)
    assert_same(outputs, written, names_of("item_id"))


@pytest.mark.parametrize("kind", ["item", "user"])
def test_rows_that_nobody_has_seen(run: Run, kind: str):
    """The same graph run by Beam, loaded by TFT, and run in a request, loaded by TensorFlow."""
    id_name, path = f"{kind}_id", getattr(run.workdir.transform, f"{kind}_graph")
    source = RawValues(2)
    known = run.items if kind == "item" else run.users
    ids = [["", source.id(), source.text(), known[i], known[i] + " ", "é" * 50_000][i % 6] for i in range(48)]
    rows = [{id_name: value, **source.row()} for value in ids]
    served = {name: values.numpy().tolist() for name, values in TransformGraph(path)(tensors(rows)).items()}
    assert set(served) == set(names_of(id_name))
    assert [index > 0 for index in served[f"{kind}_index"]] == [i % 6 == 3 for i in range(48)]
    expected = [[served[name][row] for name in sorted(served)] for row in range(48)]
    for feature in FEATURES:
        assert np.any(served[feature["name"]]), f"{feature['name']} is all missing: the test would show nothing"

    table = FeatureTable.model_validate({"path": "unused", "id": id_name, "features": FEATURES})
    schema = schema_utils.schema_from_feature_spec(raw_feature_spec(id_name, table.features))
    with beam.Pipeline(runner="FnApiRunner") as p, tft_beam.Context(temp_dir=str(run.workdir.path / "scratch")):
        graph = p | tft_beam.ReadTransformFn(str(path))
        raw = p | beam.Create(rows)
        transformed, _ = ((raw, dataset_metadata.DatasetMetadata(schema)), graph) | tft_beam.TransformDataset()
        transformed |= beam.Map(lambda row: [np.asarray(row[name]).tolist() for name in sorted(row)])
        assert_that(transformed, equal_to(expected))


def test_a_request_without_a_table_row_gives_its_own_features(run: Run):
    """Of an unknown user, what the request says counts, and only that."""
    source = RawValues(3)
    rows = [source.row() for _ in range(40)]
    raw, strangers = tensors(rows), tf.constant([source.id() for _ in rows])
    graph = run.user_graph({"user_id": strangers, **raw})
    assert_same(run.user_features(strangers, raw), {n: v.numpy() for n, v in graph.items()}, list(raw))


def test_records_hold_the_indices_that_a_request_gets(run: Run):
    """Leave-one-out: all but the last two events train; the history of the test target is all but the last."""
    train = {record[WindowField.USER_INDEX][0]: record for record in run.records(Split.TRAIN)}
    test = {record[EvaluationField.USER_INDEX][0]: record for record in run.records(Split.TEST)}
    user_indices = run.user_index(list(run.histories))
    assert set(test) == set(user_indices) == set(range(1, len(run.users) + 1))
    for user, history in zip(user_indices, run.histories.values(), strict=True):
        index = run.item_index(["nobody", *history])
        assert index[0] == 0
        assert test[user][EvaluationField.HISTORY_ITEM_INDEX] == index[1:-1]
        assert test[user][EvaluationField.TARGET_ITEM_INDEX] == index[-1:]
        if len(history) > 3:  # one training event alone makes no window
            assert train[user][WindowField.ITEM_INDEX] == index[1:-2]
    assert len(train) == sum(len(history) > 3 for history in run.histories.values())


def test_the_servable_takes_every_kind_of_feature(run: Run):
    """A stranger with a known user's features gets the user's vectors; each feature left out or changed counts."""
    tree = run.config.model_dump()
    small = {"embedding_dim": 16, "num_layers": 1, "expert_hidden_dim": 16}
    training = {"epochs": 2, "learning_rate": 0.01}
    serving = {"indexes": ["exact"], "num_candidates": 5}
    config = Config.model_validate({**tree, "model": small, "training": training, "serving": serving})
    train(config, run.workdir, "dnc", "fingerprint")
    version = export(config, run.workdir, "dnc", "fingerprint")
    rows = dict(zip(run.users, run.user_rows, strict=True))
    # Of each feature, the first user for whom it is something; and a user who has all that is a number.
    indexed = pq.read_table(run.workdir.item_statistics.users)["user_id"].to_pylist()
    features = run.catalogue.user_features.items()
    known = {name: values[1:].reshape(len(indexed), -1).any(axis=1) for name, values in features}
    told = {name: rows[indexed[int(np.argmax(is_known))]][name] for name, is_known in known.items()}
    user = indexed[int(np.argmax(known["picture"] & known["size"]))]
    row, picture = rows[user], told.pop("picture")
    with ServableSession(version, num_threads=1) as session:
        stored, _ = session.query_embedding([[], []], user_id=[user, "stranger"])
        given, _ = session.query_embedding([[]], **{name: [value] for name, value in row.items()})
        np.testing.assert_allclose(given[0], stored[0], rtol=1e-4, atol=1e-5)
        assert np.abs(stored[0] - stored[1]).max() > 1e-4
        nothing = {name: [None if name == "size" else ""] for name in told}
        missing, _ = session.query_embedding([[]], user_id=user, **nothing)
        np.testing.assert_allclose(missing[0], stored[0], rtol=1e-4, atol=1e-5)
        two, _ = session.query_embedding([[], []], user_id=["stranger", user], picture=[picture, None])
        np.testing.assert_allclose(two[1], stored[0], rtol=1e-4, atol=1e-5)
        assert np.abs(two[0] - stored[1]).max() > 1e-4
        for name, value in told.items():
            other, _ = session.query_embedding([[]], **{name: [value]})
            assert np.abs(other[0] - stored[1]).max() > 1e-5, name
        spec = session.specs["query_embedding"]
        assert spec.inputs["picture"].shape == (None, 3)
        with pytest.raises(ValueError, match=r"'picture' must be float32 \['\?', 3\], got the shape \[1, 2\]"):
            spec.complete({"picture": np.zeros([1, 2], np.float32)})
