"""Per-group indexes against brute force, through the graph ops that a servable holds."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import ServingConfig
from serving.group_index import GroupIndex, build_group_index, choose_structure
from serving.index_set import ScannIndexSet

DIM = 16
SERVING = ServingConfig(num_candidates=50)


def clustered(size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, [max(1, size // 100), DIM])
    return (centres[rng.integers(0, len(centres), size)] + rng.normal(0, 0.4, [size, DIM])).astype(np.float32)


def build(size: int, group_id: int = 0) -> tuple[GroupIndex, np.ndarray, np.ndarray]:
    items = clustered(size)
    rng = np.random.default_rng(1)
    queries = (items[rng.integers(0, size, 64)] + rng.normal(0, 0.3, [64, DIM])).astype(np.float32)
    return build_group_index(group_id, items, queries[:32], SERVING), items, queries[32:]


@pytest.mark.parametrize(
    ("size", "structure"),
    [
        pytest.param(1, "brute_force", id="one item"),
        pytest.param(7, "brute_force", id="tiny"),
        pytest.param(1_000, "brute_force", id="brute force at its largest"),
        pytest.param(1_001, "tree", id="tree at its smallest"),
        pytest.param(10_001, "tree_hashing", id="hashing"),
    ],
)
def test_recall_on_queries_that_tuning_did_not_see(size, structure):
    index, items, queries = build(size)
    assert index.structure == structure == choose_structure(size, SERVING)
    assert min(index.parameters.recall.values()) >= SERVING.recall_target
    k = min(50, size)
    index_set = ScannIndexSet([index], [np.arange(1, size + 1, dtype=np.int32)], num_groups=1)
    found = index_set.search(tf.constant(queries[:, None]), tf.constant([k]))
    exact = queries @ items.T
    rows = found.item_index.numpy() - 1
    assert rows.shape == (32, k)
    np.testing.assert_allclose(found.scores, np.take_along_axis(exact, rows, axis=1), rtol=1e-4, atol=1e-4)
    kth = -np.sort(-exact, axis=1)[:, k - 1 : k]
    # Other queries than the tuned-on ones: a sampling allowance of 3 points.
    assert np.mean(found.scores.numpy() >= kth - 1e-4) >= SERVING.recall_target - 0.03


@pytest.mark.parametrize("size", [1_500, 10_001])
def test_as_many_results_as_asked_for(size):
    """More than the searched leaves would hold: every item comes back, once."""
    index, _, queries = build(size)
    index_set = ScannIndexSet([index], [np.arange(size, dtype=np.int32)], num_groups=1)
    for k in (1, 700, size, size + 5):
        found = index_set.search(tf.constant(queries[:3, None]), tf.constant([k]))
        assert found.item_index.shape == (3, min(k, size))
        assert np.isfinite(found.scores).all()
        assert len(set(found.item_index.numpy()[0].tolist())) == min(k, size)


def test_groups_do_not_answer_for_each_other_and_empty_ones_are_skipped():
    built = [
        build_group_index(group, clustered(size, group), clustered(8), SERVING) for group, size in ((0, 40), (2, 9))
    ]
    index_set = ScannIndexSet(built, [np.arange(40, dtype=np.int32), np.arange(100, 109, dtype=np.int32)], num_groups=4)
    assert index_set.group_sizes.tolist() == [40, 0, 9, 0]
    queries = np.random.default_rng(3).normal(size=[2, 4, DIM]).astype(np.float32)
    found = index_set.search(tf.constant(queries), tf.constant([5, 0, 9, 7]))
    assert found.column_group.numpy().tolist() == [0] * 5 + [2] * 9
    expected = np.argsort(-(queries[:, 0] @ clustered(40, 0).T), axis=1)[:, :5]
    assert found.item_index.numpy()[:, :5].tolist() == expected.tolist()
    expected = 100 + np.argsort(-(queries[:, 2] @ clustered(9, 2).T), axis=1)
    assert found.item_index.numpy()[:, 5:].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("items", "message"),
    [
        pytest.param(np.zeros([0, DIM], np.float32), "group 3 is empty", id="empty"),
        pytest.param(np.full([2, DIM], np.nan, np.float32), "not finite", id="diverged model"),
    ],
)
def test_what_cannot_be_indexed(items, message):
    with pytest.raises(ValueError, match=message):
        build_group_index(3, items, np.zeros([1, DIM], np.float32), SERVING)


def test_identical_items_are_all_found():
    """A catalogue of cold items has many equal vectors: leaves are uneven, recall is judged by score."""
    items = np.ones([1_200, DIM], np.float32)
    index = build_group_index(0, items, items[:4], SERVING)
    index_set = ScannIndexSet([index], [np.arange(1_200, dtype=np.int32)], num_groups=1)
    found = index_set.search(tf.constant(items[:1, None]), tf.constant([600]))
    assert len(set(found.item_index.numpy()[0].tolist())) == 600
