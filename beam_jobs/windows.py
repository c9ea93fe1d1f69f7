"""Windows: bucketed events -> group-tagged TFRecords with negatives, one shard a bucket and split."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import apache_beam as beam
import numpy as np

from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_parquet, write_array
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.same_events import of_other_events, require_same_events
from beam_jobs.event_log.timestamps import as_text
from beam_jobs.records.busy_users import max_user_positives
from beam_jobs.records.window_advice import HOLD_OUT_THE_END, advise
from beam_jobs.sampling.expected_draws import DrawsOfWindows
from beam_jobs.sampling.mined_neighbors import find_neighbors, read_item_embeddings
from beam_jobs.windows_steps import WriteWindows, expected_file
from contracts.artifact import Manifest, current, read_manifest, writing
from contracts.config import Config
from contracts.errors import TooFewEvents
from contracts.layout import Events, ItemGroups, ItemStatistics, Windows, Workdir
from contracts.names import ITEMS_PER_USER, ItemColumn, Split
from contracts.storage import remove

log = logging.getLogger(__name__)


def run(config: Config, workdir: Workdir, fingerprint: str, *, advises: bool = True) -> Manifest:
    """Writes the `Windows` artifact from events, item statistics and item groups.

    Args:
        advises: whether to say what training and evaluation on these windows leave out; an index refresh does neither.

    Raises:
        TooFewEvents: no user has two items to train on, the later one since `windows.since`.
        ValueError: an input artifact is missing or made for another config or of other items, or `windows.mined_from`
            is unusable.
    """
    events, statistics = Events(current(workdir.events.path)), ItemStatistics(current(workdir.item_statistics.path))
    groups = ItemGroups(current(workdir.item_groups.path))
    _require_fitting(config, events, statistics, groups)
    buckets = range(config.data.num_buckets)
    with writing(workdir.windows.path, Windows.KIND, fingerprint) as writer:
        staged = Windows(writer.path)
        neighbors = _neighbors(config, statistics, writer.path)
        paths = [(bucket, events.bucket(bucket, len(buckets))) for bucket in buckets]
        totals: Counter[str] = Counter()
        most = max_user_positives(config.windows, statistics)
        steps = beam.ParDo(WriteWindows(config, statistics, groups, staged, neighbors, most))
        for counts in collect(config.beam, paths, steps, writer.path):
            totals.update(counts)
        if neighbors is not None:
            remove(neighbors)
        if unknown := totals.pop("unknown"):
            what = f"{unknown:,} events in {workdir.events.path} have items or users that are not in"
            raise ValueError(of_other_events(what, workdir.item_statistics.path))
        if not totals["train_positives"]:
            raise TooFewEvents(_nothing_to_learn(config, workdir.events.path))
        _write_draw_shares(staged, statistics, groups, [expected_file(writer.path, bucket) for bucket in buckets])
        writer.details[ITEMS_PER_USER] = totals.pop("taken") / totals.pop("takers")
        writer.counts.update(totals)
        draws = {split: config.windows.resamples if split == Split.TRAIN else 1 for split in Split}
        writer.files = [
            staged.shard(split, bucket, len(buckets), draw).name
            for split in Split
            for draw in range(draws[split])
            for bucket in buckets
        ]
        writer.files.append(staged.draw_shares.name)
        writer.details["resamples"] = config.windows.resamples
        told = {feature.name: list(feature.values) for feature in config.data.request_features}
        writer.details["request_features"] = told
        if advises:
            advise(config, totals, read_manifest(statistics.path), most)
        log.info(
            "windows: %s positives in %s windows", f"{totals['train_positives']:,}", f"{totals['train_windows']:,}"
        )
    return read_manifest(workdir.windows.path)


def _write_draw_shares(windows: Windows, statistics: ItemStatistics, groups: ItemGroups, parts: list[Path]) -> None:
    """Writes the draw shares from the `expected_file`s of all buckets, which it then removes."""
    items = read_parquet(statistics.items, columns=[ItemColumn.SAMPLING_PROBABILITY])
    table = read_parquet(groups.groups, columns=[ItemColumn.GROUP_ID])
    expected = DrawsOfWindows.none(
        items[ItemColumn.SAMPLING_PROBABILITY].to_numpy(), table[ItemColumn.GROUP_ID].to_numpy()
    )
    for part in parts:
        expected.add_written(part)
    write_array(windows.draw_shares, np.stack([draws.shares() for draws in expected]))
    remove(*parts)


def _nothing_to_learn(config: Config, events: Path) -> str:
    feedback = config.data.feedback
    level = feedback.levels[feedback.target_level_index]
    since = "" if config.windows.since is None else f", the later one since {as_text(config.windows.since)},"
    manifest = read_manifest(events)
    counts = manifest.details.get("levels")  # merged spans have none
    found = ", ".join(f"{counts.get(name, 0):,} of {name!r}" for name in feedback.levels) if counts else ""
    remedy = "give the log longer histories"
    if config.split.protocol == "leave_one_out" and manifest.counts["test_events"]:
        # Raising split.min_user_events would hold out nobody: who has more items than its least value, 3, has two left.
        remedy += f", or, {HOLD_OUT_THE_END}"
    return (
        f"no user in {events} has two items of level {level!r}{' or above' if level != feedback.levels[-1] else ''}"
        f"{since} to train on (after the validation and test events are set apart"
        f"{f'; events by level: {found}' if found else ''}): {remedy}"
        f"{', or lower data.feedback.target_level' if feedback.target_level_index else ''}, or check data.columns"
    )


def _require_fitting(config: Config, events: Events, statistics: ItemStatistics, groups: ItemGroups) -> None:
    """Refuses artifacts that were made with another config, or that are older than what they were made from."""
    of_events, of_statistics, of_groups = (read_manifest(needed.path) for needed in (events, statistics, groups))
    settings = (
        ("data.num_buckets", config.data.num_buckets, len(of_events.files), events, "ingest"),
        (
            "windows.popularity_exponent",
            config.windows.popularity_exponent,
            of_statistics.details["popularity_exponent"],
            statistics,
            "statistics",
        ),
        ("groups.num_groups", config.groups.num_groups, of_groups.counts["groups"], groups, "groups"),
    )
    for name, wanted, made_with, artifact, stage in settings:
        if made_with != wanted:
            raise ValueError(
                f"{name}={wanted}, but {artifact.path} was made with {made_with}: run {stage} and all later stages "
                f"again, or set {name}={made_with}"
            )
    require_same_events(events, statistics)
    ids = [read_parquet(path, columns=[ItemColumn.ITEM_ID]) for path in (statistics.items, groups.groups)]
    if not one_array(ids[0][ItemColumn.ITEM_ID]).equals(one_array(ids[1][ItemColumn.ITEM_ID])):
        raise ValueError(f"{groups.path} groups other items than those of {statistics.path}: run groups again")


def _neighbors(config: Config, statistics: ItemStatistics, scratch: Path) -> Path | None:
    """Where mined negatives come from, if any are wanted."""
    settings = config.windows
    if not settings.mined_negatives or settings.mined_from is None:
        return None
    ids = read_parquet(statistics.items, columns=[ItemColumn.ITEM_ID])[ItemColumn.ITEM_ID]
    embeddings = read_item_embeddings(settings.mined_from, one_array(ids))
    return find_neighbors(config.beam, embeddings, settings.mined_neighbors, scratch)


if __name__ == "__main__":
    from beam_jobs.common.command import main

    main("beam_jobs.windows")
