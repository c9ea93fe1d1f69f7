"""What is said about windows that were written: warnings of what is not learnt from and who is not measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeAlias

from contracts.artifact import Manifest
from contracts.config import Config
from contracts.config.data import MEASURE_NEW_USERS
from contracts.names import WindowField

log = logging.getLogger(__name__)

Counts: TypeAlias = Mapping[str, int]

_MANY = 0.2
_MOST = 0.5
_FEW_USERS = 50
HOLD_OUT_THE_END = "if users come back, hold out only the end of the log (split.protocol=time)"
_HOLD_OUT_LESS = (
    f"raise split.min_user_events={{}}, so that shorter histories are only trained on, or, {HOLD_OUT_THE_END}"
)

_LAST_ITEM = (
    f". If users come only once, {MEASURE_NEW_USERS}: each is then measured on the last new item, with what came "
    "before it as the history"
)


def advise(config: Config, totals: Counts, of_statistics: Manifest, max_user_positives: int) -> None:
    """Warns of whatever a reader of the metrics would not expect.

    Args:
        totals: of the windows' manifest.
        of_statistics: the statistics' manifest.
        max_user_positives: about how many positives of one user are trained on.
    """
    _warn_of_busy_users(totals, max_user_positives)
    _warn_of_lone_positives(totals)
    _warn_of_what_is_left_out(config, totals, of_statistics.counts["items_in_training"])
    for split in ("validation", "test"):
        _warn_of_unmeasured_users(config, split, totals, of_statistics.details["counts_of_events"]["users"])
    _warn_of_absent_negatives(config, totals)


def _warn_of_busy_users(totals: Counts, most: int) -> None:
    if totals["busy_positives"]:
        log.warning(
            "windows: %s positives are not trained on, and %s are: for each user, the newest %s or a few more "
            "(windows.max_user_positives). Users with more: %s. If they are not people but, for example, crawlers, "
            "remove them from the log: popularity and co-occurrence count their events, too",
            f"{totals['busy_positives']:,}", f"{totals['train_positives']:,}", f"{most:,}",
            f"{totals['busy_users']:,}",
        )  # fmt: skip


def _warn_of_what_is_left_out(config: Config, totals: Counts, items: int) -> None:
    repeats, learnt = totals["train_repeats"], totals["train_positives"]
    levels, target = config.data.feedback.levels, config.data.feedback.target_level_index
    are_few = target > 0 and learnt < items
    held_out = totals["validation_targets"] + totals["test_targets"]
    if config.split.protocol == "leave_one_out" and held_out > _MOST * learnt:
        log.warning(
            "windows: %s targets are held out, and only %s left to learn from, since histories are short: %s",
            f"{held_out:,}", f"{learnt:,}", _HOLD_OUT_LESS.format(config.split.min_user_events),
        )  # fmt: skip
    lacking = f"positives of level {levels[target]!r} or above in training" if target else "training events"
    remedy = "hold out less (split.protocol=time with later starts; in a retrain, shorter spans), and retrain as often"
    # If positives are few, another warning says what to do.
    advice = "" if are_few else f". If items are that short-lived, {remedy}"
    placed = "only data.item_features places them"
    if config.data.item_features is None:
        placed = "nothing tells where they belong, as data.item_features is not set"
    for split in ("validation", "test"):
        targets, cold = totals[f"{split}_targets"], totals[f"{split}_cold_targets"]
        if cold > _MANY * targets:
            log.warning(
                "windows: %s of %s targets in the %s split are items without %s (%s); lists keep places for them if "
                "that pays (serving.exploration_share)%s", f"{cold:,}", f"{targets:,}", split, lacking, placed, advice,
            )  # fmt: skip
    if repeats > _MANY * (repeats + learnt):
        log.warning(
            "windows: %s training events are of items that their user had before, and %s are learnt from: such items "
            "are never recommended, and only new ones are measured. To remind users of what they come back to, use "
            "something else as well, such as a list of what they had most often",
            f"{repeats:,}", f"{learnt:,}",
        )  # fmt: skip
    if are_few:
        log.warning(
            "windows: %s positives of level %r or above are few for %s items. A model does not learn to find events "
            "below data.feedback.target_level: setting it to %r gives more to learn from",
            f"{learnt:,}", levels[target], f"{items:,}", levels[target - 1],
        )  # fmt: skip


def _warn_of_lone_positives(totals: Counts) -> None:
    lone, learnt = totals["lone_positives"], totals["train_positives"]
    if lone > _MOST * (lone + learnt):
        log.warning(
            "windows: of %s positives in training, %s are the only event of their user there, and are not learnt "
            "from: they count as popularity alone. If data.columns.user_id names sessions, an id that lasts longer, "
            "such as a device or an account, gives more to learn from",
            f"{lone + learnt:,}", f"{lone:,}",
        )  # fmt: skip


def _warn_of_unmeasured_users(config: Config, split: str, totals: Counts, num_users: int) -> None:
    measured, repeating, new = (
        totals[f"{split}_{what}"] for what in ("users", "repeat_targets", "users_without_history")
    )
    if not measured:
        log.warning(
            "windows: no user has an event before the %s split and a new item in it, so nothing can be measured on it",
            split,
        )
        return
    if measured < _FEW_USERS:
        log.warning(
            "windows: %s users are measured on the %s split, too few to tell a good model from a bad one: hold out "
            "more (section split; in a retrain, longer spans), or use a longer log", f"{measured:,}", split,
        )  # fmt: skip
    if repeating > _MANY * (measured + repeating):
        log.warning(
            "windows: for %s of %s users, the %s split holds only items that they had before: only new items "
            "are recommended, and measured on the other users",
            f"{repeating:,}", f"{measured + repeating:,}", split,
        )  # fmt: skip
    users = measured + repeating + new
    if new > _MOST * users:
        log.warning(
            "windows: %s of %s users in the %s split have no event before it, so %s are measured%s",
            f"{new:,}", f"{users:,}", split, f"{measured:,}",
            _LAST_ITEM if config.split.new_users == "leave_out" else "",
        )  # fmt: skip
    if config.split.protocol == "leave_one_out" and measured < _MANY * num_users:
        log.warning(
            "windows: %s of %s users are measured on the %s split: the others have fewer than "
            "split.min_user_events=%s items, so the metrics are those of users with long histories",
            f"{measured:,}", f"{num_users:,}", split, config.split.min_user_events,
        )  # fmt: skip


def _warn_of_absent_negatives(config: Config, totals: Counts) -> None:
    settings, feedback = config.windows, config.data.feedback
    level = feedback.levels[feedback.target_level_index]
    kinds = (
        (
            WindowField.EXPOSED_NEGATIVES,
            settings.exposed_negatives,
            f"their users have next to nothing below level {level!r} that they never took: log what was shown",
        ),
        (
            WindowField.MINED_NEGATIVES,
            settings.mined_negatives,
            f"windows.mined_from={settings.mined_from} lacks their items: make it from a run that has them",
        ),
    )
    for name, number, remedy in kinds:
        absent, wanted = totals[f"absent_{name}"], number * totals["train_positives"]
        if absent > _MOST * wanted:
            log.warning(
                "windows: %s of %s %s are absent, leaving training.loss.choice_weight nothing to choose from, because "
                "%s, or remove windows.%s", f"{absent:,}", f"{wanted:,}", name, remedy, name,
            )  # fmt: skip
