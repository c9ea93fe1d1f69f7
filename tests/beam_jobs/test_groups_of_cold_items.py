"""Groups are fitted to what co-occurs: items that only side features place join them, and make none."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from beam_jobs import groups
from beam_jobs.features.side_features import SideColumns, read_side_features
from beam_jobs.grouping.categories import split_categories
from beam_jobs.grouping.cold_items import embed_cold
from beam_jobs.grouping.embedding_blocks import blocks_of
from beam_jobs.grouping.item_embeddings import normalise_rows
from beam_jobs.grouping.stable_groups import PreviousGroups
from beam_jobs.groups import EmbeddedItems, Items
from tests.beam_jobs.helpers import make_config

NUM_SETTLED, NUM_COLD, NUM_GROUPS = 400, 1_200, 8


def parted(rows: np.ndarray, settled: np.ndarray, folder: Path, previous: PreviousGroups | None = None, **settings):
    """Groups of rows [num_items, dim], all of which are placed."""
    np.save(folder / "rows.npy", rows)
    ids = pa.array([str(item) for item in range(len(rows))])
    items = Items(ids, np.ones(len(rows)), None)
    blocks = blocks_of(folder / "rows.npy", len(rows))
    side = read_side_features(None, ids)
    embedded = EmbeddedItems(rows, np.ones(len(rows), bool), settled, blocks, side, items)
    config = make_config("unused", groups={"num_groups": NUM_GROUPS, **settings})
    return groups.partition(config, embedded, previous, folder)


@pytest.mark.parametrize("fit", ["sample", "distributed"])
def test_cold_items_join_groups_and_make_none(fit: str, tmp_path: Path) -> None:
    """Each of 60 brands leads 20 cold items to one point: by inertia alone, most groups would be of brands."""
    blobs, topic = make_blobs(NUM_SETTLED, 8, centers=NUM_GROUPS, cluster_std=0.5, random_state=1)
    brands = np.random.default_rng(0).normal(size=(60, 8))
    rows = normalise_rows(np.concatenate([blobs, np.repeat(brands, NUM_COLD // 60, axis=0)]))
    settled = np.arange(len(rows)) < NUM_SETTLED
    found = parted(rows, settled, tmp_path, fit=fit)
    assert adjusted_rand_score(found[settled], topic) > 0.99
    of_all = KMeans(NUM_GROUPS, n_init=4, random_state=0).fit(rows).labels_
    assert adjusted_rand_score(of_all[settled], topic) < 0.9  # what a fit of all items comes to
    centers = np.stack([rows[settled & (found == group)].mean(axis=0) for group in range(NUM_GROUPS)])
    away = ((rows[~settled, None] - centers) ** 2).sum(-1)
    np.testing.assert_allclose(away[np.arange(NUM_COLD), found[~settled]], away.min(axis=1), atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.npy"]


@pytest.mark.parametrize("before", [2, 3, 40])
def test_of_another_number_of_groups_the_fit_is_a_fresh_one_under_the_old_ids(before: int, tmp_path: Path) -> None:
    """From the old groups, one descent leaves most items in one group, or some groups with an item each."""
    blobs, _ = make_blobs(2_000, 8, centers=40, cluster_std=0.3, random_state=2)
    rows = normalise_rows(blobs)
    old = KMeans(before, n_init=2, random_state=0).fit(rows).labels_.astype(np.int64)
    previous = PreviousGroups(old, np.bincount(old), np.ones(2_000, bool), rows, rows[:before])
    found = parted(rows, np.ones(2_000, bool), tmp_path, previous)
    fresh = parted(rows, np.ones(2_000, bool), tmp_path)
    assert adjusted_rand_score(found, fresh) == 1
    # Of all ways to name the groups by the old ones, none keeps more items.
    overlap = np.zeros((NUM_GROUPS, max(before, NUM_GROUPS)))
    np.add.at(overlap, (fresh, old), 1)
    assert (found == old).sum() == overlap[:, :NUM_GROUPS][linear_sum_assignment(-overlap[:, :NUM_GROUPS])].sum()


def test_a_category_is_cut_by_what_co_occurs() -> None:
    """Category 0 has 100 settled items at 0 and 1, and 1,000 cold ones at 5; category 1 has 60 settled ones at 9."""
    rows = np.repeat([0.0, 1.0, 5.0, 9.0], [50, 50, 1_000, 60]).astype(np.float32)[:, None]
    settled = np.repeat([True, False, True], [100, 1_000, 60])
    categories = np.repeat([0, 1], [1_100, 60])
    parts = split_categories(rows, settled, categories, np.full(1_160, -1), 3, 2, 2_000, seed=0)
    zeros, ones, cold, others = (set(part.tolist()) for part in np.split(parts, [50, 100, 1_100]))
    assert zeros != ones == cold and len(zeros) == len(ones) == len(others) == 1 and others == {2}


def test_side_features_that_no_settled_item_has_lead_nowhere() -> None:
    """Items 0-2 co-occur, of brands 0, 0 and 1; 3 is of brand 1, 4 of a brand of its own, 5 has but a number."""
    embeddings = np.array([[1, 0], [1, 0], [0, 1], [0, 0], [0, 0], [0, 0]], np.float32)
    brands = sp.csr_matrix(np.eye(4, 3, dtype=np.float32)[[0, 0, 1, 1, 2, 3]])
    number = np.array([[np.nan]] * 4 + [[1.0], [3.0]], np.float32)
    found, placed = embed_cold(embeddings, SideColumns(brands, [number]))
    assert placed.tolist() == [True, True, True, True, False, False]
    assert found[3, 1] > found[3, 0] and not found[4:].any()
    _, placed = embed_cold(embeddings, SideColumns(brands, [np.arange(6, dtype=np.float32)[:, None]]))
    assert placed.all()  # of a number that settled ones have, too
