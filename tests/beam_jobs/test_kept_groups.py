"""Groups kept from run to run: who joins where, and when they are fitted anew."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics
from beam_jobs.features.side_features import read_side_features
from beam_jobs.grouping.kept_groups import cooccurrences_within, keep_groups
from beam_jobs.grouping.stable_groups import PreviousGroups
from contracts.artifact import read_manifest
from contracts.layout import Workdir
from tests.beam_jobs.helpers import community_log, make_config, read_groups


def write_block(path: Path, pairs: list[tuple[int, int, int]]) -> str:
    columns = zip(*pairs, strict=True)
    pq.write_table(pa.table(dict(zip(("row", "column", "weight"), map(list, columns), strict=True))), path)
    return str(path)


def previous_of(expected: float | None = None) -> PreviousGroups:
    """Items 0-1 are settled in group 0, 2-3 in group 1; 4 is in 0 by a hash; 5 and 6 are new."""
    embeddings = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], *[[0, 0]] * 3], np.float32)
    return PreviousGroups(
        of_item=np.array([0, 0, 1, 1, 0, -1, -1]),
        sizes=np.array([3, 2]),
        settled=np.array([True] * 4 + [False] * 3),
        embeddings=embeddings,
        centroids=np.eye(2, dtype=np.float32),
        expected_within=expected,
    )


FRESH = np.array([[0, 1], [-0.6, 0.8], [-1, 0], [-0.8, 0.6], [-1, 0], [-0.6, 0.8], [0, 0]], np.float32)
"""Items 0-3 as `previous_of` has them, turned by 90 degrees; 4 lies where 2 does, 5 where 1 does."""


def test_items_join_the_group_of_their_cooccurrence() -> None:
    ids = pa.array([str(item) for item in range(7)])
    found = keep_groups(previous_of(), FRESH, [], read_side_features(None, ids))
    # 4 leaves the group that a hash gave it, 5 is new, and nothing is known of 6.
    assert found.groups.tolist() == [0, 0, 1, 1, 1, 0, -1]
    assert found.settled.tolist() == [True] * 6 + [False]
    assert found.embeddings == pytest.approx(
        np.array([[1, 0], [0.8, 0.6], [0, 1], [0.6, 0.8], [0, 1], [0.8, 0.6], [0, 0]]), abs=1e-6
    )


def test_embeddings_follow_cooccurrence_slowly_and_settled_items_stay() -> None:
    """Items 0 and 3 change places, which no rotation can undo.

    By hand: the rotation R of fresh rows A onto old rows B maximises tr(R' A'B). With A = (.6, .8), (.8, .6), (0, 1),
    (1, 0) and B = (1, 0), (.8, .6), (0, 1), (.6, .8), A'B = ((1.84, 1.28), (1.28, 1.36)) is symmetric and positive
    definite, so R = 1. Item 0 goes to .75 (1, 0) + .25 (.6, .8) = (.9, .2), scaled; item 3 to (.7, .6), scaled.
    """
    fresh = np.array([[0.6, 0.8], [0.8, 0.6], [0, 1], [1, 0], *[[0, 0]] * 3], np.float32)
    found = keep_groups(previous_of(), fresh, [], read_side_features(None, pa.array([str(item) for item in range(7)])))
    assert found.groups.tolist() == [0, 0, 1, 1, 0, -1, -1]
    moved = np.array([[0.9, 0.2], [0.7, 0.6]])
    assert found.embeddings[[0, 3]] == pytest.approx(moved / np.linalg.norm(moved, axis=1, keepdims=True), abs=1e-6)
    assert found.embeddings[[1, 2]] == pytest.approx(previous_of().embeddings[[1, 2]], abs=1e-6)


def test_a_settled_item_that_no_longer_cooccurs_keeps_its_embedding() -> None:
    fresh = FRESH.copy()
    fresh[3] = 0
    found = keep_groups(previous_of(), fresh, [], read_side_features(None, pa.array([str(item) for item in range(7)])))
    assert found.embeddings[3].tolist() == previous_of().embeddings[3].tolist()
    assert found.settled[3] and found.groups[3] == 1


def test_an_item_that_nothing_tells_of_any_more_has_no_embedding_and_stays() -> None:
    """What side features told of it in an earlier run is not taken for what co-occurrence tells."""
    previous, fresh = previous_of(), FRESH.copy()
    previous.embeddings[4] = 0, 1
    fresh[4:] = 0
    found = keep_groups(previous, fresh, [], read_side_features(None, pa.array([str(item) for item in range(7)])))
    assert found.embeddings[4].tolist() == [0, 0]
    assert found.groups.tolist() == [0, 0, 1, 1, 0, -1, -1]


def test_drift_is_the_fall_of_cooccurrences_within_groups(tmp_path: Path) -> None:
    block = write_block(tmp_path / "block.parquet", [(0, 1, 30), (0, 2, 70)])
    side = read_side_features(None, pa.array([str(item) for item in range(7)]))
    nothing = np.zeros((7, 2), np.float32)
    found = keep_groups(previous_of(expected=0.5), nothing, [block], side)
    assert found.within == pytest.approx(0.3)
    assert found.drift == pytest.approx(0.4)
    assert found.as_json()["expected"] == 0.5
    assert keep_groups(previous_of(), nothing, [block], side).as_json()["expected"] == found.within
    assert keep_groups(previous_of(expected=0.2), nothing, [block], side).drift == 0
    assert keep_groups(previous_of(expected=0.0), nothing, [block], side).drift == 0  # there is nothing to fall from
    assert cooccurrences_within([], np.zeros(7, np.int64)) is None
    # Items that nothing places are in no group, so they are not in one with each other.
    assert cooccurrences_within([block], np.array([-1, -1, 0, 1, 1, 1, 1])) == 0


def day(folder: Path, log: Path, previous: Workdir | None, refit_drift: float = 0.1, **settings: float) -> Workdir:
    workdir = Workdir(folder)
    settings |= {"refit_drift": refit_drift}
    config = make_config(
        log, groups={"previous": None if previous is None else str(previous.item_groups.path), **settings}
    )
    for job in (ingest, statistics, groups):
        job.run(config, workdir, "f")
    return workdir


def drift_of(workdir: Workdir) -> dict[str, float]:
    found: dict[str, float] = read_manifest(workdir.item_groups.path).details["drift"]
    return found


def test_groups_are_kept_until_cooccurrence_has_moved(tmp_path: Path) -> None:
    """Two communities; then four items more in each; then users who mix everything."""
    first = day(tmp_path / "1", community_log(tmp_path / "1.parquet"), None)
    grown = day(tmp_path / "2", larger_log(tmp_path / "2.parquet"), first)
    before, after = read_groups(first), read_groups(grown)
    assert drift_of(grown)["kept"]
    assert drift_of(grown)["changed_share"] == 0
    assert {after[str(item)] for item in range(40, 44)} == {before["0"]}
    assert {after[str(item)] for item in range(44, 48)} == {before["20"]}
    mixed = pq.read_table(tmp_path / "2.parquet").to_pandas()
    mixed["user_id"] = np.random.default_rng(1).permutation(mixed["user_id"].to_numpy())
    mixed.to_parquet(tmp_path / "3.parquet")
    moved = day(tmp_path / "3", tmp_path / "3.parquet", grown)
    assert not drift_of(moved)["kept"]
    assert drift_of(moved)["drift"] > 0.3
    # A fit begins the measure anew, and refit_drift=0 fits each time.
    assert day(tmp_path / "4", tmp_path / "3.parquet", moved).item_groups.path.exists()
    assert not drift_of(day(tmp_path / "5", tmp_path / "2.parquet", first, refit_drift=0))["kept"]


@pytest.mark.parametrize(("new_items", "kept"), [(8, True), (14, True), (16, False)])
def test_groups_are_kept_as_long_as_none_outgrows_its_cap(new_items: int, kept: bool, tmp_path: Path) -> None:
    """New items all join group 0, of 20 of 40 items; of 54 items, ceil(1.25 * 27) = 34 are allowed, of 56 are 35."""
    first = day(tmp_path / "1", community_log(tmp_path / "1.parquet"), None, max_size_ratio=1.25)
    community_log(tmp_path / "2.parquet")
    table = pq.read_table(tmp_path / "2.parquet").to_pandas()
    of_even = np.flatnonzero(table["user_id"].astype(int) % 2 == 0)[::3]
    table.loc[of_even, "item_id"] = (40 + np.arange(len(of_even)) % new_items).astype(str)
    table.to_parquet(tmp_path / "2.parquet")
    second = day(tmp_path / "2", tmp_path / "2.parquet", first, max_size_ratio=1.25)
    assert drift_of(second)["kept"] == kept and drift_of(second)["drift"] == 0
    sizes = np.bincount(list(read_groups(second).values()))
    assert sizes.sum() == 40 + new_items and sizes.max() == min(20 + new_items, -(-5 * (40 + new_items) // 8))


def test_a_cap_that_is_a_whole_number_is_not_one_more_for_groups_that_are_kept(tmp_path: Path) -> None:
    """Of 50 items in two groups 1.12 * 25 = 28 are allowed, of floats 29: as many as group 0 has with 9 new items."""
    first = day(tmp_path / "1", community_log(tmp_path / "1.parquet"), None, max_size_ratio=1.12)
    table = pq.read_table(tmp_path / "1.parquet").to_pandas()
    is_odd = table["user_id"].astype(int).to_numpy() % 2 == 1
    of_even, of_odd = np.flatnonzero(~is_odd)[::3], np.flatnonzero(is_odd)[::9]
    table.loc[of_even, "item_id"] = (40 + np.arange(len(of_even)) % 9).astype(str)
    table.loc[of_odd, "item_id"] = "49"
    table.to_parquet(tmp_path / "2.parquet")
    second = day(tmp_path / "2", tmp_path / "2.parquet", first, max_size_ratio=1.12)
    assert drift_of(second)["drift"] == 0 and not drift_of(second)["kept"]
    assert sorted(np.bincount(list(read_groups(second).values())).tolist()) == [22, 28]


def test_a_group_whose_items_are_all_gone_is_fitted_anew(tmp_path: Path) -> None:
    first = day(tmp_path / "1", community_log(tmp_path / "1.parquet"), None)
    table = pq.read_table(tmp_path / "1.parquet")
    pq.write_table(table.filter(pa.array(table["user_id"].to_pandas().astype(int) % 2 == 0)), tmp_path / "2.parquet")
    second = day(tmp_path / "2", tmp_path / "2.parquet", first)
    assert not drift_of(second)["kept"] and drift_of(second)["drift"] == 0
    assert set(read_groups(second).values()) == {0, 1}


def larger_log(path: Path) -> Path:
    """The communities' log, and in every third event an item of four new ones of the user's community."""
    community_log(path)
    table = pq.read_table(path).to_pandas()
    new = 40 + 4 * (table["user_id"].astype(int) % 2) + np.arange(len(table)) % 4
    table.loc[::3, "item_id"] = new[::3].astype(str)
    table.to_parquet(path)
    return path
