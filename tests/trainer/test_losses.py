import numpy as np
import pytest
import tensorflow as tf

from contracts.config import LossConfig
from tests.trainer.artifacts import cyclic_log
from trainer.catalogue import Catalogue
from trainer.group_blocks import GroupBlocks
from trainer.losses import is_member, log_partition, z_loss
from trainer.negative_pools import NegativePools

NUM_ITEMS, NUM_GROUPS = 60, 4


def catalogue(probability: np.ndarray) -> Catalogue:
    group_id = np.concatenate([[-1], cyclic_log(num_items=NUM_ITEMS, num_groups=NUM_GROUPS).group_id])
    return Catalogue(
        item_ids=np.array([f"i{index}" for index in range(NUM_ITEMS)], object),
        group_id=group_id.astype(np.int32),
        num_groups=NUM_GROUPS,
        train_count=np.ones(NUM_ITEMS + 1, np.int64),
        sampling_probability=np.concatenate([[0.0], probability / probability.sum()]),
    )


def test_exact_partition_is_the_softmax_of_numpy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, NUM_ITEMS)).astype(np.float32)
    target = rng.integers(0, NUM_ITEMS, 5)
    masked = np.arange(NUM_ITEMS)[None] == target[:, None]
    positive = tf.constant(logits[np.arange(5), target])
    partition = log_partition(positive, tf.constant(logits), tf.zeros([1, NUM_ITEMS]), tf.constant(masked))
    np.testing.assert_allclose(partition, np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)


@pytest.mark.parametrize(("hard", "easy"), [(0, 4000), (6000, 4000), (6000, 50)], ids=["easy", "mixed", "mostly hard"])
def test_drawn_pools_estimate_the_whole_partition_and_its_gradient(hard: int, easy: int) -> None:
    """A wrong sign of logQ, or a wrong mixture, is off by a factor here: q spans two orders of magnitude."""
    rng = np.random.default_rng(1)
    probability = np.exp(rng.normal(size=NUM_ITEMS))
    items = catalogue(probability)
    pools = NegativePools(items, LossConfig(exact_softmax_max_items=0, in_group_pool=1500, easy_pool=4000))
    query = tf.constant(rng.normal(size=[1, 8]), tf.float32)
    table = rng.normal(size=[NUM_ITEMS + 1, 8]).astype(np.float32) * 0.5
    q = items.sampling_probability
    by_group = [np.flatnonzero(items.group_id == group) for group in range(NUM_GROUPS)]
    draws = [rng.choice(rows, hard // NUM_GROUPS, p=q[rows] / q[rows].sum()) for rows in by_group]
    grid = pools(
        tf.constant(np.concatenate(draws), tf.int64),
        tf.constant(rng.choice(NUM_ITEMS + 1, easy, p=q), tf.int64),
        tf.random.Generator.from_seed(0),
    )
    target = 7
    with tf.GradientTape() as tape:
        tape.watch(query)
        flat = tf.reshape(grid.item_index, [-1])
        logits = tf.matmul(query, tf.gather(table, flat), transpose_b=True)
        excluded = ((flat == 0) | (flat == target))[None]
        positive = tf.linalg.matvec(query, table[target])
        sampled = log_partition(positive, logits, tf.reshape(grid.log_expected_count, [1, -1]), excluded)
    scores = query.numpy() @ table[1:].T
    weights = np.exp(scores) / np.exp(scores).sum()
    assert sampled.numpy()[0] == pytest.approx(np.log(np.exp(scores).sum()), abs=0.08)
    np.testing.assert_allclose(tape.gradient(sampled, query).numpy(), weights @ table[1:], atol=0.08)


def test_small_catalogue_is_a_grid_of_every_item_once() -> None:
    items = catalogue(np.ones(NUM_ITEMS))
    grid = NegativePools(items, LossConfig())(tf.zeros([0], tf.int64), tf.zeros([0], tf.int64), None)
    for group, row in enumerate(grid.item_index.numpy()):
        assert sorted(row[row > 0]) == np.flatnonzero(items.group_id == group).tolist()


def test_membership_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows, values = rng.integers(0, 30, (20, 7)), rng.integers(0, 40, 50)
    expected = (rows[:, :, None] == values).any(axis=1)
    assert (is_member(tf.constant(rows), tf.constant(values)).numpy() == expected).all()


def test_blocks_hold_every_row_once_and_never_mix_groups() -> None:
    group = np.random.default_rng(0).choice(5, 300, p=[0.7, 0.0, 0.1, 0.19, 0.01]).astype(np.int32)
    blocks = GroupBlocks.of(tf.constant(group), 5)
    real = blocks.weight.numpy() > 0
    rows = blocks.row.numpy()[real]
    assert sorted(rows) == list(range(300))
    assert (group[rows] == np.broadcast_to(blocks.group_id.numpy()[:, None], real.shape)[real]).all()


def test_z_loss_is_free_of_a_shared_constant() -> None:
    partition, weights = tf.constant([1.0, 3.0, 9.0]), tf.constant([1.0, 1.0, 0.0])
    # Mean of 1 and 3 is 2, variance 1; the third has no weight.
    assert float(z_loss(partition, weights)) == pytest.approx(1)
    assert float(z_loss(partition + 5, weights)) == pytest.approx(1)
