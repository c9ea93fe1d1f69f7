"""Group ids across runs: matched by brute force over all namings, and through the whole job."""

import shutil
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import groups, ingest, statistics
from beam_jobs.features.side_features import read_side_features
from beam_jobs.grouping.categories import _start_of_parts, split_categories
from beam_jobs.grouping.embedding_blocks import blocks_of
from beam_jobs.grouping.item_embeddings import normalise_rows
from beam_jobs.grouping.kmeans import start_centroids
from beam_jobs.grouping.stable_groups import (
    CategoryShares,
    PreviousGroups,
    drift,
    fit_settings,
    kept_shares,
    match_groups,
    read_previous,
)
from contracts.artifact import read_manifest
from contracts.config import GroupsConfig
from contracts.layout import Workdir
from tests.beam_jobs.helpers import community_log, make_config, read_groups, write_log


def test_matching_keeps_the_most_weight_of_all_namings() -> None:
    rng = np.random.default_rng(0)
    now, before = rng.integers(-1, 5, 400), rng.integers(-1, 5, 400)
    # What has no group now, or had none, weighs most, and not the same of all old groups.
    weights = rng.random(400) ** 4 * np.where((now < 0) | (before < 0), 10 * (now + before + 3), 1)
    renamed = match_groups(now, before, weights, 5)
    stayed = weights[(renamed >= 0) & (renamed == before)].sum()
    best = max(
        weights[(now >= 0) & (np.array(naming)[now] == before) & (before >= 0)].sum()
        for naming in permutations(range(5))
    )
    assert stayed == pytest.approx(best)
    # The same partition: a name a group, and no name twice.
    assert len({(a, b) for a, b in zip(now.tolist(), renamed.tolist(), strict=True)}) == 6


def test_drift_by_hand() -> None:
    # Old: items 0-3 in group 0, item 4 in 1, and two items of 1 that are gone. New: item 3 moves to 1; item 5 is new.
    nothing = np.zeros((6, 1), np.float32)
    previous = PreviousGroups(np.array([0, 0, 0, 0, 1, -1]), np.array([4, 3]), np.ones(6, bool), nothing, nothing[:2])
    now, weights = np.array([0, 0, 0, 1, 1, 1]), np.array([1.0, 1.0, 1.0, 5.0, 2.0, 9.0])
    assert drift(now, previous, weights, 2) == {
        "shared_items": 5,
        "new_items": 1,
        "gone_items": 2,
        "changed_share": 0.2,
        "changed_weight": 0.5,  # 5 of 10
        "size_shift": pytest.approx(4 / 7 - 3 / 6, abs=1e-6),
    }
    assert kept_shares(now, previous, 2) == [0.75, 1.0]
    assert drift(now, previous, weights, 3) == drift(now, previous, weights, 2)  # a third group, empty as yet


@pytest.mark.parametrize(
    ("settings", "fits"),
    [
        ({}, True),
        ({"num_groups": 3}, False),
        ({"embedding_dim": 4}, False),
        ({"method": "category", "category": "genre"}, False),
    ],
)
def test_groups_of_another_shape_or_kind_are_not_kept(settings: dict[str, Any], fits: bool) -> None:
    embeddings = np.eye(2, dtype=np.float32)
    previous = PreviousGroups(np.array([0, 1]), np.array([1, 1]), np.array([True, False]), embeddings, embeddings)
    assert previous.fits(GroupsConfig(**{"num_groups": 2, "embedding_dim": 2, **settings})) == fits
    unsettled = replace(previous, settled=np.zeros(2, bool))
    assert not unsettled.fits(GroupsConfig(num_groups=2, embedding_dim=2))


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, []),
        ({"refit_drift": 0.2}, []),
        ({"restarts": 9}, ["groups.restarts"]),
        ({"cooccurrence_window": 1, "max_size_ratio": 1.9}, ["groups.cooccurrence_window", "groups.max_size_ratio"]),
    ],
)
def test_groups_that_other_settings_made_are_fitted_anew(
    settings: dict[str, Any], changed: list[str], runs: tuple[Workdir, Workdir], caplog: pytest.LogCaptureFixture
) -> None:
    """Were they kept, nobody would get what the config says before co-occurrence moves, and nobody would hear of it."""
    first, second = runs
    with caplog.at_level("INFO"):
        _groups(second, num_groups=2, previous=str(first.item_groups.path), **settings)
    found = read_manifest(second.item_groups.path).details
    assert (found["drift"]["kept"], found["drift"]["changed"]) == (not changed, changed)
    said = f"groups: {'fitted anew' if changed else 'kept'}, compared with {first.item_groups.path}: "
    assert f"{said}{found['drift']['new_items']} items new, {found['drift']['gone_items']} gone, " in caplog.text
    assert found["fit"] == fit_settings(make_config("unused", groups={"num_groups": 2, **settings}))


def test_groups_of_categories_are_not_kept_as_those_of_k_means() -> None:
    """What they lack of shape tells nothing; nor does the level whose events co-occur."""
    table = {"path": "unused", "id": "id", "features": [{"name": "genre", "kind": "categorical"}]}
    data = {"events": "unused", "item_features": table}
    of_genre, kmeans = (
        fit_settings(make_config("unused", data=data, groups=settings))
        for settings in ({"method": "category", "category": "genre"}, {})
    )
    levels = {"levels": ["click", "buy"], "flags": {"buy": "bought"}, "target_level": "buy"}
    of_purchases = fit_settings(make_config("unused", data={"events": "unused", "feedback": levels}))
    nothing = np.zeros((1, 1), np.float32)
    previous = PreviousGroups(np.array([0]), np.array([1]), np.ones(1, bool), nothing, nothing, fit=of_genre)
    assert previous.changed(of_genre) == []
    assert previous.changed(kmeans) == ["groups.category", "groups.method"]
    assert replace(previous, fit=kmeans).changed(of_purchases) == ["data.feedback.target_level"]
    assert replace(previous, fit={}).changed(kmeans) == []  # of an artifact of before they were written down


def test_descent_starts_where_the_old_groups_are_today() -> None:
    rows = np.array([[1.0], [3.0], [9.0], [5.0]], np.float32)
    started = start_centroids(rows, np.array([0, 0, 2, -1]), 3, seed=0)
    assert started[[0, 2], 0].tolist() == [2.0, 9.0]
    assert started[1, 0] in rows  # nobody of group 1 is left
    # More groups are left than there are items.
    assert start_centroids(rows[:1], np.array([-1]), 3, seed=0).tolist() == [[1.0]] * 3


def test_a_category_is_cut_where_it_was_cut_before() -> None:
    """A cloud without clusters can be cut in many ways. Day two has it turned round, a little elsewhere, and more."""
    rng = np.random.default_rng(2)
    rows = rng.uniform(size=(400, 2)).astype(np.float32)
    new = np.full(400, -1)
    first = split_categories(rows, np.ones(400, bool), np.zeros(400, np.int64), new, 6, 2, 1_000, seed=0)
    today = np.concatenate([rows + rng.normal(0, 0.005, (400, 2)), rng.uniform(size=(40, 2))]).astype(np.float32)[::-1]
    before = np.concatenate([first, new[:40]])[::-1]
    kept = {}
    for name, known in (("cut anew", np.full(440, -1)), ("cut where it was", before)):
        second = split_categories(today, np.ones(440, bool), np.repeat([1, 0], [20, 420]), known, 7, 2, 1_000, seed=0)
        kept[name] = np.mean(match_groups(second, before, np.ones(440), 7)[40:] == before[40:])
        assert set(second) == set(range(7))
    assert kept["cut anew"] < 0.8 and kept["cut where it was"] > 0.9
    one = split_categories(
        rows, np.ones(400, bool), np.zeros(400, np.int64), np.zeros(400, np.int64), 6, 2, 1_000, seed=0
    )
    assert one.tolist() == first.tolist()  # of what was one group, nothing is to be kept


def test_a_cut_starts_from_the_largest_old_parts() -> None:
    """Of old groups 7, 3 and 5 with one, three and four items, two parts; a new item is of none."""
    rows = np.array([[90], [10], [11], [12], [20], [21], [22], [23], [50]], np.float32)
    started = _start_of_parts(rows, np.array([7, 3, 3, 3, 5, 5, 5, 5, -1]), 2, seed=0)
    assert started is not None and sorted(started.ravel().tolist()) == [11, 21.5]


def _prepare(folder: Path, log: Path) -> Workdir:
    """A workdir whose groups job can run."""
    for job in (ingest, statistics):
        job.run(make_config(log), Workdir(folder), "f")
    return Workdir(folder)


def _groups(workdir: Workdir, **settings: object) -> dict[str, int]:
    groups.run(make_config("unused", groups=settings), workdir, "f")
    return read_groups(workdir)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workdir, Workdir]:
    """A finished run whose communities are items 0-19 and 20-39, and a later one with 0-21 and 22-43."""
    folder = tmp_path_factory.mktemp("runs")
    first = _prepare(folder / "first", community_log(folder / "a.parquet"))
    _groups(first, num_groups=2)
    return first, _prepare(folder / "second", community_log(folder / "b.parquet", num_items=44, seed=5))


@pytest.mark.parametrize("dim", [8, 6], ids=["same dim", "other dim"])
def test_a_second_run_keeps_the_ids(dim: int, runs: tuple[Workdir, Workdir]) -> None:
    first, second = runs
    # The mirror image of the old ids, so that equal ids cannot be luck.
    table = pq.read_table(first.item_groups.groups)
    table = table.set_column(1, "group_id", pa.array(1 - table["group_id"].to_numpy(), pa.int32()))
    pq.write_table(table, first.item_groups.groups)
    before = read_groups(first)
    after = _groups(second, num_groups=2, embedding_dim=dim, previous=str(first.item_groups.path))
    shared = before.keys() & after.keys()
    moved = {item for item in shared if after[item] != before[item]}
    assert moved <= {"20", "21"}  # which went over to the other community
    drifted = read_manifest(second.item_groups.path).details["drift"]
    assert drifted["shared_items"] == len(shared)
    assert drifted["changed_share"] == pytest.approx(len(moved) / len(shared), abs=1e-6)


def test_an_id_that_no_longer_exists_is_nobodys(runs: tuple[Workdir, Workdir]) -> None:
    first, second = runs
    after = _groups(second, num_groups=1, previous=str(first.item_groups.path))
    assert set(after.values()) == {0}


@pytest.mark.parametrize(("method", "num_groups"), [("category", 3), ("hybrid", 5)])
def test_categories_keep_their_ids_where_all_items_are_new(method: str, num_groups: int, tmp_path: Path) -> None:
    """As of news. Groups are made in the order of the categories' sizes, which the second day turns round."""
    groups_of: list[dict[str, set[int]]] = []
    previous = None
    for day, sizes in enumerate([{"sports": 30, "music": 20, "food": 10}, {"sports": 10, "music": 20, "food": 30}]):
        topics = [topic for topic, size in sizes.items() for _ in range(size)]
        (tmp_path / "items.csv").write_text("id,topic\n" + "".join(f"{day}-{i},{t}\n" for i, t in enumerate(topics)))
        lines = [f"u{user},{day}-{(user * 7 + place * 11) % 60},{place}" for user in range(60) for place in range(6)]
        features = [{"name": "topic", "kind": "categorical"}]
        table = {"path": str(tmp_path / "items.csv"), "id": "id", "features": features}
        settings = {"method": method, "category": "topic", "num_groups": num_groups, "previous": previous}
        config = make_config(
            write_log(tmp_path / "log.csv", lines),
            data={"events": str(tmp_path / "log.csv"), "item_features": table},
            groups=settings,
        )
        workdir = Workdir(tmp_path / f"day-{day}")
        for job in (ingest, statistics, groups):
            job.run(config, workdir, "f")
        found = pq.read_table(workdir.item_groups.groups).to_pylist()
        groups_of.append({t: {r["group_id"] for r in found if topics[int(r["item_id"][2:])] == t} for t in sizes})
        previous = str(workdir.item_groups.path)
    before, after = groups_of
    assert all(before[topic] & after[topic] for topic in before) and sum(map(len, after.values())) == num_groups


def test_a_category_that_is_gone_ends_no_retrain_and_gets_its_group_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where all items are new each day, as of news; the other categories keep their groups meanwhile."""
    groups_of: list[dict[str, set[int]]] = []
    previous = None
    for day, topics in enumerate((["sports", "music", "food"], ["food", "music"], ["food", "sports", "music"])):
        ids = [f"{day}-{place}" for place in range(30)]
        topic_of = {item: topics[place % len(topics)] for place, item in enumerate(ids)}
        (tmp_path / "items.csv").write_text("id,topic\n" + "".join(f"{item},{t}\n" for item, t in topic_of.items()))
        log = write_log(tmp_path / "log.csv", [f"u{(i * 7) % 30},{ids[i % 30]},{i}" for i in range(180)])
        workdir = _prepare(tmp_path / f"day-{day}", log)
        _groups_of_topics(workdir, tmp_path, num_groups=3, previous=previous)
        found = read_groups(workdir)
        groups_of.append({topic: {found[item] for item in ids if topic_of[item] == topic} for topic in topics})
        assert set(found.values()) == {0, 1, 2}
        previous = str(workdir.item_groups.path)
    first, without, again = groups_of
    [empty] = first["sports"]
    assert without["food"] - {empty} == first["food"] and without["music"] - {empty} == first["music"]
    assert again == first
    assert "groups.num_groups=3 is more than the number of values of groups.category='topic', 2: a group" in caplog.text
    # Another K is a mistake of the config, as before.
    with pytest.raises(ValueError, match=r"=4 is more than the number of values .*, 3: lower it"):
        _groups_of_topics(workdir, tmp_path, num_groups=4, previous=previous)


def _groups_of_topics(workdir: Workdir, folder: Path, **settings: object) -> None:
    table = {"path": str(folder / "items.csv"), "id": "id", "features": [{"name": "topic", "kind": "categorical"}]}
    sections = {"groups": {"method": "category", "category": "topic", **settings}, "data": {"item_features": table}}
    groups.run(make_config(folder / "log.csv", **sections), workdir, "g")


def test_ids_follow_what_is_seen_most_and_not_most_items(tmp_path: Path) -> None:
    """Item p has nearly all events. Today it is with most items of the other group, and under their old category."""
    lines = [f"u{user},p,{user}" for user in range(20)] + [f"v{item},{item},0" for item in "qrst"]
    log, found, previous = write_log(tmp_path / "log.csv", lines), [], None
    for number, topics in enumerate(("aabbb", "babba")):
        rows = "".join(f"{item},{topic}\n" for item, topic in zip("pqrst", topics, strict=True))
        items = tmp_path / f"{number}.csv"
        items.write_text("id,topic\n" + rows)
        table = {"path": str(items), "id": "id", "features": [{"name": "topic", "kind": "categorical"}]}
        settings = {"method": "category", "category": "topic", "previous": previous}
        workdir = Workdir(tmp_path / f"day-{number}")
        for job in (ingest, statistics, groups):
            job.run(make_config(log, data={"item_features": table}, groups=settings), workdir, "f")
        groups_table = pq.read_table(workdir.item_groups.groups).to_pylist()
        found.append({row["item_id"]: row["group_id"] for row in groups_table})
        previous = str(workdir.item_groups.path)
    before, after = found
    assert before["p"] == before["q"] != before["r"] == before["s"] == before["t"]
    assert [item for item, group in after.items() if group == before["p"]] == ["p", "r", "s"]


def test_new_items_count_as_the_old_ones_of_their_category() -> None:
    """Of four old items of category a, three were in group 1; group 2 is no more. d is a new category."""
    old = CategoryShares.of(pa.array(["a", "a", "a", "a", "b", None]), np.array([1, 1, 1, 0, 2, 2]), 3)
    found = old.overlap(pa.array(["a", "b", "a", "d", None]), np.array([0, 0, 1, 1, 1]), np.array([8.0, 5, 4, 9, 9]), 2)
    assert found.tolist() == [[2, 6], [1, 3]]
    found = old.overlap(pa.array(["b", "b"]), np.array([0, -1]), np.array([5.0, 7.0]), 4)
    assert found.tolist() == [[0, 0, 5, 0], *[[0] * 4] * 3]


def test_an_item_of_which_nothing_is_known_stays_where_it_was(tmp_path: Path) -> None:
    workdir = _prepare(tmp_path / "run", write_log(tmp_path / "log.csv", [f"u{i},i{i},{i}" for i in range(30)]))
    _groups(workdir, num_groups=3)
    # Where a hash would not put them again.
    table = pq.read_table(workdir.item_groups.groups)
    before = (table["group_id"].to_numpy() + 1) % 3
    pq.write_table(table.set_column(1, "group_id", pa.array(before, pa.int32())), workdir.item_groups.groups)
    after = _groups(workdir, num_groups=3, previous=str(workdir.item_groups.path))
    assert list(after.values()) == before.tolist() and set(before.tolist()) == {0, 1, 2}


def test_a_refit_descends_from_the_old_groups(tmp_path: Path) -> None:
    """A cloud without clusters can be parted in many ways; of another seed, and a little elsewhere, it is as before."""
    cloud = np.random.default_rng(0).normal(size=(600, 3))
    ids = pa.array([str(item) for item in range(600)])

    def parted(rows: np.ndarray, seed: int, previous: PreviousGroups | None) -> np.ndarray:
        folder = tmp_path / f"{seed}-{previous is None}"
        folder.mkdir()
        rows = normalise_rows(rows)
        np.save(folder / "rows.npy", rows)
        side = read_side_features(None, ids)
        blocks = blocks_of(folder / "rows.npy", len(rows))
        items = groups.Items(ids, np.ones(len(rows)), None)
        known = np.ones(len(rows), bool)
        embedded = groups.EmbeddedItems(rows, known, known, blocks, side, items)
        return groups.partition(make_config("unused", groups={"num_groups": 9}, seed=seed), embedded, previous, folder)

    first = parted(cloud, 0, None)
    nothing = np.zeros((600, 3), np.float32)
    previous = PreviousGroups(first, np.bincount(first), np.ones(600, bool), nothing, nothing[:9])
    moved = cloud + 0.01 * np.random.default_rng(1).normal(size=cloud.shape)
    assert np.mean(parted(moved, 1, previous) == first) > 0.95
    cold = parted(moved, 1, None)
    assert np.mean(match_groups(cold, first, np.ones(600), 9) == first) < 0.9


def test_previous_groups_are_read_by_id(runs: tuple[Workdir, Workdir], tmp_path: Path) -> None:
    """Of items that are gone, in another order, and beside a new one; every third was placed by its side features."""
    artifact = Workdir(tmp_path).item_groups
    shutil.copytree(runs[0].item_groups.path, artifact.path)
    table = pq.read_table(artifact.groups)
    settled = np.arange(len(table)) % 3 > 0
    at = table.column_names.index("settled")
    pq.write_table(table.set_column(at, "settled", pa.array(settled)), artifact.groups)
    old = {row["item_id"]: place for place, row in enumerate(table.to_pylist())}
    embeddings, of_old = np.load(artifact.embeddings), table["group_id"].to_numpy()
    ids = ["new", *list(old)[:4:-1]]
    found = read_previous(str(artifact.path), pa.array(ids))
    assert found is not None
    assert found.of_item.tolist() == [-1, *(of_old[old[item]] for item in ids[1:])]
    assert found.settled.tolist() == [False, *(settled[old[item]] for item in ids[1:])]
    assert found.embeddings.tolist() == [[0] * 8, *(embeddings[old[item]].tolist() for item in ids[1:])]
    assert found.sizes.tolist() == np.bincount(of_old).tolist()
    pq.write_table(table.drop_columns("settled"), artifact.groups)  # as of version 0.1.0
    older = read_previous(str(artifact.path), pa.array(ids))
    assert older is not None
    assert older.settled.tolist() == [False, *([True] * (len(ids) - 1))]


def test_previous_must_be_groups(runs: tuple[Workdir, Workdir], tmp_path: Path) -> None:
    first, second = runs
    with pytest.raises(
        ValueError, match=r"groups\.previous: .*holds events, not item_groups: .* groups\.previous=null"
    ):
        _groups(second, previous=str(first.events.path))
    with pytest.raises(ValueError, match=r"groups\.previous: no artifact at .*nothing"):
        _groups(second, previous=str(tmp_path / "nothing"))
