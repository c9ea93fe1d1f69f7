"""The ways to fit and bound groups: distributed k-means, assignment in Beam, balancing, the sweep over K."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs

from beam_jobs import group_sweep
from beam_jobs.common.files import write_array
from beam_jobs.group_sweep import sweep_row
from beam_jobs.grouping import embedding_blocks
from beam_jobs.grouping.balance import balance_groups
from beam_jobs.grouping.distributed_kmeans import assign_items, refine_centroids
from beam_jobs.grouping.item_embeddings import normalise_rows
from beam_jobs.grouping.kmeans import fit_centroids, squared_distances
from contracts.artifact import writing
from contracts.config import BeamConfig, GroupsConfig
from contracts.layout import Workdir


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """3,000 rows of unit length around 12 centres that overlap."""
    blobs, _ = make_blobs(3_000, 8, centers=12, cluster_std=2.0, random_state=0)
    return normalise_rows(blobs)


def _blocks(folder: Path, rows: np.ndarray) -> list[embedding_blocks.EmbeddingBlock]:
    write_array(folder / "embeddings.npy", rows)
    return embedding_blocks.blocks_of(folder / "embeddings.npy", len(rows))


def _inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    return float(((rows[:, None] - centroids) ** 2).sum(-1).min(1).sum())


def test_distributed_fit_is_within_two_percent_of_scikit_learn(
    rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_blocks, "ROWS_PER_BLOCK", 1_000)
    best = KMeans(12, n_init=4, random_state=1).fit(rows).inertia_
    start = fit_centroids(rows, 12, restarts=2, sample=150, seed=0)  # rough, so that there is something to refine
    # Items that nothing is known of, rows of 0, do not take part.
    blocks = _blocks(tmp_path, np.concatenate([rows, np.zeros((2_000, 8), np.float32)]))
    refined = refine_centroids(BeamConfig(), blocks, start, 12, tmp_path)
    assert _inertia(rows, refined) <= 1.02 * best < 1.05 * best < _inertia(rows, start)
    assert [path.name for path in tmp_path.iterdir()] == ["embeddings.npy"]


def test_blocks_do_not_change_the_fit(rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    for size in (700, 3_000):
        monkeypatch.setattr(embedding_blocks, "ROWS_PER_BLOCK", size)
        fits.append(refine_centroids(BeamConfig(), _blocks(tmp_path, rows), rows[:12].copy(), 2, tmp_path))
    # The sums are exact; what is left is how a product of other shape rounds a distance.
    np.testing.assert_allclose(fits[0], fits[1], atol=1e-3)


def test_a_centroid_that_nothing_is_near_stays(tmp_path: Path) -> None:
    points = np.array([[0, 0.1], [0, 0.3], [0.5, 0]], np.float32)
    start = np.array([[0, 0.5], [0.6, 0], [-0.9, 0.2]], np.float32)
    found = refine_centroids(BeamConfig(), _blocks(tmp_path, points), start, 1, tmp_path)
    np.testing.assert_allclose(found, [[0, 0.2], [0.5, 0], [-0.9, 0.2]], atol=1e-6)


def test_assignment_is_the_nearest_centroid(rows: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_blocks, "ROWS_PER_BLOCK", 900)
    groups = assign_items(BeamConfig(), _blocks(tmp_path, rows), rows[:20].copy(), tmp_path)
    squared = ((rows[:, None] - rows[:20]) ** 2).sum(-1)
    np.testing.assert_allclose(squared[np.arange(len(rows)), groups], squared.min(axis=1), atol=1e-5)
    np.testing.assert_allclose(squared_distances(rows, rows[:20], groups), squared.min(axis=1), atol=1e-5)


def all_settled(rows: np.ndarray) -> np.ndarray:
    """Of all items about which anything is known."""
    return rows.any(axis=1)


@pytest.mark.parametrize("ratio", [1.01, 1.2, 3.0])
def test_no_group_exceeds_its_cap(rows: np.ndarray, ratio: float) -> None:
    giant = np.where(np.arange(3_000) < 2_500, 0, np.arange(3_000) % 12)  # one group holds nearly everything
    balanced = balance_groups(rows, giant, 12, ratio, all_settled(rows))
    sizes = np.bincount(balanced, minlength=12)
    assert sizes.sum() == 3_000 and sizes.max() <= np.ceil(250 * ratio)
    assert (np.bincount(giant, minlength=12) > 0).tolist() == (sizes > 0).tolist()
    assert balance_groups(rows, balanced, 12, ratio, all_settled(rows)).tolist() == balanced.tolist()  # what fits stays


def test_balance_moves_the_outlier_to_its_next_group() -> None:
    rows = np.array([[0.1], [0.2], [0.3], [1.4], [5.0], [9.0]], np.float32)
    # Cap ceil(2 * 1.3) = 3. Of group 0, whose centre is 0.5, item 3 lies farthest; of 5 and 9, 5 is nearer to it.
    assert balance_groups(rows, np.array([0, 0, 0, 0, 1, 2]), 3, 1.3, all_settled(rows)).tolist() == [0, 0, 0, 1, 1, 2]


def test_a_cap_that_is_a_whole_number_is_that_number() -> None:
    """1.1 times the mean of 10: in floats a little more than 11."""
    rows = np.random.default_rng(0).normal(size=[100, 4]).astype(np.float32)
    groups = np.minimum(np.arange(100), 9)
    assert np.bincount(balance_groups(rows, groups, 10, 1.1, all_settled(rows))).max() == 11


def test_sweep_prints_a_row_for_each_k(rows: np.ndarray, tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    with writing(workdir.item_groups.path, "item_groups", "f") as writer:
        of_brand = np.repeat(rows[:1], 500, axis=0)  # that side features have placed: no part of any fit
        np.save(writer.path / workdir.item_groups.embeddings.name, np.concatenate([rows, of_brand]))
        settled = pa.table({"settled": np.arange(3_500) < 3_000})
        pq.write_table(settled, writer.path / workdir.item_groups.groups.name)
    workdir.config.write_text("seed: 1\ngroups: {restarts: 3, fit_sample: 2000}\n")
    arguments = ["--workdir", str(tmp_path), "--k", "12,2", "--json", str(tmp_path / "new" / "sweep.json")]
    result = CliRunner().invoke(group_sweep.main, arguments)
    assert result.exit_code == 0 and len(result.output.splitlines()) == 3
    two, twelve = json.loads((tmp_path / "new" / "sweep.json").read_text())
    assert (two["num_groups"], twelve["num_groups"]) == (2, 12)
    assert twelve["explained"] > two["explained"] > 0 and two["largest"] >= 1 >= two["smallest"]
    assert twelve["inertia"] * 3_000 <= 1.02 * KMeans(12, n_init=4, random_state=1).fit(rows).inertia_
    own = sweep_row(rows, 12, GroupsConfig(restarts=3, fit_sample=2000), seed=1)
    assert twelve["inertia"] == own.inertia != sweep_row(rows, 12, GroupsConfig(), seed=0).inertia
    for ks in ("9000", "0,5", "5,ten", ""):
        refused = CliRunner().invoke(group_sweep.main, ["--workdir", str(tmp_path), "--k", ks])
        assert refused.exit_code == 2 and f"--k {ks}: give numbers from 1 to 3000" in refused.output
    elsewhere = CliRunner().invoke(group_sweep.main, ["--workdir", str(tmp_path / "elsewhere")])
    said = f"error: no artifact at {tmp_path / 'elsewhere' / 'item_groups'}: check the path"
    assert elsewhere.exit_code == 2 and elsewhere.output.startswith(said)
    aside = str(tmp_path / "new" / "sweep.json" / "sweep.json")
    refused = CliRunner().invoke(group_sweep.main, ["--workdir", str(tmp_path), "--k", "2", "--json", aside])
    assert (refused.exit_code, "--json" in refused.output, "inertia" in refused.output) == (2, True, False)


def test_balance_goes_by_the_centres_of_what_is_known() -> None:
    # Group 0 is around 11.5. Its rows of 0 are items without an embedding: counted, they would drive out 16. They go to
    # the two groups with room, one each.
    rows = np.float32([[9], [10], [11], [16], [0], [0], [20], [-30]])
    groups = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    assert balance_groups(rows, groups, 3, 1.5, all_settled(rows)).tolist() == [0, 0, 0, 0, 1, 2, 1, 2]
    # Nor do they decide which of the others goes, too: 6 is farthest from 10, 13 from 6.7.
    rows = np.float32([[6], [10], [11], [13], [0], [0], [-30], [20]])
    assert balance_groups(rows, groups, 3, 1.1, all_settled(rows)).tolist() == [2, 0, 0, 0, 1, 2, 1, 2]


def test_one_group_explains_nothing_of_very_many_items() -> None:
    """Sums of a column in float32 make a million items' variance .05% less than what they deviate."""
    rows = np.abs(np.random.default_rng(0).normal(size=(1_000_000, 3))).astype(np.float32) + np.float32(1)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert abs(sweep_row(rows, 1, GroupsConfig(fit_sample=200_000, restarts=1), 0).explained) < 1e-4


def test_a_sweep_over_items_that_are_all_the_same_explains_all() -> None:
    row = sweep_row(np.ones((20, 4), np.float32), 3, GroupsConfig(), 0)
    assert (row.inertia, row.explained) == (0, 1)


def test_the_fit_takes_one_thread_as_more_would_add_up_in_any_order() -> None:
    pools = "[pool['num_threads'] for pool in threadpoolctl.threadpool_info()]"
    code = f"import beam_jobs.grouping.kmeans, threadpoolctl; print({pools})"
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=True)
    threads = json.loads(done.stdout)
    assert len(threads) >= 2  # OpenBLAS and OpenMP
    assert set(threads) == {1}


def test_what_is_unknown_gives_way_to_what_is_known_and_is_dealt_out() -> None:
    """Rows of 0 are nearer to a centre than most of its own items, and nearest to one centre of all."""
    rng = np.random.default_rng(0)
    topics = np.repeat([0, 1, 2], [60, 20, 20])
    known = np.eye(3, 16)[topics] + rng.normal(0, 0.4, [100, 16])
    rows = np.concatenate([known / np.linalg.norm(known, axis=1, keepdims=True), np.zeros([80, 16])]).astype(np.float32)
    balanced = balance_groups(rows, np.concatenate([topics, np.zeros(80, int)]), 3, 1.1, all_settled(rows))
    assert balanced[:100].tolist() == topics.tolist()
    assert np.bincount(balanced[100:]).tolist() == [6, 37, 37]  # of at most 66 a group, group 0 has room for 6


def test_what_side_features_placed_gives_way_to_what_co_occurs() -> None:
    """Items without history gather close to a centre, whose own items lie around it; counted, they would be it."""
    # Group 0 is 2 to 6 around 4, of which none goes; of the six items at 5, the cap of ceil(13 / 2 * 1.3) = 9 leaves
    # 4 there, and two go to group 1. By distance to the mean of all, 4.5, items 2, 3 and 6 would go before any of them.
    rows = np.float32([[2], [3], [4], [5], [6], *[[5]] * 6, [20], [21]])
    groups, settled = np.array([0] * 11 + [1] * 2), np.array([True] * 5 + [False] * 6 + [True] * 2)
    balanced = balance_groups(rows, groups, 2, 1.3, settled)
    assert balanced[settled].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert np.bincount(balanced[~settled]).tolist() == [4, 2]


def test_a_group_that_nothing_settled_is_in_has_a_centre_all_the_same() -> None:
    # Of the five around 21, of which four may stay, 9 lies farthest.
    rows, settled = np.float32([[1], [9], [20], [31], [22], [23]]), np.array([True] + [False] * 5)
    assert balance_groups(rows, np.array([0, 1, 1, 1, 1, 1]), 2, 1.1, settled).tolist() == [0, 0, 1, 1, 1, 1]
