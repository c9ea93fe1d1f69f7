"""Negatives follow the configured distribution exactly, and are never the user's own positives."""

import gc
import weakref

import numpy as np
import pytest
from scipy.stats import chisquare

from beam_jobs.sampling import negatives
from beam_jobs.sampling.alias import AliasTables
from beam_jobs.sampling.negatives import OwnedItems, WindowNegatives
from beam_jobs.statistics_steps import sampling_probabilities
from contracts.names import PADDING_INDEX


def _probabilities(tables: AliasTables) -> np.ndarray:
    """[num_items] exact probability of each item within its group, as the tables hold it."""
    size_of_slot = np.repeat(tables.sizes, tables.sizes)
    of_slot = tables.keep / size_of_slot
    np.add.at(of_slot, tables.alias, (1 - tables.keep) / size_of_slot)
    result = np.empty_like(of_slot)
    result[tables.items] = of_slot
    return result


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0], ids=["equal", "mild", "steep"])
def test_alias_tables_hold_the_distribution(spread: float) -> None:
    rng = np.random.default_rng(0)
    weights = np.exp(spread * rng.normal(size=500))
    groups = rng.integers(0, 7, 500)
    groups[groups == 4] = 5  # an empty group; and one of a single item, one of two:
    groups[0], groups[[1, 2]] = 7, 8
    tables = AliasTables(weights, groups, 9)
    totals = np.bincount(groups, weights, minlength=9)
    np.testing.assert_allclose(_probabilities(tables), weights / totals[groups], rtol=1e-9)


def test_an_item_of_exactly_the_mean_weight_fills_nobody() -> None:
    tables = AliasTables(np.array([1.0, 3.0, 2.0]), np.zeros(3, np.int64), 1)
    np.testing.assert_allclose(_probabilities(tables), [1 / 6, 1 / 2, 1 / 3])


def test_draws_pass_a_chi_square_test() -> None:
    counts = np.array([100, 50, 20, 5, 1, 0, 0, 300])
    probabilities = sampling_probabilities(counts, 0.5)
    # max(count, 0.5) ** 0.5, normalised
    weights = np.sqrt([100, 50, 20, 5, 1, 0.5, 0.5, 300])
    np.testing.assert_allclose(probabilities, weights / weights.sum())
    groups = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    sampler = WindowNegatives(probabilities, groups, 2)
    owned = OwnedItems(np.array([0]), np.array([2]), 1, 8)  # user 0 owns item 2 of group 0
    drawn = sampler.in_group(np.zeros(20_000, np.int64), np.full(20_000, 2), 3, owned, np.random.default_rng(7))
    allowed = np.array([1, 3, 4])
    expected = probabilities[allowed - 1] / probabilities[allowed - 1].sum() * len(drawn)
    observed = np.array([(drawn == item).sum() for item in allowed])
    assert observed.sum() == len(drawn)
    assert chisquare(observed, expected).pvalue > 1e-4


def test_easy_negatives_cover_the_catalogue() -> None:
    probabilities = sampling_probabilities(np.array([9, 4, 1, 1]), 1.0)
    sampler = WindowNegatives(probabilities, np.array([0, 1, 1, 1]), 2)
    owned = OwnedItems(np.array([0]), np.array([3]), 1, 4)
    drawn = sampler.easy(np.zeros(30_000, np.int64), 1, owned, np.random.default_rng(3))
    observed = np.bincount(drawn, minlength=5)
    assert observed[[0, 3]].tolist() == [0, 0]
    assert chisquare(observed[[1, 2, 4]], np.array([9, 4, 1]) / 14 * 30_000).pvalue > 1e-4


def test_nearly_exhausted_group_still_gives_its_free_items_in_proportion() -> None:
    # 200 items, all owned but two that are hardly ever drawn: rejection alone would not get there.
    probabilities = np.full(200, 1.0)
    probabilities[[10, 20]] = [1e-6, 3e-6]
    probabilities /= probabilities.sum()
    mine = np.setdiff1d(np.arange(1, 201), [11, 21])
    sampler = WindowNegatives(probabilities, np.zeros(200, np.int64), 1)
    owned = OwnedItems(np.zeros(198, np.int64), mine, 1, 200)
    drawn = sampler.in_group(np.zeros(4000, np.int64), np.full(4000, 1), 1, owned, np.random.default_rng(0))
    observed = np.array([(drawn == 11).sum(), (drawn == 21).sum()])
    assert observed.sum() == 4000
    assert chisquare(observed, [1000, 3000]).pvalue > 1e-4


def test_user_who_owns_the_whole_group_gets_padding() -> None:
    sampler = WindowNegatives(np.full(3, 1 / 3), np.array([0, 0, 1]), 2)
    owned = OwnedItems(np.array([0, 0]), np.array([1, 2]), 1, 3)
    drawn = sampler.in_group(np.array([0]), np.array([1]), 4, owned, np.random.default_rng(0))
    assert drawn.tolist() == [PADDING_INDEX] * 4


def test_both_ways_to_look_up_owned_items_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 300), rng.integers(1, 51, 300)
    asked = rng.integers(0, 20, 999), rng.integers(1, 51, 999)
    bitmap = OwnedItems(users, items, 20, 50).contains(*asked)
    monkeypatch.setattr("beam_jobs.sampling.negatives._BITMAP_BITS", 0)
    keys = OwnedItems(users, items, 20, 50).contains(*asked)
    pairs = set(zip(users.tolist(), items.tolist(), strict=True))
    expected = [pair in pairs for pair in zip(asked[0].tolist(), asked[1].tolist(), strict=True)]
    assert bitmap.tolist() == keys.tolist() == expected


@pytest.mark.parametrize("bits", [0, 1 << 28])
def test_a_buckets_owned_items_go_with_the_bucket(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to 32 MiB each, and what waits for the collector of cycles is not gone before many objects more are made."""
    monkeypatch.setattr(negatives, "_BITMAP_BITS", bits)
    gc.disable()
    try:
        owned = OwnedItems(np.array([0, 1]), np.array([1, 2]), 2, 3)
        assert owned.contains(np.array([0, 1]), np.array([1, 1])).tolist() == [True, False]
        left = weakref.ref(owned)
        del owned
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("rounds", [0, 1, 16])
@pytest.mark.parametrize("num_owned", [0, 1, 29, 30])
def test_however_many_rounds_are_rejected_the_rest_is_drawn_from_what_is_left(
    rounds: int, num_owned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three users of 30 items: none may be left to draw anew when the rounds are over, one pair, or each user's."""
    monkeypatch.setattr(negatives, "_ROUNDS", rounds)
    users = np.arange(600) % 3
    owned = OwnedItems(np.repeat(np.arange(3), num_owned), np.tile(np.arange(num_owned) + 1, 3), 3, 30)
    sampler = WindowNegatives(np.full(30, 1 / 30), np.zeros(30, np.int64), 1)
    drawn = sampler.easy(users, 4, owned, np.random.default_rng(0))
    if num_owned == 30:
        assert set(drawn.tolist()) == {PADDING_INDEX}
        return
    free = np.arange(num_owned, 30) + 1
    counts = np.stack([np.bincount(drawn.reshape(-1, 4)[users == user].ravel(), minlength=31) for user in range(3)])
    assert counts.sum() == counts[:, free].sum() == 2_400
    if len(free) > 1:
        assert min(chisquare(of_user).pvalue for of_user in counts[:, free]) > 1e-4
