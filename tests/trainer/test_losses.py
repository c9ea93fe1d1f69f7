from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import Config, LossConfig
from trainer.catalogue import Catalogue
from trainer.layers.group_blocks import GroupBlocks
from trainer.layers.index_ops import count, is_member, repeat
from trainer.losses.binary_loss import binary_loss, gbce_exponent
from trainer.losses.choice_loss import choice_loss
from trainer.losses.log_partitions import (
    group_log_partitions,
    group_scores,
    log_add_exp,
    log_sum_exp,
    log_sum_exp_of_products,
    reweighted,
    z_loss,
)
from trainer.losses.negative_pools import LEFT_OUT, NegativePools, global_correction, row_correction
from trainer.losses.negative_samplers import evenly_spread, uniform_unseen

NUM_ITEMS, NUM_GROUPS = 60, 4


def catalogue(probability: np.ndarray) -> Catalogue:
    """Of groups of 18, 12, 16 and 14 items, which lie in no order."""
    group_id = np.append(-1, np.random.default_rng(0).permutation(np.repeat(np.arange(NUM_GROUPS), [18, 12, 16, 14])))
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
    partition = log_add_exp(positive, log_sum_exp(tf.constant(np.where(masked, LEFT_OUT, logits), tf.float32)))
    np.testing.assert_allclose(partition, np.log(np.exp(logits).sum(axis=1)), rtol=1e-5)


def test_each_candidate_meets_its_own_groups_vector() -> None:
    rng = np.random.default_rng(0)
    sizes, dim = [3, 0, 5, 1], 6
    queries = rng.normal(size=(7, 4, dim)).astype(np.float32)
    candidates = rng.normal(size=(9, dim)).astype(np.float32)
    factors = tf.constant(queries), tf.constant(candidates), tf.constant(sizes)
    expected = np.einsum("pnd,nd->pn", np.repeat(queries, sizes, axis=1), candidates)
    np.testing.assert_allclose(group_scores(*factors), expected, rtol=1e-4, atol=1e-5)
    partitions = np.exp(group_log_partitions(*factors))
    for group, part in enumerate(np.split(expected, np.cumsum(sizes)[:-1], axis=1)):
        np.testing.assert_allclose(partitions[:, group], np.exp(part).sum(axis=1), rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 300.0], ids=["mild", "exp would overflow"])
def test_log_sum_exp_and_its_gradient_against_tensorflows(scale: float) -> None:
    rng = np.random.default_rng(0)
    queries = tf.constant(rng.normal(size=(6, 4)) * scale, tf.float32)
    candidates = tf.constant(rng.normal(size=(9, 4)), tf.float32)
    upstream = tf.constant(rng.normal(size=6), tf.float32)
    results = []
    for function in (
        lambda: tf.reduce_logsumexp(tf.matmul(queries, candidates, transpose_b=True), axis=1),
        lambda: log_sum_exp(tf.matmul(queries, candidates, transpose_b=True)),
        lambda: log_sum_exp_of_products(queries, candidates),
    ):
        with tf.GradientTape() as tape:
            tape.watch([queries, candidates])
            value = function()
        results.append([value, *tape.gradient(value, [queries, candidates], upstream)])
    for result in results[1:]:
        for found, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert log_sum_exp(tf.zeros([2, 0])).numpy().tolist() == [-np.inf, -np.inf]
    assert log_sum_exp(tf.zeros([1, 200_000])).numpy() == pytest.approx(np.log(200_000), rel=1e-5)


@pytest.mark.parametrize(
    ("hard", "easy", "fresh"),
    [(0, 4000, 0), (6000, 4000, 0), (6000, 50, 0), (0, 0, 8000), (6000, 2000, 2000)],
    ids=["easy", "mixed", "mostly hard", "fresh", "all"],
)
def test_drawn_candidates_estimate_the_partition_and_its_gradient(hard: int, easy: int, fresh: int) -> None:
    """A wrong sign of logQ, or a wrong mixture, is off by a factor here: q spans two orders of magnitude."""
    rng = np.random.default_rng(1)
    items = catalogue(np.exp(rng.normal(size=NUM_ITEMS)))
    loss = LossConfig(exact_softmax_max_items=0, in_group_pool=6000, easy_pool=4000, fresh_pool=fresh)
    pools = NegativePools(items, loss)
    query = tf.constant(rng.normal(size=[1, 8]), tf.float32)
    table = rng.normal(size=[NUM_ITEMS + 1, 8]).astype(np.float32) * 0.5
    q, target = items.sampling_probability, 7
    own_group = items.group_id[target]
    by_group = [np.flatnonzero(items.group_id == group) for group in range(NUM_GROUPS)]
    draws = [rng.choice(rows, hard // NUM_GROUPS, p=q[rows] / q[rows].sum()) for rows in by_group]
    candidates = pools(
        tf.constant(np.concatenate([*draws, [0, 0]]), tf.int64),  # 0: a negative that could not be drawn
        tf.constant(np.concatenate([[0], rng.choice(NUM_ITEMS + 1, easy, p=q)]), tf.int64),
        tf.constant([target], tf.int64),
        tf.random.Generator.from_seed(0),
    )
    with tf.GradientTape() as tape:
        tape.watch(query)
        row = tf.gather(candidates.item_index, candidates.rows[own_group])
        logits = tf.matmul(query, tf.gather(table, row), transpose_b=True) + candidates.row_correction[own_group]
        own = log_add_exp(
            tf.linalg.matvec(query, table[target]), log_sum_exp(tf.where(row == target, LEFT_OUT, logits))
        )
    scores = table @ query.numpy()[0]
    members = by_group[own_group]
    weights = np.exp(scores[members]) / np.exp(scores[members]).sum()
    tolerance = 0.08 if hard or easy + fresh > 1000 else 1.0
    assert own.numpy()[0] == pytest.approx(np.log(np.exp(scores[members]).sum()), abs=tolerance)
    np.testing.assert_allclose(tape.gradient(own, query).numpy()[0], weights @ table[members], atol=tolerance)
    if easy + fresh > 1000:
        rest = table[candidates.item_index[int(candidates.global_from) :]] @ query.numpy()[0]
        weight = np.exp(rest + candidates.global_correction.numpy())
        group_of = np.repeat(np.arange(NUM_GROUPS), candidates.global_sizes)
        found = np.log(np.bincount(group_of, weight, NUM_GROUPS))
        expected = [np.log(np.exp(scores[rows]).sum()) for rows in by_group]
        np.testing.assert_allclose(found, expected, atol=0.2)


@pytest.mark.parametrize(("easy", "fresh"), [(20_000, 0), (0, 20_000)])
@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in_batch"])
def test_other_samplers_estimate_the_partition_too(negatives: str, easy: int, fresh: int) -> None:
    """Their fresh draws follow their own distribution, not that of the windows."""
    rng = np.random.default_rng(2)
    train_count, count = rng.integers(1, 50, (2, NUM_ITEMS + 1))
    train_count[0] = count[0] = 0
    of_windows = catalogue(np.exp(rng.normal(size=NUM_ITEMS)))
    items = replace(of_windows, train_count=train_count, target_count=count)
    loss = LossConfig(exact_softmax_max_items=0, easy_pool=easy, fresh_pool=fresh, negatives=negatives)
    targets = rng.choice(NUM_ITEMS + 1, 20_000, p=count / count.sum())
    candidates = NegativePools(items, loss)(
        tf.constant([3, 4], tf.int64),  # in-group draws of the windows: not used
        tf.constant([5], tf.int64),
        tf.constant(targets),
        tf.random.Generator.from_seed(0),
    )
    assert candidates.global_sizes.numpy().sum() == len(candidates.item_index) == 20_000
    weight = {"uniform": np.append(0, np.ones(NUM_ITEMS)), "popularity": train_count, "in_batch": count}[negatives]
    shares = np.bincount(candidates.item_index) / 20_000
    np.testing.assert_allclose(shares, weight / weight.sum(), atol=0.006)  # five standard errors of a share of 1/30
    scores = rng.normal(size=NUM_ITEMS + 1)
    drawn = candidates.item_index.numpy()[candidates.rows.numpy()]
    estimate = np.exp(scores[drawn] + candidates.row_correction.numpy()).sum(axis=1)
    exact = [np.exp(scores[items.group_id == group]).sum() for group in range(NUM_GROUPS)]
    np.testing.assert_allclose(estimate, exact, rtol=0.1)


def test_one_vector_leaves_the_windows_in_group_draws_out() -> None:
    """They are of the groups that the windows were written with: of one group for all, too many of some items."""
    rng = np.random.default_rng(3)
    items = catalogue(np.exp(rng.normal(size=NUM_ITEMS))).grouped_for(Config(groups={"num_groups": 1}))
    loss = LossConfig(exact_softmax_max_items=0, in_group_pool=20_000, easy_pool=20_000, fresh_pool=0)
    candidates = NegativePools(items, loss)(
        tf.constant(rng.integers(1, 16, 20_000)),
        tf.constant(rng.choice(NUM_ITEMS + 1, 20_000, p=items.sampling_probability)),
        tf.zeros([0], tf.int64),
        tf.random.Generator.from_seed(0),
    )
    scores = rng.normal(size=NUM_ITEMS + 1)
    [row], [correction] = candidates.rows.numpy(), candidates.row_correction.numpy()
    estimate = np.exp(scores[candidates.item_index.numpy()[row]] + correction).sum()
    assert estimate == pytest.approx(np.exp(scores[1:]).sum(), rel=0.1)


def test_binary_loss_by_hand() -> None:
    # beta log(1 + e^-2) + log(1 + e^1), the masked negative left out, over 3.
    loss = binary_loss(tf.constant([2.0]), tf.constant([[1.0, 9.0]]), tf.constant([[False, True]]), 0.25)
    assert float(loss[0]) == pytest.approx((0.25 * np.log1p(np.exp(-2)) + np.log1p(np.exp(1))) / 3)


# a = 4 / (101 - 1) = 0.04; t = 0: 1; t = 1: a; t = .5: .04 (.5 (1 - 25) + 25) = .52.
@pytest.mark.parametrize(("calibration", "beta"), [(0.0, 1.0), (1.0, 0.04), (0.5, 0.52)])
def test_gbce_exponent_by_hand(calibration: float, beta: float) -> None:
    assert gbce_exponent(4, 101, calibration) == pytest.approx(beta)
    assert gbce_exponent(200, 101, calibration) == 1.0  # no item is drawn more than surely


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
    loss = LossConfig(exact_softmax_max_items=NUM_ITEMS)
    assert not NegativePools(items, loss.model_copy(update={"exact_softmax_max_items": NUM_ITEMS - 1})).exact
    candidates = NegativePools(items, loss)(nothing, nothing, nothing, None)
    expected = [np.flatnonzero(items.group_id == group).tolist() for group in range(NUM_GROUPS)]
    item, filled = candidates.item_index.numpy(), candidates.row_correction.numpy() == 0
    rows = [sorted(item[row[real]]) for row, real in zip(candidates.rows.numpy(), filled, strict=True)]
    assert rows == expected
    assert [part.tolist() for part in np.split(item, np.cumsum(candidates.global_sizes)[:-1])] == expected


def test_a_part_of_the_draws_is_even_and_any_draw_is_as_likely_in_it() -> None:
    draws, generator = np.arange(1, 51) * (np.arange(50) % 7 > 0), tf.random.Generator.from_seed(0)
    counts = np.zeros(51)
    for _ in range(3000):
        part = evenly_spread(tf.constant(draws), 20, generator).numpy()
        assert (part > 0).all()
        # 20 of 50: of any 10 neighbours, 4.
        assert np.abs(np.histogram(part, np.arange(1, 52, 10))[0] - 4).max() <= 2
        counts[part] += 1
    # Binomial(3000, .4) has a standard deviation of 27.
    assert np.abs(counts[draws[draws > 0]] - 1200).max() < 5 * 27
    np.testing.assert_array_equal(evenly_spread(tf.constant(draws), 99, generator), draws[draws > 0])
    assert len(evenly_spread(tf.zeros([0], tf.int64), 20, generator)) == 0


def test_uniform_negatives_are_of_all_items_but_those_seen() -> None:
    seen, row = tf.constant([[5, 5, 0], [2, 4, 1], [1, 3, 0]], tf.int64), tf.constant([2, 0], tf.int64)
    drawn = uniform_unseen(tf.random.Generator.from_seed(0), 5, seen, row, 10_000).numpy()
    # Each item a fifth of the draws, with a standard deviation of .004; 0 has the share of those seen.
    for row, shares in zip(drawn, ([0.4, 0, 0.2, 0, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2, 0.2, 0]), strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=6) / 10_000, shares, atol=0.02)
        assert len(np.bincount(row)) <= 6


def test_a_windows_own_items_are_left_out_of_its_draws() -> None:
    items = catalogue(np.ones(NUM_ITEMS))
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, (3, 8))
    loss = LossConfig(exact_softmax_max_items=0, in_group_pool=100, easy_pool=50, fresh_pool=0)
    hard, easy = rng.integers(1, NUM_ITEMS + 1, 200), rng.integers(1, NUM_ITEMS + 1, 50)
    pools = NegativePools(items, loss)
    generator = tf.random.Generator.from_seed(0)
    candidates = pools(tf.constant(hard), tf.constant(easy), tf.constant([1], tf.int64), generator)
    item = candidates.item_index.numpy()
    own_items = pools.own_items(candidates, tf.constant(windows))
    window = np.array([2, 0, 0, 1])
    found = global_correction(candidates, own_items, tf.constant(window)).numpy()
    shared = item[int(candidates.global_from) :]
    assert sorted(shared) == sorted(easy)
    left_out = (windows[window][:, :, None] == shared).any(axis=1)
    assert (found[left_out] < -1e8).all()
    np.testing.assert_allclose(found[~left_out], -np.log(50 / NUM_ITEMS), rtol=1e-4)
    group = np.array([1, 3])
    found = row_correction(candidates, own_items, tf.constant(window.reshape(2, 2)), tf.constant(group, tf.int32))
    for block, row in enumerate(candidates.rows.numpy()[group]):
        number = (items.group_id[item] == group[block]).sum()
        assert (items.group_id[item[row[:number]]] == group[block]).all()
        for place, values in enumerate(found.numpy()[block]):
            kept = values[:number] > -1e8
            assert (values[number:] < -1e8).all()
            assert (kept == ~np.isin(item[row[:number]], windows[window[2 * block + place]])).all()


def test_a_windows_own_items_are_looked_up_in_the_groups_of_its_positives_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """200 windows of one positive each and 60 groups are 12,000 pairs, of which 200, and those of padding, count."""
    num_windows, num_groups = 200, NUM_ITEMS
    items = replace(catalogue(np.ones(NUM_ITEMS)), group_id=np.arange(NUM_ITEMS + 1, dtype=np.int32) - 1)
    items = replace(items, num_groups=num_groups)
    rng = np.random.default_rng(0)
    windows = rng.integers(1, NUM_ITEMS + 1, (num_windows, 2))
    pools = NegativePools(items, LossConfig(exact_softmax_max_items=0, in_group_pool=400, easy_pool=200, fresh_pool=0))
    hard, easy = np.repeat(rng.integers(1, NUM_ITEMS + 1, 20), 20), rng.integers(1, NUM_ITEMS + 1, 200)
    candidates = pools(tf.constant(hard), tf.constant(easy), windows[:, 1], tf.random.Generator.from_seed(0))
    own_items = pools.own_items(candidates, tf.constant(windows))
    blocks = GroupBlocks.of(tf.constant(items.group_id[windows[:, 1]]), num_groups)
    of_block = tf.gather(tf.range(num_windows, dtype=tf.int64), blocks.row)
    sizes, gather = [], tf.gather
    with monkeypatch.context() as patch:
        patch.setattr(
            tf, "gather", lambda *of, **how: sizes.append((found := gather(*of, **how)).numpy().size) or found
        )
        found = row_correction(candidates, own_items, of_block, blocks.group_id).numpy()
    places, item = candidates.rows.numpy()[blocks.group_id.numpy()], candidates.item_index.numpy()
    is_own = (windows[of_block.numpy()][:, :, None, :] == item[places][:, None, :, None]).any(axis=3)
    without = candidates.row_correction.numpy()[blocks.group_id.numpy()][:, None]
    assert ((found < -1e8) == (is_own | (without < -1e8))).all()
    np.testing.assert_allclose(found[found > -1e8], np.broadcast_to(without, found.shape)[found > -1e8], rtol=1e-6)
    assert max(sizes) < num_windows * num_groups * places.shape[1] / 2


def test_membership_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    rows, values = rng.integers(0, 30, (20, 7)), rng.integers(0, 40, 50)
    expected = (rows[:, :, None] == values).any(axis=1)
    assert (is_member(tf.constant(rows), tf.constant(values)).numpy() == expected).all()


def test_counts_and_repetitions_against_numpy() -> None:
    values = np.array([3, 0, 3, 3, 1], np.int32)
    np.testing.assert_array_equal(count(tf.constant(values), 6), np.bincount(values, minlength=6))
    times = np.array([0, 2, 0, 0, 3, 1, 0], np.int32)
    np.testing.assert_array_equal(repeat(tf.range(7), tf.constant(times)), np.repeat(np.arange(7), times))
    assert repeat(tf.range(2), tf.zeros([2], tf.int32)).shape == (0,)


def test_blocks_hold_every_row_once_and_never_mix_groups() -> None:
    group = np.random.default_rng(0).choice(5, 300, p=[0.7, 0.0, 0.1, 0.19, 0.01]).astype(np.int32)
    blocks = GroupBlocks.of(tf.constant(group), 5)
    place, (_, block_size) = blocks.place_of_row.numpy(), blocks.row.shape
    assert (blocks.row.numpy().ravel()[place] == np.arange(300)).all()
    assert (blocks.group_id.numpy()[place // block_size] == group).all()
    assert len(blocks.group_id) * block_size < 300 + 5 * block_size
    single = GroupBlocks.of(tf.zeros([7], tf.int32), 1)
    assert single.row.numpy().tolist() == [list(range(7))] == [single.place_of_row.numpy().tolist()]


def test_z_loss_is_the_distance_from_a_center_or_else_free_of_a_shared_constant() -> None:
    partition = tf.constant([1.0, 3.0])
    # Mean of 1 and 3 is 2, variance 1.
    assert float(z_loss(partition)) == pytest.approx(1)
    assert float(z_loss(partition + 5)) == pytest.approx(1)
    with tf.GradientTape() as tape:
        center = tf.Variable([0.0, 5.0])
        loss = z_loss(partition, center)
    assert float(loss) == pytest.approx((1 + 4) / 2)
    assert tape.gradient(loss, center) is None


@pytest.mark.parametrize("weight", [1e-4, 0.01, 1.0, 4.0, 1e4])
def test_a_part_that_is_all_there_is_leaves_its_weight(weight: float) -> None:
    """Up to rounding either way; what was never seen leaves all of it."""
    whole = tf.constant([200.0, 200.0, 200.0, 5.0])
    part = tf.constant([200.0, np.nextafter(np.float32(200), np.float32(300)), -1e9, -1e9])
    with tf.GradientTape() as tape:
        tape.watch([whole, part])
        result = reweighted(whole, part, weight)
    gradients = np.stack(tape.gradient(result, [whole, part]))
    np.testing.assert_allclose(result, whole.numpy() + np.log([weight, weight, 1, 1]), rtol=1e-5)
    np.testing.assert_allclose(gradients.sum(axis=0), 1, rtol=1e-3)  # softmaxes are as high as their scores
