"""Lists that hold most of a catalogue tell no models apart, so the gate refuses any model, and says which k would."""

import re

import numpy as np
import pytest

from contracts.config import GateConfig
from pipeline.retraining.evidence import Answers, Holdout, measure
from pipeline.retraining.gate import Verdict, judge

USERS = 200
LENGTH, TOO_GOOD = "share of unseen items in a list", "recall_at_{} too good"
LENIENT = GateConfig(max_recall=1.0)


def verdict_of(k: int, items: int, seen: np.ndarray | int = 0, config: GateConfig = LENIENT) -> Verdict:
    """On an untrained model's lists, and others' like them: unseen items in random order, and one target for each user.

    Each user has seen the last items of the catalogue.
    """
    rng = np.random.default_rng(0)
    num_seen = np.broadcast_to(seen, USERS).astype(np.int64)
    unseen = items - num_seen
    group = np.concatenate([[-1], np.zeros(items, np.int64)])
    holdout = Holdout(np.arange(USERS), 1 + rng.integers(unseen), num_seen, group, np.ones(items + 1, np.int64))

    def untrained() -> Answers:
        lists = np.zeros((USERS, k), np.int64)
        for row, number in zip(lists, unseen, strict=True):
            row[: min(k, number)] = 1 + rng.permutation(number)[:k]
        return Answers(lists, np.full(20, 2.0))

    mine, theirs = (measure(holdout, untrained()) for _ in range(2))
    config = config.model_copy(update={"k": k})
    return judge(config, holdout, mine, theirs, "version 1", 0, 0, 1.0, 0.95, 0.0)


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


@pytest.mark.parametrize("max_recall", [0.98, 1.0])
def test_lists_of_the_whole_catalogue_are_refused_for_their_length_alone(max_recall: float) -> None:
    """Any model finds everything in them: no leak is suspected, and nothing but their length tells that of a good one.

    All that its 90 items hold is in a list of 100, a share of 1; a tenth of them are 9.
    """
    verdict = verdict_of(k=100, items=90, config=GateConfig(max_recall=max_recall))
    assert not verdict.blessed
    assert verdict.reasons() == [
        f"{LENGTH} 1 is above 0.8: with retrain.gate.k=100, lists hold most of the 90 items that an average "
        "user has not seen, of 90 that the catalogue has, so recall says little of a model: set retrain.gate.k=9 (a "
        "tenth of them)"
    ]


@pytest.mark.parametrize(
    ("k", "items", "seen", "share"),
    [
        (90, 90, 0, 1.0),
        (100, 101, 0, 100 / 101),
        (81, 100, 0, 0.81),
        (80, 100, 0, 0.8),
        (80, 100, 1, 80 / 99),  # a list holds none of what its user has seen
        (80, 130, 30, 0.8),
        (100, 130, 60, 1.0),  # 70 can be listed, and are
        (9, 90, 0, 0.1),
    ],
)
def test_lists_may_hold_four_fifths_of_what_a_user_has_not_seen(k: int, items: int, seen: int, share: float) -> None:
    verdict = verdict_of(k, items, seen)
    [check] = [check for check in verdict.checks if check.name == LENGTH]
    assert check.value == pytest.approx(share, rel=1e-12)
    assert (LENGTH in failed(verdict)) == (share > 0.8)


def test_what_users_have_not_seen_counts_on_average() -> None:
    """Of 100 items, half of the users have seen 80 and half 20: lists of 70 hold 20 of 20 and 70 of 80, 90 of 100.

    A user has 50 left on average, of which a tenth are 5. Lists of 60 hold 20 and 60, four fifths, which may be.
    """
    seen = np.repeat([80, 20], USERS // 2)
    verdict = verdict_of(70, 100, seen)
    assert [check.value for check in verdict.checks if check.name == LENGTH] == [0.9]
    assert "most of the 50 items that an average user has not seen, of 100 that" in verdict.reasons()[0]
    assert "set retrain.gate.k=5 (a tenth" in verdict.reasons()[0]
    assert LENGTH not in failed(verdict_of(60, 100, seen))


@pytest.mark.parametrize("items", [2, 3, 9, 10, 11, 15, 25, 90])
def test_the_k_that_the_reason_names_is_short_enough(items: int) -> None:
    [named] = re.findall(r"set retrain\.gate\.k=(\d+) ", verdict_of(items, items).reasons()[0])
    assert LENGTH not in failed(verdict_of(int(named), items))


def test_no_k_is_short_enough_for_one_item() -> None:
    assert verdict_of(1, 1).reasons()[0].endswith("so recall says little of a model: the log needs more items")


def test_too_good_a_recall_of_lists_that_are_short_enough_names_its_setting() -> None:
    """Lists of 50 of 100 items find about half: more than a limit of .2 allows, and a tenth less than one of .6."""
    reasons = verdict_of(50, 100, config=GateConfig(max_recall=0.2)).reasons()
    [reason] = [reason for reason in reasons if reason.startswith("recall_at_50 too good")]
    assert reason.endswith("labels may have leaked; if they have not, raise retrain.gate.max_recall=0.2")
    assert TOO_GOOD.format(50) not in failed(verdict_of(50, 100, config=GateConfig(max_recall=0.6)))
