"""Per-group indexes against brute force, through the graph ops that a servable holds."""

import inspect
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import ServingConfig
from serving.export import require_sound
from serving.search import exact_index_set
from serving.search.exact_index_set import ExactIndexSet
from serving.search.group_index import GroupIndex, build_group_index, choose_structure, index_fingerprint
from serving.search.group_search import GroupResults
from serving.search.index_tuning import SearchPoint
from serving.search.scann_index_set import ScannIndexSet

ROOT = Path(__file__).parents[2]
DIM = 16
SERVING = ServingConfig(num_candidates=50)
TUNING_QUERIES = 128


def clustered(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, [max(1, size // 100), DIM])
    return (centres[rng.integers(0, len(centres), size)] + rng.normal(0, 0.4, [size, DIM])).astype(np.float32)


def build(size: int, group_id: int = 0) -> tuple[GroupIndex, np.ndarray, np.ndarray]:
    items = clustered(size)
    rng = np.random.default_rng(1)
    num_queries = TUNING_QUERIES + 512
    queries = (items[rng.integers(0, size, num_queries)] + rng.normal(0, 0.3, [num_queries, DIM])).astype(np.float32)
    return build_group_index(group_id, items, queries[:TUNING_QUERIES], SERVING), items, queries[TUNING_QUERIES:]


def search(
    index_set: ScannIndexSet | ExactIndexSet, queries: np.ndarray, wanted: list, offset: np.ndarray | float = 0.0
) -> GroupResults:
    """`wanted` of each group by every row, or of each row and group, and what is added to its scores."""
    offset, wanted = (np.broadcast_to(of, queries.shape[:2]) for of in (offset, wanted))
    return index_set.search(tf.constant(queries), tf.constant(offset, tf.float32), tf.constant(wanted, tf.int32))


@pytest.mark.parametrize(
    ("size", "structure"),
    [
        pytest.param(1, "brute_force", id="one item"),
        pytest.param(7, "brute_force", id="tiny"),
        pytest.param(1_000, "brute_force", id="brute force at its largest"),
        pytest.param(1_001, "tree_hashing_int8", id="hashing at its smallest"),
        pytest.param(10_001, "tree_hashing_int8", id="hashing"),
    ],
)
def test_recall_on_queries_that_tuning_did_not_see(size, structure):
    index, items, queries = build(size)
    assert index.structure == structure == choose_structure(size, SERVING)
    assert [point.k for point in index.points][-1] == min(50, size)
    # Of 8 bits, a single point may be a little below: half of what the target allows to miss is left to them.
    assert np.mean([point.recall for point in index.points]) >= SERVING.recall_target
    assert min(point.recall for point in index.points) >= SERVING.recall_target - (1 - SERVING.recall_target) / 2
    k = min(50, size)
    index_set = ScannIndexSet([index], num_groups=1)
    found = search(index_set, queries[:, None], [k])
    exact = queries @ items.T
    rows = found.slots.numpy() - 1
    assert rows.shape == (512, k)
    scored = np.take_along_axis(exact, rows, axis=1)
    # Half a step of 8 bits in each dimension, where they are used.
    allowed = (np.abs(queries) @ np.abs(items).max(axis=0) / 254)[:, None] * structure.endswith("int8")
    assert (np.abs(found.scores - scored) <= allowed + 1e-4 * np.maximum(1, np.abs(scored))).all()
    kth = -np.sort(-exact, axis=1)[:, k - 1 : k]
    # Shares vary by .06 from query to query, so by .006 over 128 and .003 over 512, and ScaNN's trees vary from
    # build to build: 3 points are more than four standard errors.
    assert np.mean(scored >= kth - 1e-4) >= SERVING.recall_target - 0.03


@pytest.mark.parametrize("size", [1_500, 10_001])
def test_as_many_results_as_asked_for(size):
    """More than the searched leaves would hold: every item comes back, once."""
    index, _, queries = build(size)
    index_set = ScannIndexSet([index], num_groups=1)
    for k in (1, 700, size, size + 5):
        for rows in (3, 1):
            found = search(index_set, queries[:rows, None], [k])
            assert found.slots.shape == (rows, min(k, size))
            assert np.isfinite(found.scores).all()
            assert len(set(found.slots.numpy()[0].tolist())) == min(k, size)


def test_groups_do_not_answer_for_each_other_and_empty_ones_are_skipped():
    built = [
        build_group_index(group, clustered(size, group), clustered(8), SERVING) for group, size in ((0, 40), (2, 9))
    ]
    index_set = ScannIndexSet(built, num_groups=4)
    assert index_set.group_sizes.tolist() == [40, 0, 9, 0]
    queries = np.random.default_rng(3).normal(size=[2, 4, DIM]).astype(np.float32)
    found = search(index_set, queries, [5, 0, 99, 7])
    assert found.group.numpy().tolist() == [[0] * 5 + [2] * 9] * 2
    assert found.starts.numpy()[:, [0, 2]].tolist() == [[0, 5]] * 2
    expected = 1 + np.argsort(-(queries[:, 0] @ clustered(40, 0).T), axis=1)[:, :5]
    assert found.slots.numpy()[:, :5].tolist() == expected.tolist()
    expected = 41 + np.argsort(-(queries[:, 2] @ clustered(9, 2).T), axis=1)
    assert found.slots.numpy()[:, 5:].tolist() == expected.tolist()


def test_a_group_is_searched_as_it_was_tuned_and_wide_enough_for_what_is_wanted():
    """Whatever leaves a query is near to, so many hold k items; and for `typical` ones it looks as far as was tuned.

    For results that nobody wants, `typical` is 0, and it looks no further than it must.
    """
    built = [build(1_001, 0)[0], build(1_500, 1)[0]]
    index_set = ScannIndexSet(built, num_groups=2)
    for k in index_set._steps[1::9].tolist():
        for typical in (0, 1, k):
            numbers = [tf.constant([number, number]) for number in (k, typical)]
            found = np.array(index_set._searches(np.arange(2, dtype=np.int32), *numbers))
            for index, (leaves, reorder) in zip(built, found.T.tolist(), strict=True):
                smallest, most, of = np.sort(index.leaf_sizes), min(k, index.size), min(typical, index.size)
                enough = next(n for n in range(1, len(smallest) + 1) if smallest[:n].sum() >= most)
                ks = [point.k for point in index.points]
                beyond = max(1, of / ks[-1])
                tuned = [
                    int(np.ceil(beyond * np.interp(of, ks, values) - 1e-6)) * (typical > 0)
                    for values in ([p.leaves for p in index.points], [p.reorder for p in index.points])
                ]
                assert leaves == min(len(smallest), max(enough, tuned[0]))
                assert reorder == min(index.size, max(most, tuned[1]))


@pytest.mark.parametrize("kind", ["scann", "exact", "exact in parts"])
@pytest.mark.parametrize("rows", [5, 1])
@pytest.mark.parametrize("seed", range(5))
def test_each_row_gets_what_it_wants_of_each_group(kind, rows, seed, monkeypatch):
    """Ragged wishes, groups that nobody asks, an empty group: against brute force, row by row."""
    if kind == "exact in parts":
        monkeypatch.setattr(exact_index_set, "_ITEMS_AT_ONCE", 60)  # of 235: those of a large catalogue go beyond it
    rng = np.random.default_rng(seed)
    sizes = [40, 0, 9, 120, 1, 30, 7, 20, 8]
    num_groups = len(sizes)
    items = [clustered(size, group) for group, size in enumerate(sizes)]
    offsets = np.cumsum([1, *sizes[:-1]])
    members = [np.arange(start, start + size, dtype=np.int32) for start, size in zip(offsets, sizes, strict=True)]
    if kind == "scann":
        built = [build_group_index(g, items[g], clustered(8), SERVING) for g in np.flatnonzero(sizes).tolist()]
        index_set: ScannIndexSet | ExactIndexSet = ScannIndexSet(built, num_groups)
    else:
        index_set = ExactIndexSet(np.concatenate([np.zeros([1, DIM], np.float32), *items]), members)
    queries = rng.normal(size=[rows, num_groups, DIM]).astype(np.float32)
    # One row may ask for few of the groups.
    share = 0.2 if rows == 1 and seed % 2 else 0.6
    wanted = rng.integers(0, 60, [rows, num_groups]) * (rng.random([rows, num_groups]) < share)
    wanted *= rng.random(num_groups) < 0.7
    offset = rng.normal(size=[rows, num_groups]).astype(np.float32)
    found = search(index_set, queries, wanted, offset)
    for row in range(rows):
        slots, in_row = found.slots.numpy()[row], 0
        for group, size in enumerate(sizes):
            scores = queries[row, group] @ items[group].T + offset[row, group]
            best = np.argsort(-scores)[: min(wanted[row, group], size)]
            columns = slice(found.starts.numpy()[row, group], found.starts.numpy()[row, group] + len(best))
            assert slots[columns].tolist() == (offsets[group] + best).tolist()
            np.testing.assert_allclose(found.scores.numpy()[row, columns], scores[best], rtol=1e-5, atol=1e-5)
            assert (found.group.numpy()[row, columns] == group).all()
            in_row += len(best)
        present = np.isfinite(found.scores.numpy()[row])
        assert present.sum() == in_row
        # A single row's groups are searched one after the other, those that it does not ask for, too.
        assert present.tolist() == sorted(present, reverse=True) or (kind, rows) == ("scann", 1)


@pytest.mark.parametrize("size", [600, 4_096, 5_001])
@pytest.mark.parametrize("k", [1, 2, 60, 70, 590, 4_000])
@pytest.mark.parametrize("rows", [1, 3])
def test_the_best_of_a_large_group(rows, size, k):
    """Few and many blocks of it, sizes with and without a block cut short; scores below zero, a row that wants less.

    Beside it is a group as large, of which nobody wants anything.
    """
    k = min(k, size)
    items = np.concatenate([np.zeros([1, DIM], np.float32), clustered(2 * size)])
    items[:, -1] = -30.0
    queries = np.abs(clustered(2 * rows, seed=9)).reshape(rows, 2, DIM)
    index_set = ExactIndexSet(items, np.split(np.arange(1, 2 * size + 1, dtype=np.int32), 2))
    wanted = [k, k, 1][:rows]
    found = search(index_set, queries, [[one, 0] for one in wanted])
    for row, number in enumerate(wanted):
        scores, slots = queries[row, 0] @ items.T, found.slots.numpy()[row, :number]
        assert len(set(slots.tolist()) & set(range(1, size + 1))) == number
        np.testing.assert_allclose(scores[slots], np.sort(scores[1 : size + 1])[::-1][:number], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found.scores[row, :number], scores[slots], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("size", "k"), [(700, 5), (5_001, 10), (5_001, 3_000), (40_000, 64)])
def test_of_equal_scores_the_first_items_are_the_best_alone_and_in_a_batch(size, k):
    """Items without training events share a vector."""
    rng = np.random.default_rng(size)
    items = np.concatenate([np.zeros([1, DIM]), rng.integers(-1, 2, [size, DIM]) * (rng.random([size, 1]) < 0.4)])
    items = items.astype(np.float32)
    index_set = ExactIndexSet(items, [np.arange(1, size + 1, dtype=np.int32)])
    queries = rng.integers(-1, 2, [3, 1, DIM]).astype(np.float32)
    together = search(index_set, queries, [k])
    for row in range(3):
        best = np.argsort(-(queries[row, 0] @ items[1:].T), kind="stable")[:k] + 1
        alone = search(index_set, queries[row : row + 1], [k])
        assert alone.slots.numpy()[0, :k].tolist() == together.slots.numpy()[row, :k].tolist() == best.tolist()


@pytest.mark.parametrize("groups", [2, 12], ids=["all groups searched", "a few"])
def test_of_a_group_that_a_row_does_not_ask_for_there_is_no_result(groups):
    built = [build(50, group)[0] for group in range(groups)]
    found = search(ScannIndexSet(built, groups), clustered(groups)[None], [3, *[0] * (groups - 1)])
    finite = np.isfinite(found.scores.numpy())
    assert finite.sum() == 3
    assert set(found.group.numpy()[finite]) == {0}


@pytest.mark.parametrize("size", [600, 5_001])
@pytest.mark.parametrize("rows", [1, 3])
def test_scores_that_overflow_are_no_results(rows, size):
    """A feature far out of range may make a query so long; the rows beside it are answered as ever."""
    items = np.concatenate([np.zeros([1, DIM], np.float32), clustered(size)])
    queries = clustered(rows, seed=9)
    queries[0] = 3e38
    found = search(ExactIndexSet(items, [np.arange(1, size + 1, dtype=np.int32)]), queries[:, None], [20])
    assert not np.isfinite(found.scores[0]).any()
    for row in range(1, rows):
        np.testing.assert_allclose(found.scores[row], np.sort(queries[row] @ items[1:].T)[::-1][:20], rtol=1e-4)


def test_an_empty_group_cannot_be_indexed():
    with pytest.raises(ValueError, match="group 3 is empty"):
        build_group_index(3, np.zeros([0, DIM], np.float32), np.zeros([1, DIM], np.float32), SERVING)


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 1e19])
def test_an_item_that_cannot_be_ranked_is_named(trained, value):
    """By ScaNN the process would end, and by `exact` good items would be lost beside it."""
    embeddings = np.ones([trained.catalogue.num_items + 1, DIM], np.float32)
    require_sound(embeddings, trained.catalogue)
    for number, items in enumerate(([3], [3, 5]), 1):
        embeddings[items, 1] = value
        said = f"of {number} of {trained.catalogue.num_items} items .*e.g. that of '{trained.catalogue.item_ids[2]}'"
        with pytest.raises(ValueError, match=said):
            require_sound(embeddings, trained.catalogue)


def test_vectors_that_8_bits_do_not_tell_apart_are_scored_as_they_are():
    """Half a step of 8 bits is .4 here, the items differ by .01: scores by 8 bits find one in ten of the best."""
    rng = np.random.default_rng(4)
    items = (rng.choice([-100.0, 100.0], [1_200, DIM]) + rng.normal(0, 0.01, [1_200, DIM])).astype(np.float32)
    items[:, 0] = 100.0 + rng.normal(0, 0.01, 1_200)
    queries = np.eye(DIM, dtype=np.float32)[:1].repeat(64, axis=0)
    index = build_group_index(0, items, queries, SERVING)
    assert index.structure == "tree_hashing" != choose_structure(len(items), SERVING)
    found = search(ScannIndexSet([index], num_groups=1), queries[:1, None], [50])
    best = np.argsort(-items[:, 0])[:50]
    assert len(np.intersect1d(best, found.slots.numpy()[0] - 1)) >= 40  # of the target's 47.5: scores nearly tie


@pytest.mark.parametrize(
    ("recalls", "structure"),
    [
        pytest.param((0.90, 0.96), "tree_hashing", id="one search reaches .95, their mean does not"),
        pytest.param((0.94, 0.97), "tree_hashing_int8", id="their mean reaches it, one search does not"),
    ],
)
def test_8_bits_stay_if_the_mean_search_reaches_the_target(recalls, structure, monkeypatch):
    points = tuple(SearchPoint(k, 1, k, recall) for k, recall in zip((2, 50), recalls, strict=True))
    monkeypatch.setattr("serving.search.group_index.tuned_searches", lambda *_: points)
    items = clustered(1_001)
    assert build_group_index(0, items, items[:4], SERVING).structure == structure


def test_identical_items_are_all_found():
    """A catalogue of cold items has many equal vectors: leaves are uneven, recall is judged by score."""
    items = np.ones([1_200, DIM], np.float32)
    index = build_group_index(0, items, items[:4], SERVING)
    index_set = ScannIndexSet([index], num_groups=1)
    found = search(index_set, items[:1, None], [600])
    assert len(set(found.slots.numpy()[0].tolist())) == 600


@pytest.mark.parametrize("size", [15, 16, 17])
def test_few_items_below_no_threshold_are_still_found(size):
    # ScaNN does not learn hashes from fewer than 16 items: the build ended in its error.
    serving = ServingConfig(brute_force_max_items=1)
    items = clustered(size)
    index = build_group_index(0, items, items, serving)
    found = search(ScannIndexSet([index], 1), items[:, None], [size])
    np.testing.assert_array_equal(np.sort(found.slots.numpy()), np.broadcast_to(np.arange(1, size + 1), [size, size]))


def test_another_scann_or_other_code_builds_anew(monkeypatch):
    """A version's tensors are what the ScaNN of its time serialised, and its points what that code tuned."""
    vectors = clustered(20)
    found = [build_group_index(0, vectors, vectors, SERVING).fingerprint]
    assert index_fingerprint(vectors.copy(), SERVING) == found[0]
    with monkeypatch.context() as patch:
        patch.setattr(metadata, "version", lambda name: {"scann": "9.9"}[name])
        found.append(index_fingerprint(vectors, SERVING))
    folders: list[str] = []
    monkeypatch.setattr("serving.search.group_index.code_of", lambda *folder: folders.extend(folder) or "other")
    found.append(index_fingerprint(vectors, SERVING))
    assert len(set(found)) == 3
    built_by = Path(inspect.getfile(build_group_index))
    assert [built_by.is_relative_to(ROOT / folder) for folder in folders] == [True]


def test_an_index_of_other_dimensions_is_another():
    zeros = np.zeros([16, 4], np.float32)
    assert index_fingerprint(zeros, SERVING) != index_fingerprint(zeros.reshape(8, 8), SERVING)
