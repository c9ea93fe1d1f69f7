"""The share of a list that goes to cold items, those without training events.

In training a cold item is nobody's positive and everybody's negative, so its score puts it after nearly all others. If
many of the items that users turn to are new, as with news, a list by score finds none of them. Reserving a share of its
places does, at the price of as many other items. Whether that pays depends on the log, so it is measured.

Without a table of items, only somebody's held-out event makes a cold item known, so even random ones find many of the
targets. Nobody gains that way on the next day: what chance finds does not count.
"""

from __future__ import annotations

import logging

import numpy as np

from contracts.artifact import Manifest
from contracts.config import Config
from contracts.names import PADDING_INDEX
from trainer.catalogue import Catalogue
from trainer.evaluation.merge import num_explored
from trainer.evaluation.metrics import hits, recall_at_k
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.models.two_tower_model import TwoTowerModel

log = logging.getLogger(__name__)

EXPLORATION_SHARE = "exploration_share"
"""Key in the details of a `Model` artifact's manifest: the result of `measure_exploration_share`."""

_STANDARD_ERRORS = 2.0


def exploration_share(config: Config, model: Manifest) -> float:
    """`serving.exploration_share` or, if that is not set, the share that training measured for the model."""
    chosen = config.serving.exploration_share
    return float(model.details[EXPLORATION_SHARE]) if chosen is None else chosen


def measure_exploration_share(model: TwoTowerModel, catalogue: Catalogue, users: EvaluationUsers, k: int) -> float:
    """Cold items' share of the users' targets, if lists of k find more with it than without; else 0.

    The best cold items must find more than as many random ones would, by as much as is lost and more: the mean
    difference over users must exceed two standard errors of its comparison with random lists.

    Args:
        users: of the validation split.
    """
    targets = users.targets
    is_cold = (targets.values != PADDING_INDEX) & ~catalogue.is_trained[targets.values]
    share = float(is_cold.mean())
    places = num_explored(share, k)
    if not places:
        return 0.0
    num_cold = np.bincount(targets.row_ids(), is_cold, len(users))
    chance = min(1.0, places / np.count_nonzero(~catalogue.is_trained[1:]))
    of_a_hit = 1 / np.minimum(k, targets.lengths)
    by_chance = num_cold * chance * of_a_hit
    variance_by_chance = num_cold * chance * (1 - chance) * of_a_hit**2
    # Users without a cold target can only lose. If the others' gain is too small already, they need not be ranked.
    may_gain = num_cold > 0
    gain = np.zeros(len(users))
    for some in (may_gain, ~may_gain):
        if some.any():
            gained = _gain(model, catalogue, users.take(np.flatnonzero(some)), share, k)
            gain[some] = gained - by_chance[some]
        standard_error = np.sqrt((gain.var() + variance_by_chance.mean()) / len(users))
        if gain.mean() <= _STANDARD_ERRORS * standard_error:
            log.info(
                "%.3f of the validation targets are items without training events, but places for such items in lists "
                "of %d do not pay (serving.exploration_share): 0", share, k,
            )  # fmt: skip
            return 0.0
    return share


def _gain(model: TwoTowerModel, catalogue: Catalogue, users: EvaluationUsers, share: float, k: int) -> np.ndarray:
    """float64 [num_users]: recall of lists of k with the share, less that without."""
    without, explored = (
        recall_at_k(hits(ranking.lists("score", 0.0, k), users.targets), users.targets.lengths, k)
        for ranking in (ExactRanking(model, catalogue, users), ExactRanking(model, catalogue, users, share))
    )
    return explored - without
