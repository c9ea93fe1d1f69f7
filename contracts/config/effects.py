"""Settings that a config gives but nothing would read: often a mistake, which would otherwise go unnoticed.

They cause a warning, not an error: people who try `groups.method=kmeans` leave the category in the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import reduce

from contracts.config import Config, Section
from contracts.config.data import Feature

_KINDS = {
    "separator": ("tokens", "vector"),
    "max_tokens": ("tokens", "text"),
    "max_vocabulary": ("categorical", "tokens", "text"),
}
"""Setting of a feature -> the kinds of features that it applies to."""

_READ_ONLY_WITH: dict[str, tuple[str, Callable[[Config], bool]]] = {
    "groups.category": ("groups.method=category or hybrid", lambda config: config.groups.method != "kmeans"),
    "groups.fit": ("groups.method=kmeans", lambda config: config.groups.method == "kmeans"),
    "groups.iterations": ("groups.fit=distributed", lambda config: config.groups.fit == "distributed"),
    "groups.restarts": ("groups.method=kmeans or hybrid", lambda config: config.groups.method != "category"),
    "split.min_user_events": (
        "split.protocol=leave_one_out",
        lambda config: config.split.protocol == "leave_one_out",
    ),
    **dict.fromkeys(
        ("windows.mined_from", "windows.mined_neighbors"),
        ("windows.mined_negatives above 0", lambda config: config.windows.mined_negatives > 0),
    ),
    "model.num_interests": (
        "mind or comirec in evaluation.baselines",
        lambda config: not {"mind", "comirec"}.isdisjoint(config.evaluation.baselines),
    ),
    "model.num_heads": ("model.user_tower=transformer", lambda config: config.model.user_tower == "transformer"),
    "model.feed_forward_multiple": (
        "model.user_tower=transformer or mean, or mind in evaluation.baselines",
        lambda config: config.model.user_tower != "gru" or "mind" in config.evaluation.baselines,
    ),
    "model.conditioning_dropout": (
        "model.conditioning=mmoe, concat or multiply",
        lambda config: config.model.conditioning != "none" and not config.model.reads_groups_first,
    ),
    **dict.fromkeys(
        ("model.num_experts", "model.expert_hidden_dim"),
        ("model.conditioning=mmoe or concat", lambda config: config.model.conditioning in {"mmoe", "concat"}),
    ),
    "model.oov_rate": ("model.oov_buckets above 0", lambda config: config.model.oov_buckets > 0),
    "training.learning_rate_drop": (
        "training.learning_rate_drops above 0",
        lambda config: config.training.learning_rate_drops > 0,
    ),
    "training.loss.global_by": (
        "training.loss.global_weight above 0",
        lambda config: config.training.loss.global_weight > 0,
    ),
    **dict.fromkeys(
        ("training.loss.binary_negatives", "training.loss.binary_calibration"),
        ("training.loss.binary_weight above 0", lambda config: config.training.loss.binary_weight > 0),
    ),
    **dict.fromkeys(
        ("training.loss.hierarchy", "training.loss.hierarchy_random"),
        ("training.loss.hierarchy_weight above 0", lambda config: config.training.loss.hierarchy_weight > 0),
    ),
}
"""Key -> the condition under which something reads it, in words and as a predicate."""


def settings_without_effect(config: Config) -> Iterator[str]:
    """Yields a line for each such setting: its key and value, why nothing reads it, and what to do.

    A default counts as not given, since a config that was printed in full names all of them.
    """
    yield from _of_tables(config)
    yield from _of_log(config)
    for key, (needed, is_read) in _READ_ONLY_WITH.items():
        *sections, name = key.split(".")
        section: Section = reduce(getattr, sections, config)
        value = getattr(section, name)
        if value != type(section).model_fields[name].default and not is_read(config):
            yield f"{key}={value} is read only with {needed}: set that, or leave {name} out"
    windows, loss = config.windows, config.training.loss
    if windows.mined_negatives and not loss.choice_weight:
        yield (
            f"windows.mined_negatives={windows.mined_negatives}: these are searched for and drawn, but training does "
            "not use them with training.loss.choice_weight=0: set that, or leave them out"
        )
    if windows.exposed_negatives and not (loss.choice_weight or loss.hierarchy_weight):
        yield (
            f"windows.exposed_negatives={windows.exposed_negatives}: these are drawn, but training does not use them "
            "with training.loss.choice_weight=0 and hierarchy_weight=0: set one of these weights, or leave them out"
        )


def _of_tables(config: Config) -> Iterator[str]:
    users, items = config.data.user_features, config.data.item_features
    if users is not None and users.title is not None:
        yield (
            f"data.user_features.title={users.title!r} is never shown, since reports name only items, by "
            "data.item_features.title: leave it out"
        )
    for section, table in (("user_features", users), ("item_features", items)):
        for feature in table.features if table else ():
            for name, kinds in _KINDS.items():
                value = getattr(feature, name)
                if feature.kind not in kinds and value != Feature.model_fields[name].default:
                    yield (
                        f"data.{section}.features: {feature.name!r} has {name}={value!r}, which applies to kind "
                        f"{' or '.join(kinds)}, but is of kind {feature.kind}: set another kind, or leave {name} out"
                    )


def _of_log(config: Config) -> Iterator[str]:
    data = config.data
    if data.timestamp_format is not None and data.timestamp_unit != "auto":
        yield (
            f"data.timestamp_unit={data.timestamp_unit} applies to numbers, but with data.timestamp_format="
            f"{data.timestamp_format!r} only times in that format are read: leave one of them out"
        )
    thresholds = data.feedback.rating_thresholds
    by_level = [level for level in data.feedback.levels if level in thresholds]
    for lower, higher in itertools.pairwise(by_level):
        if thresholds[lower] >= thresholds[higher]:
            yield (
                f"data.feedback.rating_thresholds: every rating that reaches {lower}={thresholds[lower]:g} also "
                f"reaches the higher level {higher}={thresholds[higher]:g}, so no rating means {lower}: give higher "
                "levels higher thresholds"
            )
