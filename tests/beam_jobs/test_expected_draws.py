"""How often an item is expected among the negatives: user by user, and as the windows job draws them."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.stats import chisquare

from beam_jobs import groups, ingest, statistics, windows
from beam_jobs.sampling.expected_draws import DrawsOfWindows, ExpectedDraws
from contracts.layout import Workdir
from contracts.names import Split, WindowField
from tests.beam_jobs.helpers import community_log, make_config, read_events, read_groups
from trainer.input.training_windows import TrainingWindows


def by_users(weights: dict[int, int], group_of: dict[int, int], owned: dict[int, dict[int, bool]]) -> list[float]:
    """Expected draws of each item, of one a target, by the weights of what its user does not own of its group.

    `owned`: user -> item -> whether it is a target.
    """
    expected = dict.fromkeys(weights, Fraction(0))
    for mine in owned.values():
        for target in (item for item, is_target in mine.items() if is_target):
            free = [item for item in weights if group_of[item] == group_of[target] and item not in mine]
            for item in free:
                expected[item] += Fraction(weights[item], sum(weights[each] for each in free))
    return [float(value) for value in expected.values()]


@pytest.mark.parametrize("num_groups", [3, 1])
def test_expected_draws_user_by_user(num_groups: int) -> None:
    rng = np.random.default_rng(0)
    weights = {item: int(rng.integers(1, 50)) for item in range(1, 31)}
    group_of = {item: int(rng.integers(0, num_groups)) for item in weights}
    owned = {user: {int(item): rng.random() < 0.7 for item in rng.permutation(30)[:12] + 1} for user in range(20)}
    # One has nothing left to draw in group 0, another no target.
    owned[3] |= {item: True for item in weights if group_of[item] == 0}
    owned[7] = dict.fromkeys(owned[7], False)
    q, groups_of = np.array(list(weights.values())) / sum(weights.values()), np.array(list(group_of.values()))
    found = ExpectedDraws(q, groups_of)
    for block in (range(5), range(5, 20), range(0)):
        rows = [(user, item, is_target) for user in block for item, is_target in owned[user].items()]
        users, items, is_target = np.array(rows, np.int64).reshape(-1, 3).T
        found.add(users, items, is_target > 0)
    expected = by_users(weights, group_of, owned)
    shares = expected / np.bincount(groups_of, expected)[groups_of]
    np.testing.assert_allclose(found.shares(), shares, rtol=1e-9, atol=1e-12)


def test_a_group_that_nothing_is_drawn_from_has_the_sampling_probabilities() -> None:
    # User 0 owns item 1 of group 0, a target: all is drawn from items 3 and 5, by .5 and .25. Group 1 has no target.
    draws = ExpectedDraws(np.array([0.1, 0.05, 0.5, 0.1, 0.25]), np.array([0, 1, 0, 1, 0]))
    draws.add(np.array([0, 0]), np.array([1, 2]), np.array([True, False]))
    np.testing.assert_allclose(draws.shares(), [0, 1 / 3, 2 / 3, 2 / 3, 1 / 3])


def test_a_user_who_leaves_next_to_nothing_of_a_group_drowns_nobody() -> None:
    # User 0 owns all but item 4, whose probability is lost in the sum of the others. User 1 owns item 1, a target: of
    # their draw, items 2 and 3 are expected at 3/4 and 1/4.
    draws = ExpectedDraws(np.array([0.6, 0.3, 0.1, 1e-18]), np.zeros(4, np.int64))
    draws.add(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 1]), np.array([True, True, True, True]))
    np.testing.assert_allclose(draws.shares(), [0, 0.75, 0.25, 0], atol=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_what_all_own_is_not_drawn_less_than_never(seed: int) -> None:
    """Its share is the difference of two equal sums, which rounding may leave below 0: it has a logarithm."""
    rng = np.random.default_rng(seed)
    draws = ExpectedDraws(rng.random(30) / 15, np.zeros(30, np.int64))
    for _ in range(20):
        owns = rng.random((2, 30)) < 0.3
        owns[:, 0] = True
        users, items = np.nonzero(owns)
        draws.add(users, items + 1, np.ones(len(users), bool))
    shares = draws.shares()
    assert 0 <= shares[0] < 1e-12 and (shares[1:] > 0).all()


def test_buckets_that_are_written_add_up_to_one_of_all_users(tmp_path: Path) -> None:
    probabilities, groups_of = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0, 0, 1, 1])
    users, items, is_target = np.array([0, 0, 1, 1, 2]), np.array([1, 3, 2, 3, 4]), np.array([1, 1, 1, 0, 1], bool)
    whole, part, added = (DrawsOfWindows.none(probabilities, groups_of) for _ in range(3))
    for draws in whole:
        draws.add(users, items, is_target)
    for bucket in (users < 1, users >= 1):
        part.clear()
        for draws in part:
            draws.add(users[bucket], items[bucket], is_target[bucket])
        part.write(tmp_path / "part.npy")
        added.add_written(tmp_path / "part.npy")
    for found, expected in zip(added, whole, strict=True):
        np.testing.assert_allclose(found.sums, expected.sums)
        assert expected.sums.any()


@pytest.mark.parametrize("repeats", ["drop", "keep"])
def test_the_windows_draws_have_the_shares_that_the_job_tells(tmp_path: Path, repeats: str) -> None:
    """By each user's own items, not by the sampling probabilities, of which a chi-square test is sure here."""
    negatives = {"in_group_negatives": 40, "easy_negatives": 40, "popularity_exponent": 1}
    config = make_config(
        community_log(tmp_path / "log.parquet"), windows={"repeats": repeats, "length": 4, **negatives}
    )
    workdir = Workdir(tmp_path / "run")
    for job in (ingest, statistics, groups, windows):
        job.run(config, workdir, "test")
    items = pq.read_table(workdir.item_statistics.items)
    index = {item: row for row, item in enumerate(items["item_id"].to_pylist())}
    of_item = read_groups(workdir)
    group_of = np.array([of_item[item] for item in index])
    q = items["sampling_probability"].to_numpy()

    # Each item of a user once, in the order of time; all but the first are targets.
    taken: dict[str, list[int]] = {}
    for event in read_events(workdir):
        item = index[event["item_id"]]
        if event["split"] == Split.TRAIN and item not in taken.setdefault(event["user_id"], []):
            taken[event["user_id"]].append(item)
    expected = np.zeros((2, len(index)))
    for mine in taken.values():
        for target in mine[1:]:
            for row, allowed in enumerate((group_of == group_of[target], np.ones(len(index), bool))):
                left = np.where(allowed, q, 0)
                left[mine] = 0
                expected[row] += left / left.sum()
    shares = expected[0] / np.bincount(group_of, expected[0])[group_of], expected[1] / expected[1].sum()
    found = np.load(workdir.windows.draw_shares)
    np.testing.assert_allclose(found, shares, rtol=1e-9)

    drawn = np.zeros((2, len(index)))
    for batch in TrainingWindows(workdir, 1000, 0).epoch(0):
        for row, name in enumerate((WindowField.IN_GROUP_NEGATIVES, WindowField.EASY_NEGATIVES)):
            np.add.at(drawn[row], getattr(batch, name) - 1, 1)
    in_group = np.bincount(group_of, drawn[0])[group_of]
    assert chisquare(drawn[0], found[0] * in_group, ddof=1).pvalue > 1e-4
    assert chisquare(drawn[1], found[1] * drawn[1].sum()).pvalue > 1e-4
    assert chisquare(drawn[1], q * drawn[1].sum()).pvalue < 1e-9
