"""The gate on simulated models: broken ones are refused, better ones never, equal ones at the stated rate."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import scipy.stats

from contracts.config import GateConfig
from pipeline.retraining.evidence import Answers, Holdout, Measured, measure
from pipeline.retraining.gate import Verdict, equal_refusal_rate, judge, relative_change

USERS, ITEMS, GROUPS, K, TARGETS = 1200, 400, 4, 50, 2
CONFIG = GateConfig(k=K, max_drop=0.1, min_recall=0.1, min_coverage=0.2)


@dataclass
class World:
    """Users with two targets each, and models that list a target with a given probability."""

    holdout: Holdout
    targets: np.ndarray  # [USERS, TARGETS]
    rng: np.random.Generator

    @classmethod
    def make(cls, seed: int) -> "World":
        rng = np.random.default_rng(seed)
        targets = np.argsort(rng.random((USERS, ITEMS)), axis=1)[:, :TARGETS] + 1
        group = np.concatenate([[-1], np.arange(ITEMS) % GROUPS]).astype(np.int32)
        counts = np.concatenate([[0], np.ones(ITEMS, int)])
        counts[-20:] = 0  # the last 20 items are cold
        users = np.repeat(np.arange(USERS), TARGETS)
        return cls(Holdout(users, targets.ravel(), np.zeros(USERS, np.int64), group, counts), targets, rng)

    def model(self, probability: float) -> np.ndarray:
        """Lists [USERS, K] that hold each target with that probability; the rest are warm non-targets."""
        order = self.rng.random((USERS, ITEMS))
        order[:, -20:] += 2
        np.put_along_axis(order, self.targets - 1, 3.0, axis=1)
        lists = np.argsort(order, axis=1)[:, :K] + 1
        hit = self.rng.random((USERS, TARGETS)) < probability
        places = np.argsort(self.rng.random((USERS, K)), axis=1)[:, :TARGETS]
        chosen = np.where(hit, self.targets, np.take_along_axis(lists, places, axis=1))
        np.put_along_axis(lists, places, chosen, axis=1)
        return lists

    def measured(self, lists: np.ndarray, milliseconds: float = 2.0) -> Measured:
        return measure(self.holdout, Answers(lists, np.full(20, milliseconds)))

    def judge(self, candidate: Measured, reference: Measured, config: GateConfig = CONFIG, **more: float) -> Verdict:
        known = {"seed": 0, "leaked": 0, "index_recall": 1.0, "recall_target": 0.95, "explored": 0.0, **more}
        return judge(config, self.holdout, candidate, reference, "version 1", **known)


def dead_group(world: World, lists: np.ndarray) -> np.ndarray:
    """Items of group 2 give way to items of others that the list does not hold."""
    order = world.rng.random((USERS, ITEMS))
    order[:, world.holdout.group_id[1:] == 2] = 3
    np.put_along_axis(order, lists - 1, np.where(world.holdout.group_id[lists] == 2, 3, -1.0), axis=1)
    return np.argsort(order, axis=1)[:, :K] + 1


BROKEN = {
    "constant scores: one list for all": lambda w, lists: np.tile(lists[:1], (USERS, 1)),
    "shuffled items": lambda w, lists: np.argsort(w.rng.random((USERS, ITEMS)), axis=1)[:, :K] + 1,
    "one dead group": dead_group,
    "labels leaked": lambda w, lists: w.model(0.99),
    "users mixed up": lambda w, lists: np.roll(lists, 1, axis=0),
    "one item repeated": lambda w, lists: np.where(np.arange(K) % 2, lists[:, :1], lists),
    "scores not a number: empty lists": lambda w, lists: np.zeros_like(lists),
    "half the places empty": lambda w, lists: np.where(np.arange(K) < K // 2, lists, 0),
    "items that left the catalogue": lambda w, lists: np.where(np.arange(K) < 5, lists, lists + ITEMS),
    "untrained items first": lambda w, lists: np.where(np.arange(K) < 30, ITEMS - np.arange(K) % 20, lists),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_is_refused(kind: str) -> None:
    world = World.make(0)
    reference = world.measured(world.model(0.4))
    good = world.model(0.45)
    assert world.judge(world.measured(good), reference).blessed
    verdict = world.judge(world.measured(BROKEN[kind](world, good)), reference)
    assert not verdict.blessed
    assert verdict.reasons()
    assert np.isfinite([check.value for check in verdict.checks]).all()  # the record is JSON


# Check -> what of the candidate, and of the reference, is another; nothing but that check must fail then.
ALONE = {
    "coverage": ({"coverage": 0.1}, {"coverage": 0.1}),
    "coverage change": ({"coverage": 0.3}, {}),
    "filled": ({"filled": 0.5}, {}),
    "cold_share": ({"cold_share": 0.9}, {}),
    "group_presence": ({"group_places": np.array([100.0, 100.0, 0.0, 100.0])}, {}),
    "latency_ms": ({"milliseconds": 500.0}, {"milliseconds": 500.0}),
    f"recall_at_{K}": ({"recall": np.full(USERS, 0.09)}, {"recall": np.full(USERS, 0.09)}),
    f"recall_at_{K} too good": ({"recall": np.full(USERS, 0.99)}, {"recall": np.full(USERS, 0.99)}),
    f"recall_at_{K} change, low end": ({"recall": np.full(USERS, 0.35)}, {"recall": np.full(USERS, 0.4)}),
    "recall gain": ({"recall": np.full(USERS, 0.81)}, {"recall": np.full(USERS, 0.4)}),
}


@pytest.mark.parametrize("name", ALONE)
def test_every_floor_refuses_by_itself(name: str) -> None:
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    of_candidate, of_reference = ALONE[name]
    verdict = world.judge(replace(good, **of_candidate), replace(reference, **of_reference))
    assert failed(verdict) == [name]


def test_no_gain_is_too_large_for_a_model_that_knows_the_span() -> None:
    """A span of items that were new on its day tells several times what anybody could know before it."""
    world = World.make(0)
    reference, good = world.measured(world.model(0.3)), world.measured(world.model(0.9))
    assert failed(world.judge(good, reference)) == ["recall gain"]
    assert world.judge(good, reference, knows_the_span=True).blessed


def test_a_groups_presence_is_its_share_of_all_places_over_that_of_all_targets() -> None:
    """Targets of groups too small to be judged count as well: group 1 has 3 of 10 targets, and 9 of 100 places."""
    targets = np.array([1, 1, 1, 1, 1, 1, 2, 2, 2, 3])
    holdout = Holdout(np.arange(10), targets, np.zeros(10, np.int64), np.array([-1, 0, 1, 2]), np.ones(4, int))
    model = measure(holdout, Answers(np.ones((10, 1), int), np.full(20, 2.0)))
    model = replace(model, group_places=np.array([90.0, 9.0, 1.0]))
    verdict = judge(GateConfig(min_group_targets=3), holdout, model, model, "version 1", 0, 0, 1.0, 0.95, 0.0)
    [check] = [check for check in verdict.checks if check.name == "group_presence"]
    assert check.value == pytest.approx(0.09 / 0.3)


@pytest.mark.parametrize(("kept", "refused"), [(0.0, True), (0.59, True), (0.61, False), (1.0, False)])
def test_places_that_are_kept_for_cold_items_are_no_fault(kept: float, refused: bool) -> None:
    """Cold items hold .8 of all places; with .6 kept for them, half of the others, which is the limit."""
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    verdict = world.judge(replace(good, cold_share=0.8), reference, explored=kept)
    assert failed(verdict) == ["cold_share"] * refused


def test_a_holdout_of_few_users_is_no_evidence() -> None:
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    assert failed(world.judge(good, reference, replace_config(min_users=USERS + 1))) == ["users"]
    assert world.judge(good, reference, replace_config(min_users=USERS)).blessed


def test_a_group_that_is_served_much_worse_refuses_by_itself() -> None:
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    of_target = world.holdout.group_id[world.holdout.targets]
    worse = replace(good, hit=good.hit & ((of_target != 2) | (np.arange(len(good.hit)) % 8 == 0)))
    verdict = world.judge(worse, reference)
    assert failed(verdict) == ["worst group's recall change, high end"]
    # The upper end of the candidate's share of both models' hits (Clopper and Pearson), at a level shared out among the
    # groups.
    ends = []
    for group in range(GROUPS):
        a, b = (int(np.sum(hit[of_target == group])) for hit in (worse.hit, reference.hit))
        level = 1 - (1 - CONFIG.confidence) / GROUPS
        share = scipy.stats.binomtest(a, a + b, alternative="less").proportion_ci(level).high
        ends.append(share / (1 - share) - 1)
    [check] = [check for check in verdict.checks if not check.passed]
    assert check.value == pytest.approx(min(ends), rel=1e-6)


@pytest.mark.parametrize(("groups", "probability"), [(4, 0.03), (25, 0.4)], ids=["rare hits", "many groups"])
def test_a_small_group_of_which_nothing_is_found_any_more_refuses(groups: int, probability: float) -> None:
    """A normal approximation of its recall, at its worst where nothing is found, would call that chance.

    Were half of n hits still to be found, chance would take all of them once in 1.5**n times.
    """
    world = World.make(0)
    world.holdout.group_id[1:] = np.arange(ITEMS) % groups
    reference = world.measured(world.model(probability))
    lost = reference.hit & (world.holdout.group_id[world.holdout.targets] == 2)
    assert 1.5 ** -lost.sum() < (1 - CONFIG.confidence) / groups
    verdict = world.judge(replace(reference, hit=reference.hit & ~lost), reference)
    assert "worst group's recall change, high end" in failed(verdict)


def test_equal_models_lose_no_group_by_chance() -> None:
    """At a level of 0.95 for all groups together, one of 20 may be refused; of a fall by half, hardly any is."""
    for seed in range(20):
        world = World.make(seed)
        world.holdout.group_id[1:] = np.arange(ITEMS) % 50
        verdict = world.judge(world.measured(world.model(0.4)), world.measured(world.model(0.4)))
        assert "worst group's recall change, high end" not in failed(verdict)


def test_a_group_of_few_targets_is_not_judged() -> None:
    """Three items become a fifth group, which the candidate neither lists nor finds a target of.

    At a confidence of 0.5: above it, chance alone excuses so few targets.
    """
    world = World.make(0)
    world.holdout.group_id[1:4] = GROUPS
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    of_target = world.holdout.group_id[world.holdout.targets]
    targets = int(np.sum(of_target == GROUPS))
    assert 0 < targets < CONFIG.min_group_targets
    places = np.append(good.group_places[:GROUPS], 0)
    without = replace(good, hit=good.hit & (of_target != GROUPS), group_places=places)
    assert world.judge(without, reference, replace_config(confidence=0.5)).blessed
    judged = failed(world.judge(without, reference, replace_config(confidence=0.5, min_group_targets=targets)))
    assert judged == ["group_presence", "worst group's recall change, high end"]


def failed(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if not check.passed]


def replace_config(**keys: float) -> GateConfig:
    return CONFIG.model_copy(update=keys)


def test_places_of_unknown_items_are_not_filled_and_what_is_seen_need_not_be() -> None:
    """100 items, lists of 50: who has seen 60 can be given 40. 45 of the other's 50 are of no catalogue."""
    group = np.concatenate([[-1], np.zeros(100, np.int64)])
    holdout = Holdout(np.array([0, 1]), np.array([1, 1]), np.array([60, 0]), group, group + 2)
    lists = np.zeros((2, 50), np.int64)
    lists[0, :40] = np.arange(1, 41)
    lists[1] = np.where(np.arange(50) < 45, np.arange(50) + 101, np.arange(50) + 1)
    found = measure(holdout, Answers(lists, np.zeros(0)))
    assert found.filled == pytest.approx((40 + 5) / (40 + 50))
    assert (found.coverage, found.group_places.tolist()) == ((40 + 5) / 100, [40 + 5])


def test_a_model_that_serves_badly_is_refused() -> None:
    world = World.make(0)
    reference, lists = world.measured(world.model(0.4)), world.model(0.45)
    slow = world.judge(world.measured(lists, milliseconds=9.0), reference)  # 4.5 times the reference's
    assert [check.name for check in slow.checks if not check.passed] == ["latency ratio"]
    poor = world.judge(world.measured(lists), reference, index_recall=0.5, recall_target=0.95)
    assert [check.name for check in poor.checks if not check.passed] == ["index_recall, high end"]


def test_a_model_that_was_trained_on_the_holdout_is_refused_however_little_it_gained() -> None:
    world = World.make(0)
    reference, better = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    assert world.judge(better, reference, leaked=0).blessed
    shown = world.judge(better, reference, leaked=1)
    assert [check.name for check in shown.checks if not check.passed] == ["holdout events in training"]


@pytest.mark.parametrize("kind", ["constant scores: one list for all", "shuffled items", "one dead group"])
def test_a_broken_first_model_is_refused_without_a_served_one(kind: str) -> None:
    world = World.make(0)
    popularity = replace(world.measured(world.model(0.2)), milliseconds=None)
    good = world.model(0.45)
    assert world.judge(world.measured(good), popularity).blessed
    assert not world.judge(world.measured(BROKEN[kind](world, good)), popularity).blessed


def test_a_value_that_is_not_a_number_never_passes() -> None:
    world = World.make(0)
    reference = world.measured(world.model(0.4))
    nothing = replace(world.measured(world.model(0.4)), coverage=float("nan"))
    assert not world.judge(nothing, reference).blessed


def test_a_group_of_which_the_served_model_finds_nothing_is_no_reason_to_keep_it() -> None:
    world = World.make(0)
    reference, good = world.measured(world.model(0.4)), world.measured(world.model(0.45))
    of_target = world.holdout.group_id[world.holdout.targets]
    assert world.judge(good, replace(reference, hit=reference.hit & (of_target != 2))).blessed


def test_a_served_model_that_lists_nothing_is_no_reason_to_keep_it() -> None:
    """Whatever finds something is infinitely better, which is no sign of leaked labels, and shows no fewer items."""
    world = World.make(0)
    lists = world.model(0.45)
    assert world.judge(world.measured(lists), world.measured(np.zeros_like(lists))).blessed


def test_a_last_group_that_nobody_wants_is_not_judged() -> None:
    world = World.make(0)
    group_id, counts = np.append(world.holdout.group_id, GROUPS), np.append(world.holdout.train_count, 1)
    world.holdout = replace(world.holdout, group_id=group_id, train_count=counts)
    assert world.judge(world.measured(world.model(0.45)), world.measured(world.model(0.4))).blessed


def test_models_that_find_everything_are_equal_in_every_group() -> None:
    world = World.make(0)
    perfect = world.measured(world.model(1.0))
    verdict = world.judge(perfect, perfect)
    assert [check.name for check in verdict.checks if not check.passed] == [f"recall_at_{K} too good"]


def test_a_better_model_is_never_refused() -> None:
    """Better by the threshold: recall 0.44 against 0.40 is 10% more."""
    verdicts = []
    for seed in range(20):
        world = World.make(seed)
        verdicts.append(world.judge(world.measured(world.model(0.44)), world.measured(world.model(0.40))))
    assert [verdict.reasons() for verdict in verdicts if not verdict.blessed] == []


def test_an_equal_model_is_refused_at_the_stated_rate() -> None:
    """400 pairs of equal models on 300 users, by their hits: recall of two targets at 0.4 each.

    The error of the relative change is about sqrt(2 * 0.4 * 0.6 / 600) / 0.4 = 7%, so at max_drop 10% the
    stated rate is Phi(1.645 - 0.1 / 0.07), about 0.59.
    """
    rng = np.random.default_rng(0)
    config = CONFIG.model_copy(update={"bootstrap_samples": 400})
    refused, stated = [], []
    for trial in range(400):
        mine, theirs = rng.binomial(TARGETS, 0.4, (2, 300)) / TARGETS
        low, error = relative_change(mine, theirs, config, seed=trial)
        refused.append(low < -config.max_drop)
        stated.append(equal_refusal_rate(error, config))
    assert np.mean(stated) == pytest.approx(0.59, abs=0.05)
    # Standard error of the share of 400 is 0.025.
    assert np.mean(refused) == pytest.approx(np.mean(stated), abs=0.09)


@pytest.mark.parametrize("recall", [0.03, 0.1, 0.4])
def test_a_model_that_is_worse_by_the_limit_passes_no_more_often_than_stated(recall: float) -> None:
    """Both list most of the same targets of 100 users, as a model does that goes on from the other.

    At a confidence of 0.95, one in 20 of those that are worse by just `max_drop` may pass; the standard error of the
    share of 300 is 0.013. Were just the 100 resampled, 0.52, 0.14 and 0.07 of them would.
    """
    rng = np.random.default_rng(0)
    config = CONFIG.model_copy(update={"bootstrap_samples": 300})
    passed = []
    for trial in range(300):
        luck = rng.random((2, 100))
        luck[1] = np.where(rng.random(100) < 0.9, luck[0], luck[1])
        mine, theirs = luck[0] < recall * (1 - config.max_drop), luck[1] < recall
        low, _ = relative_change(mine.astype(float), theirs.astype(float), config, seed=trial)
        passed.append(low >= -config.max_drop)
    assert np.mean(passed) < 0.05 + 3 * 0.013


@pytest.mark.parametrize(("hits", "is_told"), [(15, False), (35, True)])
def test_it_takes_hits_to_tell_that_a_model_answers_as_the_reference_does(hits: int, is_told: bool) -> None:
    """Of two models that differ by 10%, 0.9 ** hits is the chance to differ on none of them: 0.21 and 0.025."""
    recall = np.repeat([1.0, 0.0], [hits, 400 - hits])
    low, _ = relative_change(recall, recall, CONFIG, seed=0)
    assert (low >= -CONFIG.max_drop) == is_told


def test_the_change_against_a_reference_that_serves_one_user_is_a_number() -> None:
    recall = np.zeros(50)
    recall[7] = 1.0
    assert relative_change(np.ones(50), recall, CONFIG, seed=0) != relative_change(np.ones(50), recall, CONFIG, seed=1)
    assert np.isfinite(relative_change(np.ones(50), recall, CONFIG, seed=0)).all()


@pytest.mark.parametrize(("hits", "is_told"), [(0, False), (1, False), (20, True)])
def test_against_a_reference_that_happens_to_serve_nobody_it_takes_more_than_a_lucky_hit(
    hits: int, is_told: bool
) -> None:
    """Of 50 users and a recall of .03, an equal reference serves none in .22 of all holdouts."""
    low, error = relative_change(np.repeat([1.0, 0.0], [hits, 50 - hits]), np.zeros(50), CONFIG, seed=0)
    assert np.isfinite([low, error]).all()
    assert (low >= -CONFIG.max_drop) == is_told


def test_measures_agree_with_sets() -> None:
    """Each measure against plain loops over users; one list holds a repeat and an empty place, some hold cold items."""
    world = World.make(3)
    lists = world.model(0.5)
    lists[0, :3] = [7, 7, 0]
    measured = measure(world.holdout, Answers(lists, np.array([9.0, 1.0, 2.0])))
    of_user = [set(row.tolist()) - {0} for row in lists]
    wanted = [row.tolist() for row in world.targets]
    np.testing.assert_allclose(
        measured.recall, [len(of & set(targets)) / TARGETS for of, targets in zip(of_user, wanted, strict=True)]
    )
    hits = [target in of for of, targets in zip(of_user, wanted, strict=True) for target in targets]
    assert measured.hit.tolist() == hits
    listed = [item for of in of_user for item in of]
    assert measured.coverage == len(set(listed)) / ITEMS
    assert measured.filled == len(listed) / (USERS * K)
    cold = sum(item > ITEMS - 20 for item in listed)
    assert measured.cold_share == pytest.approx(cold / len(listed)) and cold
    assert measured.group_places.tolist() == [
        sum(world.holdout.group_id[item] == group for item in listed) for group in range(GROUPS)
    ]
    assert measured.milliseconds == 2.0


def test_ndcg_of_hand_made_lists() -> None:
    """Targets at places 1, 3 and 11, of which ten count: (1 + 1 / log2(4)) / (1 + 1 / log2(3) + 1 / log2(4)).

    The other user's one target fills the list: its first place is the only one.
    """
    group, counts = np.array([-1] + [0] * 12), np.array([0] + [1] * 12)
    holdout = Holdout(np.array([0, 0, 0, 1]), np.array([5, 6, 7, 5]), np.zeros(2, int), group, counts)
    lists = np.array([[5, 1, 6, 2, 3, 4, 8, 9, 10, 11, 7] + [0] * 29, [5] * 40])
    np.testing.assert_allclose(measure(holdout, Answers(lists, np.empty(0))).ndcg, [1.5 / 2.1309297535714573, 1])


def test_groups_too_small_to_judge_refuse_nothing() -> None:
    world, config = World.make(0), CONFIG.model_copy(update={"min_group_targets": 10**6})
    measured = world.measured(world.model(0.5))
    assert [one.value for one in world.judge(measured, measured, config).checks if "group" in one.name] == [1.0, 0.0]
