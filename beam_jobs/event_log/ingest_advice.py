"""What is said about a valid log: its levels, and warnings if it may not be what its owner means."""

from __future__ import annotations

import logging

from beam_jobs.event_log.event_columns import ToldValues
from beam_jobs.event_log.id_shapes import are_lists, begin_oddly
from beam_jobs.event_log.span_statistics import OTHER
from beam_jobs.event_log.timestamps import as_text
from contracts.config import Config

log = logging.getLogger(__name__)

_BUSY_SHARE, _FEW_USERS = 0.1, 20
_TIED_SHARE = 0.9
_BY_ITEM_SHARE, _LEAST_STEPS = 0.99, 100
_UNLISTED_SHARE = 0.05


def say_what_counts(config: Config, levels: dict[str, int]) -> None:
    """If there are several levels, says how many events each has and which are positives (all, without a target_level).

    `levels`: level -> number of events.
    """
    feedback = config.data.feedback
    if len(feedback.levels) > 1:
        target = feedback.levels[feedback.target_level_index]
        found = ", ".join(f"{levels.get(level, 0):,} {level}" for level in feedback.levels)
        log.info("ingest: events by level: %s; positives are %r and above (data.feedback.target_level)", found, target)


def warn_of_unlikely_times(
    config: Config, counts: dict[str, int], num_unlikely: int, first_event: int, last_event: int
) -> None:
    """A date like 20240131 also reads as a second of 1970; a few unlikely times come from wrong clocks."""
    if num_unlikely:
        log.warning(
            "ingest: of %s events from %s to %s, %s are before 1991 or in the future. Remove them if they come from "
            "wrong clocks. If their times are misread, set data.timestamp_unit (now %s), or write ISO 8601; for "
            "numbers such as 20240131, set data.timestamp_format='%%Y%%m%%d'; for ticks such as 638424288000000000, "
            "write (ticks - 621355968000000000) / 10. Row, order or day numbers in place of times do no harm",
            f"{counts['events']:,}", as_text(first_event), as_text(last_event), f"{num_unlikely:,}",
            config.data.timestamp_unit,
        )  # fmt: skip


def warn_of_nothing_held_out(config: Config, counts: dict[str, int]) -> None:
    """Warns if leave_one_out holds nothing out, as no user has enough items; `run` refuses such a split by time."""
    if not counts["validation_events"] + counts["test_events"]:
        level = config.data.feedback.levels[config.data.feedback.target_level_index]
        log.warning(
            "ingest: none of %s users has split.min_user_events=%s items of level %r or above, so nothing is held out "
            "and no model can be measured: check data.columns",
            f"{counts['users']:,}", config.split.min_user_events, level,
        )  # fmt: skip


def warn_of_tied_times(config: Config, counts: dict[str, int], num_tied: int) -> None:
    """`num_tied`: events at the same time as their user's previous one. A mean of the history needs no order."""
    share = num_tied / max(1, counts["events"] - counts["users"])
    if share > _TIED_SHARE and config.model.user_tower != "mean":
        log.warning(
            "ingest: %.0f%% of events have the same time as their user's previous event, as if times were only dates, "
            "so the order of histories, and which events come last, is arbitrary: if the order is known, add seconds "
            "to the times; if not, model.user_tower=mean may learn more",
            100 * share,
        )


def warn_of_order_by_item(steps: list[tuple[int, int, int]]) -> None:
    """Warns if histories are in the order of item ids; `steps`: of each bucket, see `steps_by_item`.

    The last items of such a history are those with the highest ids, so what is measured on them says nothing.
    """
    steps_of_log, *up = (sum(of_buckets) for of_buckets in zip(*steps, strict=True))
    share = max(up) / max(1, steps_of_log)
    if steps_of_log >= _LEAST_STEPS and share >= _BY_ITEM_SHARE:
        log.warning(
            "ingest: %.1f%% of the events whose item is not that of their user's previous event have a higher item id, "
            "as if rows sorted by user and item had been numbered: the last items of a history are then those with the "
            "highest ids, and what is measured on them means nothing. Use the real times; or, if the order is unknown, "
            "give all events the same time, and set model.user_tower=mean",
            100 * share,
        )


def warn_of_a_busy_user(config: Config, counts: dict[str, int], busiest: list[tuple[int, str]]) -> None:
    """`busiest`: for each bucket, the most events of one user, and that user's id."""
    most, user_id = max(busiest)
    if counts["users"] == 1:
        log.warning(
            "ingest: all events belong to one user, %r, from whom no model can learn what users like: check "
            "data.columns.user_id=%s", user_id, config.data.columns.user_id,
        )  # fmt: skip
    share = most / counts["events"]
    if share > _BUSY_SHARE and counts["users"] > _FEW_USERS:
        log.warning(
            "ingest: user %r has %.0f%% of the events: if it is a bot or stands for a missing user, remove its rows",
            user_id, 100 * share,
        )  # fmt: skip


def warn_of_odd_ids(shapes: dict[str, dict[str, int]]) -> None:
    """`shapes`: feature -> shape -> count, see `id_shapes`."""
    for feature, counts in shapes.items():
        if shape := begin_oddly(counts):
            log.warning(
                "ingest: most values of %s begin with a space or a quote, as in %r (9: any digits, a: any letters), "
                "and so must those of requests. Write the log without spaces after separators, and set "
                "data.quoting=auto if it has quotes", feature.split(".")[0], shape,
            )  # fmt: skip


def warn_of_lists_of_ids(shapes: dict[str, int]) -> None:
    """`shapes`: those of the item ids."""
    if shape := are_lists(shapes):
        log.warning(
            "ingest: most values of item_id look like lists of ids, such as %r (9: any digits, a: any letters), and "
            "each list counts as one item. Write one row for each id in a list", shape,
        )  # fmt: skip


def warn_of_unlisted_values(counts: dict[str, int], told: dict[str, ToldValues]) -> None:
    """`told`: the values of each request feature."""
    for name, (values, example) in told.items():
        if (number := values[OTHER]) > _UNLISTED_SHARE * counts["rows"]:
            log.warning(
                "ingest: the request feature %r has values that data.request_features does not list, such as %r, in %s "
                "of %s rows; unlisted values count as none: list those that matter",
                name, example, f"{number:,}", f"{counts['rows']:,}",
            )  # fmt: skip
