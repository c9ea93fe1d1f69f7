"""What recall cannot see: the order of a list."""

from dataclasses import replace

import numpy as np
import pytest

from contracts.config import GateConfig
from pipeline.retraining.evidence import Answers, Holdout, measure
from pipeline.retraining.gate import judge
from tests.pipeline.test_gate import USERS, World, failed
from trainer.evaluation.metric_names import NDCG

ORDER = f"{NDCG} change, high end"


def test_lists_in_reverse_order_are_refused() -> None:
    """Each user's target is among the first ten of fifty; reversed, recall, coverage and groups are the same."""
    rng, users = np.random.default_rng(0), 400
    lists = np.argsort(rng.random((users, 200)), axis=1)[:, :50] + 1
    targets = lists[np.arange(users), rng.integers(0, 10, users)]
    targets[::2] = 200 + np.arange(users // 2) % 20  # what no list holds
    group = np.append(-1, np.arange(220) % 4)
    holdout = Holdout(np.arange(users), targets, np.zeros(users, np.int64), group, np.append(0, np.ones(220, int)))
    own, reverse = (measure(holdout, Answers(answer, np.full(20, 2.0))) for answer in (lists, lists[:, ::-1]))
    config = GateConfig(k=50, min_coverage=0.2, max_drop=0.3)
    verdicts = [judge(config, holdout, one, own, "version 1", 0, 0, 1.0, 0.95, 0.0) for one in (own, reverse)]
    assert [failed(verdict) for verdict in verdicts] == [[], [ORDER]]
    assert "retrain.gate.max_ndcg_drop" in verdicts[1].reasons()[0]


@pytest.mark.parametrize(("ndcg", "refused"), [(0.12, True), (0.14, False), (0.5, False)])
def test_only_a_fall_by_half_is_refused(ndcg: float, refused: bool) -> None:
    """Of .26, which is .13; the high end differs from the change by the two users that are drawn along."""
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    before, after = (replace(one, ndcg=np.full(USERS, value)) for one, value in ((reference, 0.26), (good, ndcg)))
    assert failed(world.judge(after, before)) == [ORDER] * refused


@pytest.mark.parametrize(("found_by_reference", "refused"), [(3, False), (60, True)])
def test_chance_is_no_reason(found_by_reference: int, refused: bool) -> None:
    """Of 3 users who are found first, and no longer, the change is 1 / 4 - 1 = -.75, but two are chance."""
    world, first = World.make(0), np.arange(USERS) < found_by_reference
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    verdict = world.judge(replace(good, ndcg=np.zeros(USERS)), replace(reference, ndcg=1.0 * first))
    assert failed(verdict) == [ORDER] * refused
