"""The in-graph merge against trainer.evaluation.merge and a plain Python selection."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.names import MERGES
from serving.graph.exclusion import Exclusions
from serving.graph.merge import LOG_PROBABILITY_FLOOR, GroupPlan, plan_groups, select
from serving.search.group_search import GroupResults
from trainer.evaluation.merge import fill_quotas, quotas


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows, groups = 7, int(rng.integers(1, 12))
    logits = rng.normal(0, rng.choice([0.0, 1.0, 30.0]), [rows, groups])
    log_intent = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True))
    log_intent = np.maximum(log_intent - logits.max(1, keepdims=True), LOG_PROBABILITY_FLOOR).astype(np.float32)
    available = rng.integers(0, rng.choice([2, 10, 300]), [rows, groups])
    num_candidates = rng.integers(1, 400, rows)
    alpha = rng.choice([0.0, 0.5, 1.0, 3.0], rows).astype(np.float32)
    return log_intent, available, num_candidates, alpha


def plan(merge, num_candidates, log_weight, available, max_groups=None, preference=None):
    rows = len(available)
    codes = np.full(rows, MERGES.index(merge), np.int32)
    log_weight = np.asarray(log_weight, np.float32)
    return plan_groups(
        tf.constant(codes),
        tf.constant(num_candidates, tf.int32),
        tf.constant(np.zeros(rows) if max_groups is None else max_groups, tf.int32),
        tf.constant(log_weight),
        tf.constant(log_weight if preference is None else preference, tf.float32),
        tf.constant(available, tf.int32),
    )


@pytest.mark.parametrize("seed", range(30))
def test_quota_budgets_are_the_oracles(seed):
    log_intent, available, num_candidates, alpha = random_case(seed)
    # Weights that neither the oracle nor the graph has to floor.
    log_weight = np.maximum(alpha[:, None] * log_intent, LOG_PROBABILITY_FLOOR).astype(np.float32)
    budgets = plan("quota", num_candidates, log_weight, available, preference=log_intent).budgets.numpy()
    for row, wanted in enumerate(num_candidates):
        one = slice(row, row + 1)
        quota = quotas(log_weight[one], int(wanted), available[one])
        assert budgets[row].tolist() == fill_quotas(quota, available[one], log_intent[one])[0].tolist()
    assert budgets.sum(axis=1).tolist() == np.minimum(num_candidates, available.sum(axis=1)).tolist()


def deal(num_candidates: int, available: list[int], order: list[int]) -> list[int]:
    """One item at a time."""
    given = [0] * len(available)
    while sum(given) < min(num_candidates, sum(available)):
        for group in order:
            if given[group] < available[group] and sum(given) < num_candidates:
                given[group] += 1
    return given


@pytest.mark.parametrize("seed", range(30))
def test_round_robin_deals(seed):
    log_intent, available, num_candidates, _ = random_case(seed)
    found = plan("round_robin", num_candidates, log_intent, available)
    for row in range(len(available)):
        order = sorted(range(available.shape[1]), key=lambda g: (-log_intent[row, g], g))
        dealt = deal(int(num_candidates[row]), available[row].tolist(), order)
        assert found.budgets.numpy()[row].tolist() == dealt
        giving = [group for group in order if available[row, group]]
        assert np.argsort(found.turn.numpy()[row])[: len(giving)].tolist() == giving


LOG = np.log


@pytest.mark.parametrize(
    ("merge", "num_candidates", "weights", "available", "max_groups", "budgets"),
    [
        # p = (.5, .3, .2), M = 5: running totals 2.5, 4, 5 round to 3, 4, 5, so 3, 1, 1. The first group
        # has one item: its two spare places go to the next by preference, which has one more, then to the last.
        pytest.param("quota", 5, [0.5, 0.3, 0.2], [1, 2, 9], 0, [1, 2, 2], id="a short group passes its places on"),
        pytest.param("quota", 5, [0.5, 0.3, 0.2], [0, 9, 9], 0, [0, 3, 2], id="an empty group has no share"),
        pytest.param("quota", 4, [0.5, 0.0, 0.5], [9, 9, 9], 0, [2, 0, 2], id="weight 0 excludes"),
        pytest.param("quota", 4, [0.5, 0.0, 0.1], [1, 9, 1], 0, [1, 0, 1], id="and gets no leftover"),
        pytest.param("quota", 4, [0.5, 0.3, 0.2], [9, 9, 9], 1, [4, 0, 0], id="the best group only"),
        pytest.param("quota", 6, [0.5, 0.3, 0.2], [0, 9, 9], 2, [0, 4, 2], id="an empty group is not one of two"),
        pytest.param("quota", 4, [0.0, 0.0, 0.0], [9, 9, 9], 0, [0, 0, 0], id="all excluded"),
        pytest.param("quota", 4, [1e-30, 3e-30, 0.0], [9, 9, 9], 0, [1, 3, 0], id="tiny weights"),
        pytest.param("quota", 99, [0.5, 0.3, 0.2], [1, 2, 3], 0, [1, 2, 3], id="more than there are"),
        pytest.param("score", 4, [0.5, 0.3, 0.2], [2, 4, 9], 0, [2, 4, 4], id="score: M of each"),
        pytest.param("score", 4, [0.5, 0.0, 0.2], [2, 4, 9], 1, [2, 0, 0], id="score: of those that may"),
        # Rounds of 2, 2, 2, then the spare one to the first by weight.
        pytest.param("round_robin", 7, [0.2, 0.3, 0.5], [9, 9, 9], 0, [2, 2, 3], id="dealt"),
        pytest.param("round_robin", 7, [0.2, 0.3, 0.5], [9, 9, 1], 0, [3, 3, 1], id="dealt past a short group"),
        # Rounds of 2, 2, 2 take all of the first: the spare one goes to the next by weight.
        pytest.param(
            "round_robin", 7, [0.5, 0.3, 0.2], [2, 9, 9], 0, [2, 3, 2], id="dealt past one that is just used up"
        ),
        pytest.param("round_robin", 7, [0.2, 0.0, 0.5], [9, 9, 1], 0, [6, 0, 1], id="dealt past an excluded one"),
        pytest.param("round_robin", 0, [0.2, 0.3, 0.5], [9, 9, 9], 0, [0, 0, 0], id="nothing asked for"),
    ],
)
def test_budgets_by_hand(merge, num_candidates, weights, available, max_groups, budgets):
    with np.errstate(divide="ignore"):
        found = plan(merge, [num_candidates], LOG([weights]), [available], [max_groups])
    assert found.budgets.numpy().tolist() == [budgets]


def test_rows_of_a_batch_are_answered_by_groups_of_their_own_number():
    # p = (.5, .3, .2), M = 4: running totals 2, 3.2, 4 round to 2, 3, 4; and all four of the best group.
    found = plan("quota", [4, 4], LOG([[0.5, 0.3, 0.2]] * 2), [[9, 9, 9]] * 2, [0, 1])
    assert found.budgets.numpy().tolist() == [[2, 1, 1], [4, 0, 0]]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("seed", range(8))
def test_select_keeps_each_groups_best_within_its_budget(merge, seed):
    rng = np.random.default_rng(seed)
    rows, num_groups = 5, 7
    widths = rng.integers(0, 9, [rows, num_groups]) * (np.arange(num_groups) % 3 != 1)
    widths[:, -1] *= seed % 2  # the last group begins behind all that the widest row has
    width = max(1, int(widths.sum(axis=1).max()))
    group = np.full([rows, width], num_groups - 1)
    scores = np.full([rows, width], np.nan, np.float32)
    for row in range(rows):
        group[row, : widths[row].sum()] = np.repeat(np.arange(num_groups), widths[row])
        for one in range(num_groups):
            start = int(widths[row, :one].sum())
            values = -np.sort(-rng.integers(0, 6, widths[row, one]))  # many ties
            scores[row, start : start + widths[row, one]] = values
    starts = np.cumsum(widths, axis=1) - widths
    allowed = np.isfinite(scores) & (rng.random(scores.shape) < 0.7)
    budgets = rng.integers(0, 6, [rows, num_groups])
    turn = np.argsort(rng.random([rows, num_groups]), axis=1)
    num_candidates = rng.integers(1, 40, rows)
    ints = [tf.constant(values, tf.int32) for values in (group, starts, budgets, turn, num_candidates)]
    found, columns = select(
        GroupResults(tf.constant(np.where(allowed, scores, -np.inf), tf.float32), ints[0], ints[0], ints[1]),
        tf.constant(np.full(rows, MERGES.index(merge), np.int32)),
        GroupPlan(ints[2], ints[3]),
        ints[4],
    )
    assert found.shape == (rows, num_candidates.max())
    for row in range(rows):
        kept = []
        for one in range(num_groups):
            members = [c for c in np.flatnonzero(group[row] == one) if allowed[row, c]]
            kept += [(rank, turn[row, one], c) for rank, c in enumerate(members[: budgets[row, one]])]
        by_score = sorted(kept, key=lambda entry: (-scores[row, entry[2]], entry[2]))
        best = [entry[2] for entry in (sorted(kept) if merge == "round_robin" else by_score)][: num_candidates[row]]
        present = np.isfinite(found.numpy()[row])
        assert columns.numpy()[row][present].tolist() == best
        assert found.numpy()[row][: len(best)].tolist() == scores[row, best].tolist()


def test_thousands_of_groups_take_turns_to_the_end_of_a_long_list():
    """The last place, rank 4,999 of 4,096 groups, is beyond 2^24, where floats have gaps."""
    num_groups, size = 4096, 5000
    preference = np.full([1, num_groups], LOG_PROBABILITY_FLOOR)
    preference[0, [2, 3]] = -1, 0
    available = np.zeros([1, num_groups], np.int32)
    available[0, [2, 3]] = size
    scores = np.tile(-np.arange(size, dtype=np.float32), 2)
    group = np.repeat([2, 3], size)
    starts = np.cumsum(available, axis=1) - available
    codes = np.full(1, MERGES.index("round_robin"), np.int32)
    ints = [tf.constant(values, tf.int32) for values in (group[None], starts, codes, [2 * size])]
    found = GroupResults(tf.constant(scores[None]), ints[0], ints[0], ints[1])
    _, columns = select(found, ints[2], plan("round_robin", [2 * size], preference, available), ints[3])
    assert group[columns.numpy()[0]].tolist() == [3, 2] * size


def test_exclusions_answer_by_row():
    group_of_slot = tf.constant([-1, 0, 1, 1, -1], tf.int32)  # the item at slot 4 is of no group that counts
    exclusions = Exclusions.of(tf.constant([[2, 3, 2], [0, 0, 0], [4, 0, 0]], tf.int64), num_items=4)
    assert exclusions.count_by_group(group_of_slot, 2).numpy().tolist() == [[0, 2], [0, 0], [0, 0]]
    contained = exclusions.contains(tf.constant([[1, 2, 3, 4]] * 3)).numpy()
    assert contained.tolist() == [[False, True, True, False], [False] * 4, [False, False, False, True]]
    more = exclusions.adding(tf.constant([[1], [0], [4]], tf.int32))
    assert more.count_by_group(group_of_slot, 2).numpy().tolist() == [[1, 2], [0, 0], [0, 0]]
