"""The gate decides whether a candidate may be served, by absolute floors and by changes against a reference.

The reference is the served version or, before there is one, popularity, so that a change is always judged. A change
passes if the paired bootstrap rules out, one-sided at `confidence`, a fall by more than `max_drop`. A holdout with too
few users or hits to decide is therefore a reason to refuse; the verdict states how often an equal model is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.special import betaincinv

from contracts.config import GateConfig
from pipeline.retraining.evidence import Holdout, Measured
from trainer.evaluation.metric_names import NDCG, recall_name
from trainer.evaluation.metrics import bootstrap_changes

_NORMAL = NormalDist()

_MOST_LISTED = 0.8
"""Largest share of what users have not seen that lists may hold. Lists drawn at random find that share of targets."""

_LOST_AND_GAINED = np.array([0.0, 1.0]), np.array([1.0, 0.0])
"""Recall of two additional users by candidate and reference: each finds what the other does not."""


@dataclass(frozen=True)
class Check:
    """One condition: `value` must not be below (`at_least`) or above (`at_most`) the limit."""

    name: str
    value: float
    limit: float
    at_least: bool
    explanation: str

    @property
    def passed(self) -> bool:
        # A value that is not a number never passes.
        return bool(self.value >= self.limit) if self.at_least else bool(self.value <= self.limit)


def _at_least(name: str, value: float, limit: float, explanation: str) -> Check:
    return Check(name, value, limit, True, explanation)


def _at_most(name: str, value: float, limit: float, explanation: str) -> Check:
    return Check(name, value, limit, False, explanation)


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        blessed: all checks passed.
        reference: what the candidate was compared with, e.g. "version 7" or "popularity".
        equal_refused: chance that a candidate exactly as good as the reference is refused on this holdout.
    """

    blessed: bool
    reference: str
    checks: list[Check]
    equal_refused: float

    def reasons(self) -> list[str]:
        """Failed checks in words."""
        return [
            f"{check.name} {check.value:.4g} is {'below' if check.at_least else 'above'} {check.limit:.4g}: "
            f"{check.explanation}"
            for check in self.checks
            if not check.passed
        ]

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        checks = [{**asdict(check), "passed": check.passed} for check in self.checks]
        return {**asdict(self), "checks": checks, "reasons": self.reasons()}


def judge(
    config: GateConfig,
    holdout: Holdout,
    candidate: Measured,
    reference: Measured,
    reference_name: str,
    seed: int,
    leaked: int,
    index_recall: float,
    recall_target: float,
    explored: float,
    knows_the_span: bool = False,
) -> Verdict:
    """Judges a candidate.

    Args:
        reference: measured on the same users; without `milliseconds`, it is not a served model.
        leaked: events of the holdout that the candidate was trained on.
        index_recall: the lowest recall of the candidate's indexes against exact search, at its high end.
        recall_target: what index_recall must reach.
        explored: share of its places that the candidate reserves for items without training events.
        knows_the_span: whether the candidate, unlike the reference, has learnt what other users did in the holdout's
            span: no gain is then too large.
    """
    served = reference.milliseconds is not None
    length = _list_length(config, holdout)
    checks = [length, *_floors(config, holdout, candidate, index_recall, recall_target, explored)]
    if length.passed:  # otherwise a recall of 1 comes from the lists' length, and no leak need be looked for
        checks.append(_not_too_good(config, candidate))
    low, error = relative_change(candidate.recall, reference.recall, config, seed)
    explanation = f"a fall against {reference_name} cannot be ruled out"
    checks.append(_at_least(f"{recall_name(config.k)} change, low end", low, -config.max_drop, explanation))
    checks.append(_order(config, candidate, reference, seed))
    checks.append(_group_recall(config, holdout, candidate, reference))
    checks.append(_at_most("holdout events in training", leaked, 0, "the model was shown the answers"))
    if served:
        checks += [] if knows_the_span else [_gain(config, candidate, reference)]
        checks += _against_served(config, candidate, reference)
    return Verdict(
        blessed=all(check.passed for check in checks),
        reference=reference_name,
        checks=checks,
        equal_refused=equal_refusal_rate(error, config),
    )


def relative_change(candidate: np.ndarray, reference: np.ndarray, config: GateConfig, seed: int) -> tuple[float, float]:
    """Low end of the one-sided paired bootstrap interval of mean(candidate) / mean(reference) - 1, and its error.

    The users of `_LOST_AND_GAINED` are drawn with the others, just as Bonett and Price (2012) add one to both counts of
    discordant pairs. Without them, a holdout with a few hits, none of which happened to be lost, would show no error at
    all. Resamples in which the reference is 0 for all users have no ratio and are left out.

    Args:
        candidate, reference: float [num_users], of the same users.
    """
    change = _changes(candidate, reference, config, seed)
    return float(np.quantile(change, 1 - config.confidence)), float(change.std())


def _changes(candidate: np.ndarray, reference: np.ndarray, config: GateConfig, seed: int) -> np.ndarray:
    """[num_resamples] the changes of `relative_change`."""
    mine, theirs = map(np.append, (candidate, reference), _LOST_AND_GAINED)
    change = bootstrap_changes(mine[:, None], theirs[:, None], config.bootstrap_samples, seed)
    return change[~np.isnan(change)]


def equal_refusal_rate(error: float, config: GateConfig) -> float:
    """P(low end < -max_drop) if the true change is 0 and its estimate is normal with that error."""
    return float(_NORMAL.cdf(_NORMAL.inv_cdf(config.confidence) - config.max_drop / max(error, 1e-12)))


def _list_length(config: GateConfig, holdout: Holdout) -> Check:
    """Lists that hold most of what can be recommended find most targets, whatever the model, also an untrained one.

    Lists hold no item that their user has seen, so what counts is the rest of the catalogue.
    """
    unseen = holdout.num_items - holdout.num_seen
    listed = float(np.minimum(config.k, unseen).sum() / max(unseen.sum(), 1))
    mean = unseen.sum() / max(holdout.num_users, 1)
    # Of two items or more, the advice is at most half, which passes.
    advice = f"set retrain.gate.k={ceil(mean / 10)} (a tenth of them)" if mean >= 2 else "the log needs more items"
    explanation = (
        f"with retrain.gate.k={config.k}, lists hold most of the {mean:.0f} items that an average user has not seen, "
        f"of {holdout.num_items} that the catalogue has, so recall says little of a model: {advice}"
    )
    return _at_most("share of unseen items in a list", listed, _MOST_LISTED, explanation)


def _not_too_good(config: GateConfig, candidate: Measured) -> Check:
    explanation = f"labels may have leaked; if they have not, raise retrain.gate.max_recall={config.max_recall}"
    return _at_most(f"{recall_name(config.k)} too good", float(candidate.recall.mean()), config.max_recall, explanation)


def _floors(
    config: GateConfig,
    holdout: Holdout,
    candidate: Measured,
    index_recall: float,
    recall_target: float,
    explored: float,
) -> list[Check]:
    recall = float(candidate.recall.mean())
    # Among the places that are not reserved for cold items; with a log of news, most are.
    cold_share = max(candidate.cold_share - explored, 0.0) / max(1 - explored, 1e-9)
    checks = [
        _at_least("users", holdout.num_users, config.min_users, "the holdout is too small for a verdict"),
        _at_least(recall_name(config.k), recall, config.min_recall, "the model finds next to nothing"),
        _at_least("coverage", candidate.coverage, config.min_coverage, "all users get the same few items"),
        _at_least("filled", candidate.filled, config.min_filled, "places are empty, repeated, or hold no known item"),
        _at_most("cold_share", cold_share, config.max_cold_share, "untrained items fill the lists"),
        _at_least(
            "group_presence",
            _group_presence(config, holdout, candidate),
            config.min_group_presence,
            "a group that users want is hardly ever listed",
        ),
    ]
    if candidate.milliseconds is not None:
        checks.append(
            _at_most("latency_ms", candidate.milliseconds, config.max_latency_ms, "one request takes too long")
        )
    explanation = "an index misses what exact search finds"
    checks.append(_at_least("index_recall, high end", index_recall, recall_target, explanation))
    return checks


def _group_presence(config: GateConfig, holdout: Holdout, candidate: Measured) -> float:
    """The lowest ratio of a group's share of places to its share of targets, among groups with enough targets."""
    targets = np.bincount(holdout.group_id[holdout.targets], minlength=len(candidate.group_places))
    judged = targets >= config.min_group_targets
    if not judged.any():
        return 1.0
    wanted = targets / targets.sum()
    given = candidate.group_places / max(candidate.group_places.sum(), 1)
    return float((given[judged] / wanted[judged]).min())


def _order(config: GateConfig, candidate: Measured, reference: Measured, seed: int) -> Check:
    """Recall does not tell in which order a list comes: reversed, it has the same. A model gets the benefit of doubt.

    A smaller fall of NDCG at 10 is no reason to refuse: most retrieval is followed by a ranking.
    """
    high = float(np.quantile(_changes(candidate.ndcg, reference.ndcg, config, seed), config.confidence))
    explanation = "the best items are no longer among the first; if that is meant, raise retrain.gate.max_ndcg_drop"
    return _at_least(f"{NDCG} change, high end", high, -config.max_ndcg_drop, explanation)


def _group_recall(config: GateConfig, holdout: Holdout, candidate: Measured, reference: Measured) -> Check:
    """The worst group's recall over the reference's on the same targets; each group gets the benefit of the doubt."""
    group = holdout.group_id[holdout.targets]
    num_groups = int(holdout.group_id.max()) + 1
    targets = np.bincount(group, minlength=num_groups)
    mine, theirs = (np.bincount(group, hit, num_groups) for hit in (candidate.hit, reference.hit))
    judged = (targets >= config.min_group_targets) & (theirs > 0)
    change = 0.0
    if judged.any():
        level = 1 - (1 - config.confidence) / judged.sum()  # Bonferroni: many groups, one verdict
        # Upper end of the ratio of two counts. Given their sum, one of them is binomial if hits are rare, and varies
        # less otherwise. A normal approximation would excuse a small group of which nothing is found any more.
        share = betaincinv(mine[judged] + 1, theirs[judged], level)
        change = float((share / (1 - share)).min()) - 1
    return _at_least(
        "worst group's recall change, high end", change, -config.max_group_drop, "one group is served much worse"
    )


def _gain(config: GateConfig, candidate: Measured, reference: Measured) -> Check:
    theirs = float(reference.recall.mean())
    gain = float(candidate.recall.mean()) / theirs if theirs else 1.0
    explanation = (
        "so much better than the served model that labels may have leaked; if they have not, raise "
        f"retrain.gate.max_gain={config.max_gain}"
    )
    return _at_most("recall gain", gain, config.max_gain, explanation)


def _against_served(config: GateConfig, candidate: Measured, reference: Measured) -> list[Check]:
    checks = [
        _at_least(
            "coverage change",
            candidate.coverage / reference.coverage - 1 if reference.coverage else 0.0,
            -config.max_coverage_drop,
            "far fewer items are shown than now",
        ),
    ]
    if candidate.milliseconds is not None and reference.milliseconds:
        ratio = candidate.milliseconds / reference.milliseconds
        checks.append(_at_most("latency ratio", ratio, config.max_latency_ratio, "much slower than the served version"))
    return checks
