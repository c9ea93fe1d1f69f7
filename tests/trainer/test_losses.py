from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import LossConfig
from tests.trainer.artifacts import cyclic_log
from trainer.binary_loss import binary_loss, gbce_exponent
from trainer.catalogue import Catalogue
from trainer.choice_loss import choice_loss
from trainer.group_blocks import GroupBlocks
from trainer.losses import group_log_partitions, is_member, log_partition, z_loss
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


def test_group_partitions_score_each_candidate_by_its_own_groups_vector() -> None:
    rng = np.random.default_rng(0)
    sizes, dim = [3, 0, 5, 1], 6
    queries = rng.normal(size=(7, 4, dim)).astype(np.float32)
    candidates = rng.normal(size=(9, dim)).astype(np.float32)
    log_count = rng.normal(size=9).astype(np.float32)
    masked = rng.random((7, 9)) < 0.2
    partitions = group_log_partitions(
        tf.constant(queries), tf.constant(candidates), tf.constant(sizes), tf.constant(log_count), tf.constant(masked)
    ).numpy()
    group_of = np.repeat(np.arange(4), sizes)
    for user in range(7):
        for group in range(4):
            rows = (group_of == group) & ~masked[user]
            expected = np.exp(candidates[rows] @ queries[user, group] - log_count[rows]).sum()
            assert np.exp(partitions[user, group]) == pytest.approx(expected, rel=1e-4), (user, group)


@pytest.mark.parametrize(("hard", "easy"), [(0, 4000), (6000, 4000), (6000, 50)], ids=["easy", "mixed", "mostly hard"])
def test_drawn_candidates_estimate_the_partition_and_its_gradient(hard: int, easy: int) -> None:
    """A wrong sign of logQ, or a wrong mixture, is off by a factor here: q spans two orders of magnitude."""
    rng = np.random.default_rng(1)
    items = catalogue(np.exp(rng.normal(size=NUM_ITEMS)))
    pools = NegativePools(items, LossConfig(exact_softmax_max_items=0, in_group_pool=1500, easy_pool=4000))
    query = tf.constant(rng.normal(size=[1, 8]), tf.float32)
    table = rng.normal(size=[NUM_ITEMS + 1, 8]).astype(np.float32) * 0.5
    q, target = items.sampling_probability, 7
    own_group = items.group_id[target]
    by_group = [np.flatnonzero(items.group_id == group) for group in range(NUM_GROUPS)]
    draws = [rng.choice(rows, hard // NUM_GROUPS, p=q[rows] / q[rows].sum()) for rows in by_group]
    grid, shared = pools(
        tf.constant(np.concatenate([*draws, [0, 0]]), tf.int64),  # 0: a negative that could not be drawn
        tf.constant(np.concatenate([[0], rng.choice(NUM_ITEMS + 1, easy, p=q)]), tf.int64),
        tf.constant([target], tf.int64),
        tf.random.Generator.from_seed(0),
    )
    with tf.GradientTape() as tape:
        tape.watch(query)
        row = grid.item_index[own_group]
        own = log_partition(
            tf.linalg.matvec(query, table[target]),
            tf.matmul(query, tf.gather(table, row), transpose_b=True),
            grid.log_expected_count[own_group][None],
            ((row == 0) | (row == target))[None],
        )
    scores = table @ query.numpy()[0]
    members = by_group[own_group]
    weights = np.exp(scores[members]) / np.exp(scores[members]).sum()
    tolerance = 0.08 if hard or easy > 1000 else 1.0
    assert own.numpy()[0] == pytest.approx(np.log(np.exp(scores[members]).sum()), abs=tolerance)
    np.testing.assert_allclose(tape.gradient(own, query).numpy()[0], weights @ table[members], atol=tolerance)
    if easy > 1000:
        rest = group_log_partitions(
            tf.repeat(query[:, None], NUM_GROUPS, axis=1),
            tf.gather(table, shared.item_index),
            shared.group_sizes,
            shared.log_expected_count,
            tf.zeros([1, 1], tf.bool),
        )
        expected = [np.log(np.exp(scores[rows]).sum()) for rows in by_group]
        np.testing.assert_allclose(rest.numpy()[0], expected, atol=0.12)


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in_batch"])
def test_other_samplers_estimate_the_partition_too(negatives: str) -> None:
    rng = np.random.default_rng(2)
    count = rng.integers(1, 50, NUM_ITEMS + 1)
    count[0] = 0
    items = replace(catalogue(np.ones(NUM_ITEMS)), train_count=count)
    loss = LossConfig(exact_softmax_max_items=0, easy_pool=20_000, negatives=negatives)
    targets = rng.choice(NUM_ITEMS + 1, 20_000, p=count / count.sum())
    grid, shared = NegativePools(items, loss)(
        tf.constant([3, 4], tf.int64),  # in-group draws of the windows: not used
        tf.constant([5], tf.int64),
        tf.constant(targets),
        tf.random.Generator.from_seed(0),
    )
    assert int(tf.size(shared.item_index)) == 20_000
    scores = rng.normal(size=NUM_ITEMS + 1)
    drawn = grid.item_index.numpy()
    log_count = np.where(drawn > 0, grid.log_expected_count.numpy(), np.inf)
    estimate = np.exp(scores[drawn] - log_count).sum(axis=1)
    exact = [np.exp(scores[items.group_id == group]).sum() for group in range(NUM_GROUPS)]
    np.testing.assert_allclose(estimate, exact, rtol=0.1)


def test_binary_loss_by_hand() -> None:
    # beta log(1 + e^-2) + log(1 + e^1), the masked negative left out, over 3.
    loss = binary_loss(tf.constant([2.0]), tf.constant([[1.0, 9.0]]), tf.constant([[False, True]]), 0.25)
    assert float(loss[0]) == pytest.approx((0.25 * np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 3)


# a = 4 / (101 - 1) = 0.04; t = 0: 1; t = 1: a; t = .5: .04 (.5 (1 - 25) + 25) = .52.
@pytest.mark.parametrize(("calibration", "beta"), [(0.0, 1.0), (1.0, 0.04), (0.5, 0.52)])
def test_gbce_exponent_by_hand(calibration: float, beta: float) -> None:
    assert gbce_exponent(4, 101, calibration) == pytest.approx(beta)


def test_choice_loss_by_numpy() -> None:
    """A negative masked, and a positive without negatives, which the mean leaves out."""
    rng = np.random.default_rng(0)
    positive, negatives = rng.normal(size=4).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)
    masked = np.array([[False] * 3, [False, True, False], [True] * 3, [True, False, True]])
    expected = [
        np.log(np.exp(positive[row]) + np.exp(negatives[row][~masked[row]]).sum()) - positive[row] for row in (0, 1, 3)
    ]
    loss = choice_loss(tf.constant(positive), tf.constant(negatives), tf.constant(masked))
    assert float(loss) == pytest.approx(np.mean(expected), rel=1e-5)
    assert float(choice_loss(tf.constant(positive), tf.constant(negatives), tf.ones([4, 3], tf.bool))) == 0


def test_choices_without_correction_recover_the_scores() -> None:
    """Choices by a softmax over all; each seen with two of the positive's mutual neighbours: the fit finds the scores.

    Items 0..3 are mutual neighbours, 4..5 too. The least of the loss over scores must keep each cluster's differences.
    """
    rng = np.random.default_rng(1)
    scores = np.array([0.0, 1.0, -1.0, 0.5, 0.3, -0.7], np.float32)
    clusters = [0, 1, 2, 3], [4, 5]
    near = {item: [other for other in members if other != item] for members in clusters for item in members}
    chosen = rng.choice(6, 20_000, p=np.exp(scores) / np.exp(scores).sum())
    mined = tf.constant(np.array([rng.choice(near[item], 2, replace=len(near[item]) < 2) for item in chosen]))
    fitted, optimizer = tf.Variable(tf.zeros([6])), tf.keras.optimizers.Adam(0.1)
    duplicate = mined[:, 1:] == mined[:, :1]
    masked = tf.concat([tf.zeros_like(duplicate), duplicate], axis=1)
    for _ in range(150):
        with tf.GradientTape() as tape:
            loss = choice_loss(tf.gather(fitted, chosen), tf.gather(fitted, mined), masked)
        optimizer.apply_gradients([(tape.gradient(loss, fitted), fitted)])
    for members in clusters:
        difference = fitted.numpy()[members] - scores[members]
        np.testing.assert_allclose(difference, difference.mean(), atol=0.08)


def test_a_small_catalogue_is_compared_whole() -> None:
    items = catalogue(np.ones(NUM_ITEMS))
    nothing = tf.zeros([0], tf.int64)
    grid, shared = NegativePools(items, LossConfig())(nothing, nothing, nothing, None)
    rows = [np.flatnonzero(items.group_id == group).tolist() for group in range(NUM_GROUPS)]
    assert [sorted(row[row > 0]) for row in grid.item_index.numpy()] == rows
    assert [part.tolist() for part in np.split(shared.item_index.numpy(), np.cumsum(shared.group_sizes)[:-1])] == rows


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
