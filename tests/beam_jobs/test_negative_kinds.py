"""Exposed and mined negatives: their distributions, their sources, and how they reach the records."""

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from scipy.stats import chisquare

from beam_jobs import groups, ingest, statistics, windows
from beam_jobs.sampling.mined_neighbors import (
    find_neighbors,
    nearest,
    neighbor_lists,
    read_item_embeddings,
    require_item_embeddings,
)
from beam_jobs.sampling.negatives import OwnedItems, WindowNegatives, exposures_of
from beam_jobs.sampling.uniform import UniformLists
from contracts.config import BeamConfig, Config
from contracts.layout import Workdir
from contracts.names import PADDING_INDEX, Split, WindowField
from tests.beam_jobs.helpers import HEADER, make_config, read_events, write_log
from trainer.input.training_windows import TrainingWindows

DRAWS = 20_000


def _sampler(neighbors: UniformLists | None = None) -> WindowNegatives:
    return WindowNegatives(np.full(8, 1 / 8), np.zeros(8, np.int64), 1, neighbors)


def test_exposed_negatives_are_uniform_over_what_was_shown_and_not_taken() -> None:
    # User 0 was shown 1 (often), 2, 3 and 5, and took 3. User 1 was shown only what it took. User 2 nothing.
    owned = OwnedItems(np.array([0, 1]), np.array([3, 4]), 3, 8)
    shown = np.array([0, 0, 0, 0, 0, 0, 1]), np.array([1, 1, 1, 2, 3, 5, 4])
    lists = exposures_of(*shown, owned, 3)
    users = np.repeat([0, 1, 2], DRAWS)
    drawn = _sampler().exposed(users, 2, lists, owned, np.random.default_rng(0)).reshape(3, -1)
    counts = Counter(drawn[0].tolist())
    assert set(counts) == {1, 2, 5}
    assert chisquare(list(counts.values())).pvalue > 1e-4
    assert (drawn[1:] == PADDING_INDEX).all()


@pytest.mark.parametrize("number", [0, 1, 500])
def test_exposures_are_each_users_distinct_items_in_order_without_what_it_took(number: int) -> None:
    rng = np.random.default_rng(number)
    owned_pairs = np.stack([rng.integers(0, 6, 20), rng.integers(1, 31, 20)])
    users, items = rng.integers(0, 6, number), rng.integers(1, 31, number)
    lists = exposures_of(users, items, OwnedItems(*owned_pairs, 6, 30), 6)
    left = set(zip(users.tolist(), items.tolist(), strict=True)) - set(map(tuple, owned_pairs.T.tolist()))
    expected = [sorted(item - 1 for user, item in left if user == of) for of in range(6)]
    assert [lists.of(user)[0].tolist() for user in range(6)] == expected


def test_mined_negatives_are_uniform_over_the_neighbours_that_the_user_does_not_own() -> None:
    # Item 1 has neighbours 2, 3, 4, 5; item 2 has 1 only; item 4 has none. User 0 owns 1, 2 and 4, user 1 owns 1 and 3.
    neighbors = UniformLists(np.array([1, 2, 3, 4, 0]), np.array([4, 1, 0, 0, 0, 0, 0, 0]))
    owned = OwnedItems(np.array([0, 0, 0, 1, 1]), np.array([1, 2, 4, 1, 3]), 2, 8)
    users, targets = np.repeat([0, 0, 0, 1], DRAWS), np.repeat([4, 2, 1, 1], DRAWS)
    drawn = _sampler(neighbors).mined(users, targets, 2, owned, np.random.default_rng(1)).reshape(4, -1)
    assert (drawn[:2] == PADDING_INDEX).all()
    for of_user, left in zip(drawn[2:], ({3, 5}, {2, 4, 5}), strict=True):
        counts = Counter(of_user.tolist())
        assert set(counts) == left
        assert chisquare(list(counts.values())).pvalue > 1e-4


def test_neighbours_by_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beam_jobs.sampling.mined_neighbors._ROWS_PER_ELEMENT", 17)
    monkeypatch.setattr("beam_jobs.sampling.mined_neighbors._SCORES_AT_ONCE", 150)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 5))
    vectors[7] = 0  # no embedding: no neighbours, and nobody's neighbour
    np.savez(tmp_path / "e.npz", item_id=[f"i{row}" for row in range(60)], embedding=vectors)
    embeddings = read_item_embeddings(str(tmp_path / "e.npz"), pa.array([f"i{row}" for row in range(60)]))
    lists = neighbor_lists(find_neighbors(BeamConfig(), embeddings, 4, tmp_path))
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    cosine[:, 7] = -2
    for item in range(60):
        expected = [] if item == 7 else np.argsort(-cosine[item])[:4].tolist()
        assert sorted(lists.of(item)[0].tolist()) == sorted(expected)
    assert [path.name for path in tmp_path.glob("mined*")] == ["mined_neighbors.npy"]


def test_fewer_items_than_neighbours() -> None:
    assert nearest(np.eye(3, dtype=np.float32), 0, 3, 5).tolist() == [[1, 2, -1, -1, -1], [0, 2, -1, -1, -1],
                                                                     [0, 1, -1, -1, -1]]  # fmt: skip
    assert (nearest(np.zeros((3, 2), np.float32), 0, 3, 2) == -1).all()


EMBEDDINGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (lambda path: None, "cannot be read"),
    "other arrays": (lambda path: np.savez(path, ids=["a"], vectors=[[1.0]]), "cannot be read"),
    "pickled": (lambda path: np.savez(path, item_id=np.array(["a"], object), embedding=[[1.0]]), "cannot be read"),
    "one array": (lambda path: np.save(path.open("wb"), np.ones((1, 2))), "single array, without ids"),
    "text": (lambda path: np.savez(path, item_id=["a"], embedding=[["1.0"]]), "embeddings are of type <U3.*numbers"),
    "NaN": (lambda path: np.savez(path, item_id=["a"], embedding=[[np.nan]]), "finite"),
    "too large for float32": (lambda path: np.savez(path, item_id=["a"], embedding=[[1e39]]), "finite"),
    "id twice": (lambda path: np.savez(path, item_id=["a", "a"], embedding=[[1.0], [2.0]]), "distinct ids"),
    "one number an item": (lambda path: np.savez(path, item_id=["a"], embedding=[1.0]), r"shape \(1,\)"),
    "another catalogue": (lambda path: np.savez(path, item_id=["x"], embedding=[[1.0]]), "the log's items, 1 in all"),
}


@pytest.mark.parametrize("name", EMBEDDINGS)
def test_unusable_embeddings_are_a_clear_error(name: str, tmp_path: Path) -> None:
    write, message = EMBEDDINGS[name]
    write(tmp_path / "e.npz")
    with pytest.raises(ValueError, match=f"windows.mined_from.*{message}"):
        read_item_embeddings(str(tmp_path / "e.npz"), pa.array(["a"]))


@pytest.mark.parametrize("name", ["other arrays", "one array", "text file", "other columns", "whole", "whole Parquet"])
def test_a_file_of_another_kind_is_told_by_its_names_alone(name: str, tmp_path: Path) -> None:
    """Before the stages that windows come after."""
    of_file: dict[str, tuple[str, Callable[[Path], object]]] = {
        "other arrays": ("e.npz", EMBEDDINGS["other arrays"][0]),
        "one array": ("e.npz", EMBEDDINGS["one array"][0]),
        "text file": ("e.csv", lambda path: path.write_text("item_id,embedding\n")),
        "other columns": ("e.parquet", lambda path: pq.write_table(pa.table({"item_id": ["a"]}), path)),
        "whole": ("e.npz", lambda path: np.savez(path, item_id=["a"], embedding=[[1.0]])),
        "whole Parquet": (
            "e.parquet",
            lambda path: pq.write_table(pa.table({"item_id": ["a"], "embedding": [[1.0]]}), path),
        ),
    }
    file, write = of_file[name]
    write(tmp_path / file)
    is_whole = name.startswith("whole")
    with nullcontext() if is_whole else pytest.raises(ValueError, match=r"windows.mined_from: .* cannot be read .*npz"):
        require_item_embeddings(str(tmp_path / file))


@pytest.mark.parametrize("size", [-1, 2], ids=["lists", "lists of fixed size"])
def test_parquet_embeddings(size: int, tmp_path: Path) -> None:
    vectors = pa.array([[0.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64(), size))
    pq.write_table(pa.table({"item_id": ["b", "a"], "embedding": vectors}), tmp_path / "e.parquet")
    read = read_item_embeddings(str(tmp_path / "e.parquet"), pa.array(["a", "c", "b"]))
    np.testing.assert_allclose(read, [[0.6, 0.8], [0, 0], [0, 1]], atol=1e-6)


def test_a_null_in_parquet_is_an_item_without_an_embedding(tmp_path: Path) -> None:
    vectors = [None, [0.0, 2.0], None, [3.0, 4.0]]
    pq.write_table(pa.table({"item_id": ["a", "b", "c", "d"], "embedding": vectors}), tmp_path / "e.parquet")
    read = read_item_embeddings(str(tmp_path / "e.parquet"), pa.array(["a", "b", "c", "d"]))
    np.testing.assert_allclose(read, [[0, 0], [0, 1], [0, 0], [0.6, 0.8]], atol=1e-6)


IDS = {
    "floats": pa.array([9_999_999_999.0, 2e10, 0.0]),
    "decimals": pa.array([9_999_999_999, 20_000_000_000, 0]).cast(pa.decimal128(38, 10)),
    "integers": pa.array([9_999_999_999, 20_000_000_000, 0]),
    "text": pa.array(["9999999999", "20000000000", "0"]),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_embeddings_are_read_as_those_of_the_log(name: str, tmp_path: Path) -> None:
    path, vectors = tmp_path / "e.parquet", [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
    pq.write_table(pa.table({"item_id": IDS[name], "embedding": vectors}), path)
    asked = pa.array(["0", "9999999999", "20000000000"])
    np.testing.assert_allclose(read_item_embeddings(str(path), asked), [[0.6, 0.8], [1, 0], [0, 1]], atol=1e-6)
    if name != "decimals":  # which NumPy has not
        np.savez(
            tmp_path / "e.npz",
            item_id=IDS[name].to_numpy(zero_copy_only=False).astype(str if name == "text" else None),
            embedding=vectors,
        )
        np.testing.assert_allclose(
            read_item_embeddings(str(tmp_path / "e.npz"), asked), [[0.6, 0.8], [1, 0], [0, 1]], atol=1e-6
        )


UNEVEN: dict[str, tuple[list[object], str]] = {
    "ragged": ([None, [1.0, 2.0, 3.0], [4.0]], "row 3 has an embedding of 1 numbers, row 2 one of 3"),
    "only nulls": ([None, None, None], "none of its rows has an embedding"),
    "a null within": ([[1.0, 2.0], [None, 1.0], None], "finite numbers"),
    "text": ([["x", "y"], None, None], "embeddings are of type object"),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_parquet_embeddings_that_are_no_matrix_are_a_clear_error(name: str, tmp_path: Path) -> None:
    values, message = UNEVEN[name]
    kind = pa.list_(pa.string() if name == "text" else pa.float32())
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], "embedding": pa.array(values, kind)}), tmp_path / "e.parquet")
    with pytest.raises(ValueError, match=rf"windows.mined_from: .*e\.parquet.*{message}"):
        read_item_embeddings(str(tmp_path / "e.parquet"), pa.array(["a"]))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"mined_negatives": 1}, "needs windows.mined_from"),
        ({"exposed_negatives": 1}, "needs a level below"),
    ],
    ids=["mined", "exposed"],
)
def test_config_names_what_is_missing(section: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Config.model_validate({"windows": section})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workdir]:
    """A log of exposures and clicks, all four kinds of negatives, drawn twice."""
    folder = tmp_path_factory.mktemp("kinds")
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(60), 25)
    table = pa.table(
        {
            "user_id": pa.array(users).cast(pa.string()),
            "item_id": pa.array(rng.integers(0, 50, len(users))).cast(pa.string()),
            "timestamp": pa.array(1_700_000_000 + rng.integers(0, 10**6, len(users))),
            "event": pa.array(rng.choice(["exposure", "click"], len(users))),
        }
    )
    pq.write_table(table, folder / "log.parquet")
    np.savez(folder / "e.npz", item_id=[str(i) for i in range(50)], embedding=rng.normal(size=(50, 4)))
    kinds = {"exposed_negatives": 3, "mined_negatives": 2, "mined_from": str(folder / "e.npz"), "mined_neighbors": 20}
    config = make_config(
        folder / "log.parquet",
        data={
            "events": str(folder / "log.parquet"),
            "num_buckets": 2,
            "columns": {"event": "event"},
            "feedback": {"levels": ["exposure", "click"], "target_level": "click"},
        },
        windows={"length": 6, "in_group_negatives": 2, "resamples": 2, **kinds},
    )
    workdir = Workdir(folder / "run")
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "f")
    return config, workdir


@pytest.mark.parametrize("shown_to", [0, 12, 60])
def test_negatives_that_are_mostly_absent_are_said(
    shown_to: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 60 users with ten clicks each, so many were shown anything else; nine of the ten clicks are targets."""
    lines = [f"u{user},i{user % 7 * 10 + place},{place},click" for user in range(60) for place in range(10)]
    lines += [f"u{user},i{user % 7 * 10 - 1},0,exposure" for user in range(shown_to)]
    log = write_log(tmp_path / "log.csv", lines, header=f"{HEADER},event")
    config = make_config(
        log,
        data={
            "columns": {"event": "event"},
            "feedback": {"levels": ["exposure", "click"], "target_level": "click", "history_level": "click"},
        },
        windows={"exposed_negatives": 2},
    )
    for job in (ingest, statistics, groups, windows):
        job.run(config, Workdir(tmp_path / "run"), "f")
    wanted, absent = (
        60 * 7 * 2,
        (60 - shown_to) * 7 * 2,
    )  # each user's last two clicks are held out, the first is context
    said = f"windows: {absent:,} of {wanted:,} exposed_negatives are absent"
    assert (said in caplog.text, "are absent" in caplog.text) == (shown_to < 60, shown_to < 60)


def _records(workdir: Workdir, draw: int) -> list[dict[str, list[int]]]:
    parsed = []
    for shard in range(2):
        path = str(workdir.windows.shard(Split.TRAIN, shard, 2, draw))
        for record in tf.data.TFRecordDataset(path, compression_type="GZIP").as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            parsed.append({name: list(feature.int64_list.value) for name, feature in features.items()})
    return parsed


def test_records_hold_every_kind(finished: tuple[Config, Workdir]) -> None:
    _, workdir = finished
    item_ids = pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    user_ids = pq.read_table(workdir.item_statistics.users)["user_id"].to_pylist()
    train = [event for event in read_events(workdir) if event["split"] == Split.TRAIN]
    clicked = {(event["user_id"], event["item_id"]) for event in train if event["feedback_level"] == 1}
    shown = {(event["user_id"], event["item_id"]) for event in train if event["feedback_level"] == 0}
    for record in _records(workdir, 0):
        user = user_ids[record[WindowField.USER_INDEX][0] - 1]
        targets = len(record[WindowField.ITEM_INDEX]) - len({0, *record[WindowField.NON_TARGETS]})
        exposed = {(user, item_ids[item - 1]) for item in record[WindowField.EXPOSED_NEGATIVES] if item}
        mined = {(user, item_ids[item - 1]) for item in record[WindowField.MINED_NEGATIVES] if item}
        assert len(record[WindowField.EXPOSED_NEGATIVES]) == 3 * targets
        assert len(record[WindowField.MINED_NEGATIVES]) == 2 * targets
        assert exposed <= shown - clicked and not mined & clicked
        assert exposed or not {pair for pair in shown - clicked if pair[0] == user}


def test_every_epoch_takes_the_next_draw_of_the_same_windows(finished: tuple[Config, Workdir]) -> None:
    _, workdir = finished
    first, second = _records(workdir, 0), _records(workdir, 1)
    drawn = {name for name in first[0] if name.endswith("negatives")}
    assert len(drawn) == 4
    for one, other in zip(first, second, strict=True):
        assert {name: one[name] for name in one.keys() - drawn} == {name: other[name] for name in other.keys() - drawn}
    windows_read = TrainingWindows(workdir, 10**6, seed=0)
    sums = [sum(int(batch.in_group_negatives.sum()) for batch in windows_read.epoch(epoch)) for epoch in range(4)]
    of_draws = [sum(sum(record[WindowField.IN_GROUP_NEGATIVES]) for record in draw) for draw in (first, second)]
    assert sums == of_draws * 2 and of_draws[0] != of_draws[1]
