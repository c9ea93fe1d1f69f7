"""The in-graph merge against trainer.scoring and a plain Python selection."""

import math

import numpy as np
import pytest
import tensorflow as tf

from serving.exclusion import Exclusions
from serving.merge import LOG_PROBABILITY_FLOOR, group_budgets, select
from trainer.scoring import fill_quotas, quotas


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


@pytest.mark.parametrize("seed", range(30))
def test_quota_budgets_are_the_oracles(seed):
    log_intent, available, num_candidates, alpha = random_case(seed)
    budgets = group_budgets(
        "quota",
        tf.constant(num_candidates, tf.int32),
        tf.constant(alpha),
        tf.constant(log_intent),
        tf.constant(available, tf.int32),
    ).numpy()
    for row, (wanted, exponent) in enumerate(zip(num_candidates, alpha, strict=True)):
        one = slice(row, row + 1)
        quota = quotas(log_intent[one], int(wanted), float(exponent))
        assert budgets[row].tolist() == fill_quotas(quota, available[one], log_intent[one])[0].tolist()
    assert budgets.sum(axis=1).tolist() == np.minimum(num_candidates, available.sum(axis=1)).tolist()


def test_quota_by_hand():
    # p = (.5, .3, .2), M = 5: running totals 2.5, 4, 5 round to 3, 4, 5, so 3, 1, 1. The first group
    # has one item: its two spare places go to the next by intent, which has one more, then to the last.
    budgets = group_budgets(
        "quota",
        tf.constant([5]),
        tf.constant([1.0]),
        tf.math.log(tf.constant([[0.5, 0.3, 0.2]])),
        tf.constant([[1, 2, 9]]),
    )
    assert budgets.numpy().tolist() == [[1, 2, 2]]


def test_score_budgets_are_bounded_by_m_and_by_the_group():
    budgets = group_budgets("score", tf.constant([4]), tf.constant([1.0]), tf.zeros([1, 3]), tf.constant([[2, 4, 9]]))
    assert budgets.numpy().tolist() == [[2, 4, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_select_keeps_each_groups_best_within_its_budget(seed):
    rng = np.random.default_rng(seed)
    rows, widths = 5, rng.integers(1, 9, 4)
    column_group = np.repeat([0, 2, 3, 6], widths)  # groups 1, 4, 5 are empty
    scores = rng.integers(0, 6, [rows, len(column_group)]).astype(np.float32)  # many ties
    for group in (0, 2, 3, 6):
        members = column_group == group
        scores[:, members] = -np.sort(-scores[:, members], axis=1)
    allowed = rng.random(scores.shape) < 0.7
    budgets = rng.integers(0, 6, [rows, 7])
    num_candidates = rng.integers(1, 40, rows)
    found, columns = select(
        tf.constant(scores),
        tf.constant(column_group, tf.int32),
        tf.constant(allowed),
        tf.constant(budgets, tf.int32),
        tf.constant(num_candidates, tf.int32),
    )
    assert found.shape == (rows, num_candidates.max())
    for row in range(rows):
        kept = []
        for group in (0, 2, 3, 6):
            members = [c for c in np.flatnonzero(column_group == group) if allowed[row, c]]
            kept += members[: budgets[row, group]]
        best = sorted(kept, key=lambda c: (-scores[row, c], c))[: num_candidates[row]]
        present = np.isfinite(found.numpy()[row])
        assert columns.numpy()[row][present].tolist() == best
        assert found.numpy()[row][: len(best)].tolist() == scores[row, best].tolist()


def test_select_masks_missing_results():
    found, _ = select(
        tf.constant([[math.nan, 1.0]]),
        tf.constant([0, 1]),
        tf.constant([[False, True]]),
        tf.constant([[3, 3]]),
        tf.constant([3]),
    )
    assert found.numpy().tolist() == [[1.0, -math.inf, -math.inf]]


def test_exclusions_answer_by_row():
    group_of_item = tf.constant([-1, 0, 1, 1, 0], tf.int32)
    exclusions = Exclusions(tf.ragged.constant([[2, 3, 2], [], [4]], dtype=tf.int64), num_items=4)
    assert exclusions.count_by_group(group_of_item, 2).numpy().tolist() == [[0, 2], [0, 0], [1, 0]]
    contained = exclusions.contains(tf.constant([[1, 2, 3, 4]] * 3)).numpy()
    assert contained.tolist() == [[False, True, True, False], [False] * 4, [False, False, False, True]]
