"""Groups: co-occurrence by brute force, k-means beside scikit-learn, categories, cold items, no empty group."""

import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse as sp
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from beam_jobs import groups, ingest, statistics
from beam_jobs.common.payload import pack_sorted
from beam_jobs.grouping import categories, cooccurrence
from beam_jobs.grouping.categories import merge_categories, split_categories
from beam_jobs.grouping.cooccurrence import UNIT, PairKeys
from beam_jobs.grouping.item_embeddings import embed_cooccurrences, ppmi
from beam_jobs.grouping.kmeans import fill_empty, fit_centroids, nearest_centroid
from contracts.layout import Workdir
from tests.beam_jobs.helpers import community_log, make_config, read_groups, write_log


@pytest.mark.parametrize(("at_once", "since"), [(1, 0), (30, 0), (1 << 23, 0), (30, 50)])
def test_pairs_against_a_loop(at_once: int, since: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the pairs whose later event is the `since`-th or one after it."""
    monkeypatch.setattr(cooccurrence, "_SUMMED_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    users, items = np.sort(rng.integers(0, 8, 80)), rng.integers(0, 12, 80)
    expected: dict[tuple[int, int], int] = {}
    for i in range(80):
        for j in range(max(i + 1, since), min(i + 4, 80)):
            if users[i] == users[j] and items[i] != items[j]:
                pair = (int(min(items[i], items[j])), int(max(items[i], items[j])))
                expected[pair] = expected.get(pair, 0) + round(UNIT / (j - i))
    pair_keys = PairKeys(num_items=12, window=3, num_blocks=5)
    keys = pair_keys.of_events(users, items, np.arange(80) >= since if since else None)
    bounds = pair_keys.block_bounds(keys)
    counted = {}
    for block in range(5):
        of_block = keys[bounds[block] : bounds[block + 1]]
        rows, columns, weights = pair_keys.sums(of_block[start::3] for start in range(3))
        assert (rows % 5 == block).all()
        counted |= dict(zip(zip(rows.tolist(), columns.tolist(), strict=True), weights.tolist(), strict=True))
    assert counted == expected


def test_a_popular_pair_takes_memory_once_not_each_time_that_it_occurs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooccurrence, "_SUMMED_AT_ONCE", 1 << 14)
    users, items = np.zeros(20_000, np.int64), np.arange(20_000) % 2  # events of one user, who takes 0 and 1 in turn
    pair_keys = PairKeys(num_items=2, window=1, num_blocks=1)
    payload = pack_sorted(pair_keys.of_events(users, items))
    tracemalloc.start()
    [path] = cooccurrence._SumBlock(pair_keys, tmp_path / "pairs").process((0, [payload] * 100))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert pq.read_table(path).to_pylist() == [{"row": 0, "column": 1, "weight": 100 * 19_999 * UNIT}]
    assert peak < 100 * 19_999 * 8 / 4  # bytes of all keys


def test_embeddings_are_those_of_the_dense_ppmi_matrix(tmp_path: Path) -> None:
    """max(0, log(p(i, j) / (p(i) p(j)))), and U sqrt(S) of it; item 5 co-occurs with none."""
    upper = np.triu(np.random.default_rng(0).poisson(1.5, (12, 12)), 1) * (UNIT // 3)
    upper[5] = upper[:, 5] = 0
    rows, columns = np.nonzero(upper)
    blocks = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    for number, path in enumerate(blocks):
        row, column = rows[rows % 2 == number], columns[rows % 2 == number]
        pq.write_table(pa.table({"row": row, "column": column, "weight": upper[row, column]}), path)
    joint = (upper + upper.T) / (upper + upper.T).sum()
    alone = joint.sum(axis=1)
    expected = np.zeros((12, 12))
    for i, j in zip(*np.nonzero(joint), strict=True):
        expected[i, j] = max(0.0, np.log(joint[i, j] / (alone[i] * alone[j])))
    assert 0 < np.count_nonzero(expected) < np.count_nonzero(joint)
    matrix = ppmi(blocks, 12)
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-5)
    u, s, _ = np.linalg.svd(expected)
    vectors = (u * np.sqrt(s))[:, :4]
    vectors[5] = 0
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    found = embed_cooccurrences(matrix, 4, seed=0)
    np.testing.assert_allclose(found @ found.T, vectors @ vectors.T, atol=1e-4)  # whatever the axes' signs


def test_a_fit_is_of_a_sample_by_the_seed_and_of_the_best_of_its_restarts() -> None:
    rows = np.random.default_rng(0).uniform(size=(300, 2)).astype(np.float32)
    drawn = []
    for seed in range(3):  # as many centroids as rows of the sample are these rows, within rounding
        apart = np.abs(rows[:, None] - fit_centroids(rows, 9, restarts=1, sample=9, seed=seed)).max(axis=2)
        assert apart.min(axis=0).max() < 1e-5
        drawn.append(set(apart.argmin(axis=0).tolist()))
    assert [len(of_seed) for of_seed in drawn] == [9] * 3 and len(set.union(*drawn)) > 20
    # Of a cloud without clusters, each descent ends elsewhere.
    inertia = {
        restarts: [nearest_sum(rows, fit_centroids(rows, 9, restarts, 300, seed)) for seed in range(3)]
        for restarts in (1, 20)
    }
    assert len(set(inertia[1])) == 3
    assert max(inertia[20]) < min(inertia[1])


def nearest_sum(rows: np.ndarray, centroids: np.ndarray) -> float:
    """Sum of the squared distances to the nearest centroids."""
    return float(((rows[:, None] - centroids) ** 2).sum(-1).min(axis=1).sum())


def test_kmeans_is_within_two_percent_of_scikit_learn() -> None:
    rows, _ = make_blobs(3_000, 8, centers=12, cluster_std=2.0, random_state=0)
    rows = rows.astype(np.float32)
    centroids = fit_centroids(rows, 12, restarts=4, sample=1_500, seed=0)
    labels = nearest_centroid(rows, centroids)
    np.testing.assert_array_equal(labels, ((rows[:, None] - centroids) ** 2).sum(-1).argmin(1))
    inertia = ((rows - centroids[labels]) ** 2).sum()
    assert inertia <= 1.02 * KMeans(12, n_init=4, random_state=1).fit(rows).inertia_


@pytest.mark.parametrize("axis", [0, 1])
def test_a_fit_descends_from_where_it_is_told_to_start(axis: int) -> None:
    """Four corners of a square make two pairs, side by side or one above the other: both are the best."""
    corners = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], np.float32)
    start = np.zeros((2, 2), np.float32)
    start[:, axis] = 0.5, -0.5
    assert fit_centroids(corners, 2, restarts=4, sample=9, seed=0, start=start).tolist() == (2 * start).tolist()


def test_of_fewer_items_than_groups_each_is_a_centroid() -> None:
    rows = np.array([[0, 1], [1, 0]], np.float32)
    found = fit_centroids(rows, 5, restarts=1, sample=9, seed=0)
    assert len(found) == 5 and {tuple(row) for row in found.tolist()} == {(0, 1), (1, 0)}


def test_empty_groups_are_filled_from_the_largest() -> None:
    rows = np.array([[0.0], [0.1], [9.0], [5.0]], np.float32)
    assert fill_empty(rows, np.array([1, 1, 1, 0]), 3).tolist() == [1, 1, 2, 0]
    same = np.zeros((5, 2), np.float32)
    assert sorted(np.bincount(fill_empty(same, np.zeros(5, np.int64), 5)).tolist()) == [1] * 5


def test_an_item_without_cooccurrence_has_no_embedding_however_many_axes_there_are() -> None:
    """30 items in a ring, 50 without co-occurrence, 64 axes: the SVD's rank is 30, and rounding fills the others."""
    ring = np.arange(30)
    pairs = np.concatenate([ring, (ring + 1) % 30]), np.concatenate([(ring + 1) % 30, ring])
    matrix = sp.coo_matrix((np.ones(60, np.float32), pairs), shape=(80, 80)).tocsr()
    lengths = np.linalg.norm(embed_cooccurrences(matrix, 64, seed=0), axis=1)
    np.testing.assert_allclose(lengths[:30], 1, rtol=1e-5)
    assert not lengths[30:].any()


def test_merge_and_split_categories() -> None:
    # Categories at 0 (six), 1 (one), 10 (three): the single one joins the near category, and the largest is cut.
    rows = np.array([0, 0, 0, 0.2, 0.2, 0.2, 1, 10, 10, 10], np.float32)[:, None]
    codes = np.array([0] * 6 + [1] + [2] * 3)
    merged = merge_categories(rows, codes, 2, 0)
    assert merged.tolist() == [0] * 7 + [1] * 3
    assert merge_categories(rows, codes, 9, 3).tolist() == merged.tolist()  # few, but one is smaller than 3
    parts = split_categories(rows, np.ones(10, bool), merged, np.full(len(rows), -1), 3, 2, 100, 0)
    assert len(set(parts[:7])) == 2 and len(set(parts[7:])) == 1
    assert not set(parts[:7]) & set(parts[7:])


def test_parts_go_to_the_category_whose_parts_are_largest_and_none_is_empty() -> None:
    """Of nine and five: 9 > 5, so two halves of 4.5; 5 > 4.5, so two of 2.5. Items that are all alike are parted."""
    rows, before = np.zeros((14, 2), np.float32), np.full(14, -1)
    parts = split_categories(rows, np.ones(14, bool), np.repeat([0, 1], [9, 5]), before, 4, 1, 100, 0)
    assert (set(parts[:9]), set(parts[9:])) == ({0, 1}, {2, 3})


@pytest.mark.parametrize(("most", "least"), [(4, 0), (12, 6), (1, 0)])
def test_categories_merge_as_in_a_plain_loop(most: int, least: int) -> None:
    """The smallest, over and over, joins what lies nearest to it, as a whole."""
    rng = np.random.default_rng(0)
    codes = (15 * rng.random(120) ** 2).astype(np.int64)
    rows = rng.normal(size=(120, 2)).astype(np.float32)
    members = {code: np.flatnonzero(codes == code) for code in range(15)}
    assert min(map(len, members.values())) > 0

    def away(code: int, other: int) -> float:
        return float(np.linalg.norm(rows[members[code]].mean(axis=0) - rows[members[other]].mean(axis=0)))

    while len(members) > 1:
        smallest = min(members, key=lambda code: (len(members[code]), code))
        if len(members) <= most and len(members[smallest]) >= least:
            break
        nearest = min((code for code in members if code != smallest), key=lambda code: away(smallest, code))
        members[nearest] = np.append(members[nearest], members.pop(smallest))
    expected = np.empty(120, int)
    for number, code in enumerate(sorted(members)):
        expected[members[code]] = number
    assert merge_categories(rows, codes, most, least).tolist() == expected.tolist()


def test_of_very_many_categories_the_small_ones_join_the_large_ones_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one, as many as a catalogue has brands would take hours."""
    monkeypatch.setattr(categories, "_MERGED_ONE_BY_ONE", 3)
    rng = np.random.default_rng(0)
    codes = np.concatenate([np.repeat([7, 30, 55], 9), np.repeat(np.delete(np.arange(60), [7, 30, 55]), 2)])
    rows = rng.normal(size=(len(codes), 4)).astype(np.float32)
    centres = {code: rows[codes == code].mean(axis=0) for code in range(60)}
    nearest = [min((7, 30, 55), key=lambda large: ((centres[code] - centres[large]) ** 2).sum()) for code in range(60)]
    expected = np.unique(np.array(nearest)[codes], return_inverse=True)[1]
    np.testing.assert_array_equal(merge_categories(rows, codes, 3, 0), expected)
    assert len(np.unique(merge_categories(rows, codes, 2, 0))) == 2
    # Of a log that places none of them, the large ones are still as many.
    np.testing.assert_array_equal(np.unique(merge_categories(np.zeros_like(rows), codes, 3, 0)), [0, 1, 2])


def _run(tmp_path: Path, **sections: dict[str, object]) -> tuple[Workdir, np.ndarray]:
    log = community_log(tmp_path / "log.parquet")
    half = ["left" if int(item) < 20 else "right" for item in range(42)]
    half[40] = "right"  # items 40 and 41 are in no event; of 41 nothing is known
    table = pa.table({"item_id": [str(i) for i in range(42)], "side": [*half[:41], ""]})
    pq.write_table(table, tmp_path / "items.parquet")
    features = {
        "path": str(tmp_path / "items.parquet"),
        "id": "item_id",
        "features": [{"name": "side", "kind": "categorical"}],
    }
    config = make_config(log, data={"events": str(log), "num_buckets": 3, "item_features": features}, **sections)
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    by_item = read_groups(workdir)
    assert list(by_item) == pq.read_table(workdir.item_statistics.items)["item_id"].to_pylist()
    return workdir, np.array([by_item[str(item)] for item in range(42)])


@pytest.mark.parametrize("method", ["kmeans", "category", "hybrid"])
def test_every_method_finds_the_two_communities(method: str, tmp_path: Path) -> None:
    workdir, of_item = _run(tmp_path, groups={"method": method, "category": "side", "num_groups": 2})
    assert len(set(of_item[:20])) == 1 and len(set(of_item[20:40])) == 1 and of_item[0] != of_item[20]
    assert of_item[40] == of_item[20]  # no event, but of the right side
    report = json.loads(workdir.item_groups.report.read_text())
    assert report[of_item[0]]["label"] == "left" and report[of_item[20]]["label"] == "right"
    assert sum(group["size"] for group in report) == 42


def test_items_of_which_nothing_is_known_do_not_move_the_centroids(tmp_path: Path) -> None:
    workdir, _ = _run(tmp_path, groups={"num_groups": 2})
    embeddings, centroids = np.load(workdir.item_groups.embeddings), np.load(workdir.item_groups.centroids)
    of_item = pq.read_table(workdir.item_groups.groups)["group_id"].to_numpy()
    known = np.abs(embeddings).sum(axis=1) > 0
    assert known.sum() == 41
    for group in range(2):
        np.testing.assert_allclose(centroids[group], embeddings[known & (of_item == group)].mean(axis=0), atol=1e-6)


def test_hybrid_reaches_more_groups_than_categories(tmp_path: Path) -> None:
    _, of_item = _run(tmp_path, groups={"method": "hybrid", "category": "side", "num_groups": 5})
    assert set(of_item) == set(range(5))
    assert not set(of_item[:20]) & set(of_item[20:40])


@pytest.mark.parametrize("method", ["category", "hybrid"])
def test_items_without_a_category_are_spread_where_no_item_has_both_category_and_cooccurrence(
    method: str, tmp_path: Path
) -> None:
    log = community_log(tmp_path / "log.parquet")
    tagged = {"item_id": [str(item) for item in range(100, 112)], "side": ["left", "right"] * 6}
    pq.write_table(pa.table(tagged), tmp_path / "items.parquet")
    features = {
        "path": str(tmp_path / "items.parquet"),
        "id": "item_id",
        "features": [{"name": "side", "kind": "categorical"}],
    }
    sections = {"groups": {"method": method, "category": "side"}, "data": {"item_features": features}}
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups):
        job.run(make_config(log, **sections), workdir, "f")
    of_item = read_groups(workdir)
    sizes = np.bincount([of_item[str(item)] for item in range(40)])
    assert len(sizes) == 2 and sizes.min() >= 10  # by a hash of their ids, not all to one


def test_items_of_which_nothing_is_known_are_spread_in_proportion_to_the_groups() -> None:
    ids, known = pa.array([f"i{item}" for item in range(5_000)]), np.repeat([0, 2], [700, 300])
    found = groups._spread(np.concatenate([known, np.full(4_000, -1)]), 3, ids)
    assert found[:1_000].tolist() == known.tolist()
    # Within five standard deviations; and none in a group that is empty, which is for `fill_empty`.
    counts = np.bincount(found[1_000:], minlength=3)
    assert counts.tolist() == [pytest.approx(2_800, abs=5 * np.sqrt(4_000 * 0.21)), 0, 4_000 - counts[0]]


ERRORS = {
    "K above the items": ({"num_groups": 43}, "43 is more than the number of items in the log, 42: set"),
    "K above the categories": ({"method": "category", "category": "side", "num_groups": 3}, "values of .*, 2"),
    "no such feature": ({"method": "hybrid", "category": "colour", "num_groups": 2}, "groups.category='colour'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_field_and_remedy(name: str, tmp_path: Path) -> None:
    section, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        _run(tmp_path, groups=section)


def test_log_without_any_cooccurrence_still_gets_full_groups(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv", [f"u{i},i{i},{i}" for i in range(9)])
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups):
        job.run(make_config(log, groups={"num_groups": 3}), workdir, "f")
    assert set(read_groups(workdir).values()) == {0, 1, 2}


@pytest.mark.parametrize(("cap", "largest", "is_said"), [(None, 41, True), (None, 40, False), (9.0, 41, False)])
def test_a_giant_group_is_pointed_out(
    cap: float | None, largest: int, is_said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """100 items in 10 groups: 10 on average."""
    config = make_config("log.csv", groups={"num_groups": 10, "max_size_ratio": cap})
    of_item = np.append(np.zeros(largest, int), 1 + np.arange(100 - largest) % 9)
    with caplog.at_level("INFO"):
        groups._count(config, SimpleNamespace(counts={}), np.zeros((100, 2)), of_item, np.zeros(100, bool))
    said = f"group 0 holds {largest}% of the items, {largest / 10} times the mean: groups.max_size_ratio"
    assert (said in caplog.text) == is_said
