"""Draws of which no user is given what is their own still stand for the whole catalogue."""

import numpy as np
import tensorflow as tf

from contracts.config import LossConfig
from trainer.catalogue import Catalogue
from trainer.losses.negative_pools import NegativePools

NUM_ITEMS, NUM_GROUPS, NUM_USERS = 40, 4, 500


def test_each_item_counts_once_however_many_own_it() -> None:
    """Nine in ten users own the first item of each group: by the sampling probabilities it would count a fifth."""
    rng = np.random.default_rng(4)
    group_id = np.append(-1, np.arange(NUM_ITEMS) % NUM_GROUPS)
    q = np.append(0, np.exp(0.5 * rng.normal(size=NUM_ITEMS)))
    q /= q.sum()
    by_group = [np.flatnonzero(group_id == group) for group in range(NUM_GROUPS)]
    first = [rows[0] for rows in by_group]
    owned = rng.random((NUM_USERS, NUM_ITEMS + 1)) < 0.1
    owned[: NUM_USERS * 9 // 10, first] = True
    shares = np.zeros((2, NUM_ITEMS + 1))
    hard, easy = [], []
    for free in np.where(owned, 0, q):
        shares[1] += free / free.sum() / NUM_USERS
        easy.append(rng.choice(NUM_ITEMS + 1, 100, p=free / free.sum()))
        for rows in by_group:
            inside = free[rows] / free[rows].sum()
            shares[0, rows] += inside / NUM_USERS
            hard.append(rng.choice(rows, 100, p=inside))
    catalogue = Catalogue(
        item_ids=np.arange(NUM_ITEMS).astype(object),
        group_id=group_id.astype(np.int32),
        num_groups=NUM_GROUPS,
        train_count=np.ones(NUM_ITEMS + 1, np.int64),
        sampling_probability=q,
        draw_shares=shares,
    )
    loss = LossConfig(exact_softmax_max_items=0, in_group_pool=200_000, easy_pool=50_000, fresh_pool=5_000)
    candidates = NegativePools(catalogue, loss)(
        tf.constant(np.concatenate(hard)),
        tf.constant(np.concatenate(easy)),
        tf.zeros([0], tf.int64),
        tf.random.Generator.from_seed(0),
    )
    drawn, global_from = candidates.item_index.numpy(), int(candidates.global_from)
    in_rows = np.exp(candidates.row_correction.numpy())
    of_group = np.bincount(drawn[candidates.rows.numpy()].ravel(), in_rows.ravel(), NUM_ITEMS + 1)
    of_all = np.bincount(drawn[global_from:], np.exp(candidates.global_correction.numpy()), NUM_ITEMS + 1)
    np.testing.assert_allclose(of_group[1:], 1, atol=0.2)  # some 300 draws of a first item, and thousands of others
    np.testing.assert_allclose(of_all[1:], 1, atol=0.3)
