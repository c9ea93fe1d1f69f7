"""Statistics: the catalogue, the users, their training counts, and each item's sampling probability."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa

from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_parquet, write_parquet
from beam_jobs.event_log.id_shapes import marks_of_absence, spelled_twice
from beam_jobs.features.feature_tables import read_feature_table
from beam_jobs.statistics_steps import CountBucket, MergeCounts, WriteItems, WriteUsers
from contracts.artifact import Manifest, current, read_manifest, writing
from contracts.config import Config, FeatureTable
from contracts.layout import ItemStatistics, Workdir
from contracts.names import ItemColumn, UserColumn
from contracts.storage import remove

log = logging.getLogger(__name__)

_MANY = 0.5
_NEARLY_ALL = 0.99
_LEAST_ITEMS = 20


class CountItemsAndUsers(beam.PTransform):
    """Sources of counts (`CountBucket`) -> items.parquet, users.parquet and both vocabularies; yields their sizes."""

    def __init__(
        self, config: Config, statistics: ItemStatistics, known_items: Path | None, known_users: Path | None
    ) -> None:
        super().__init__()
        self._config = config
        self._statistics = statistics
        self._known_items = known_items
        self._known_users = known_users

    def expand(self, sources: beam.PCollection) -> beam.PCollection:
        target_level = self._config.data.feedback.target_level_index
        # Every bucket sends something to every partition, so as many as there are buckets would be too much to shuffle.
        partitions = math.isqrt(self._config.data.num_buckets) + 1
        counted = sources | "CountBuckets" >> beam.ParDo(CountBucket(target_level, partitions)).with_outputs(
            CountBucket.USERS, main="items"
        )
        items = (
            counted.items
            | "ByItem" >> beam.GroupByKey()
            | "MergeCounts" >> beam.ParDo(MergeCounts())
            | "AllItems" >> beam.GroupByKey()
            | "WriteItems"
            >> beam.ParDo(WriteItems(self._statistics, self._config.windows.popularity_exponent, self._known_items))
        )
        users = (
            counted[CountBucket.USERS]
            | "AllUsers" >> beam.GroupByKey()
            | "WriteUsers" >> beam.ParDo(WriteUsers(self._statistics, self._known_users))
        )
        return (items, users) | "Both" >> beam.Flatten()


def run(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the `ItemStatistics` artifact from the validated events.

    Raises:
        ValueError: there are no events, or a feature table cannot be read.
    """
    events = read_manifest(workdir.events.path)
    # Merged spans have already been counted one by one.
    folder = current(workdir.events.path)
    sources = events.details.get("counts") or [{"events": str(folder / name)} for name in events.files]
    with writing(workdir.item_statistics.path, ItemStatistics.KIND, fingerprint) as writer:
        staged = ItemStatistics(writer.path)
        items = _known_ids(config.data.item_features, "data.item_features", writer.path / "items.ids")
        users = _known_ids(config.data.user_features, "data.user_features", writer.path / "users.ids")
        job = CountItemsAndUsers(config, staged, items.path, users.path)
        for sizes in collect(config.beam, sources, job, writer.path):
            writer.counts.update(sizes)
        remove(*(known.path for known in (items, users) if known.path is not None))
        in_either = writer.counts["items"]
        items.warn_of_strangers(in_either - writer.counts["items_never_seen"], in_either, staged.items)
        users.warn_of_strangers(events.counts["users"], writer.counts["users"], staged.users)
        _warn_of_odd_ids(staged)
        _warn_of_times_by_item(staged)
        writer.details.update(
            popularity_exponent=config.windows.popularity_exponent,
            counts_of_events=events.counts,
        )
        writer.files = [staged.items.name, staged.users.name, staged.item_vocabulary.name, staged.user_vocabulary.name]
        log.info("statistics: %s", ", ".join(f"{count:,} {name}" for name, count in writer.counts.items()))
    return read_manifest(workdir.item_statistics.path)


def _warn_of_odd_ids(staged: ItemStatistics) -> None:
    """Warns of valid ids that may not be what they look like."""
    for path, name in ((staged.items, ItemColumn.ITEM_ID), (staged.users, UserColumn.USER_ID)):
        ids = read_parquet(path, columns=[name])[name]
        if marks := marks_of_absence(ids):
            log.warning(
                "statistics: %s is %s in some rows, which counts as an ordinary id: if it stands for a missing id, "
                "remove these rows from the log", name, " or ".join(marks),
            )  # fmt: skip
        twice = spelled_twice(ids)
        if len(twice):
            log.warning(
                "statistics: %s has values that occur as whole numbers and as decimals, such as %s and %s.0, which are "
                "two ids: %s of them. If files of the log differ in this, write the column the same way in all",
                name, twice[0], twice[0], f"{len(twice):,}",
            )  # fmt: skip


def _warn_of_times_by_item(staged: ItemStatistics) -> None:
    """Warns if each item's events end before the next one's begin, as they never do in a log with real times."""
    seen = read_parquet(staged.items, columns=[ItemColumn.FIRST_SEEN, ItemColumn.LAST_SEEN]).drop_null()
    first, last = (column.to_numpy() for column in seen.columns)
    order = np.flatnonzero(first < last)
    order = order[np.argsort(first[order])]
    if len(order) >= _LEAST_ITEMS and np.mean(last[order[:-1]] < first[order[1:]]) >= _NEARLY_ALL:
        log.warning(
            "statistics: each item's events end before the next item's begin, as if rows sorted by item had been "
            "numbered: every history is then in the order of the items, and what comes next means nothing. Use the "
            "real times; or, if the order is unknown, give all events the same time, and set model.user_tower=mean"
        )


@dataclass(frozen=True)
class _KnownIds:
    """The ids of a feature table.

    Attributes:
        where: the table, in words.
        path: a file of the ids; None without a table.
        number: how many there are.
        example: one of them.
    """

    where: str
    path: Path | None = None
    number: int = 0
    example: str = ""

    def warn_of_strangers(self, in_log: int, in_either: int, found: Path) -> None:
        """Warns if the log and the table have no id in common, or the table lacks most of the log's.

        `found` holds the ids of both, those with the most training events first.
        """
        missing = in_either - self.number
        if self.number and _MANY * in_log < missing < in_log:
            log.warning(
                "statistics: %s of the %s ids of the log have no row in %s, so the log is all that is known about them",
                f"{missing:,}", f"{in_log:,}", self.where,
            )  # fmt: skip
        if self.number and self.number + in_log == in_either:
            log.warning(
                "statistics: none of the %s ids of %s occurs in the log, so its features are of no use: it has %r, and "
                "the log %r. Write ids the same way in both, as text (17 and 17.0 are two ids, and so are 017 and 17)",
                f"{self.number:,}", self.where, self.example, read_parquet(found).column(0)[0].as_py(),
            )  # fmt: skip


def _known_ids(table: FeatureTable | None, name: str, path: Path) -> _KnownIds:
    if table is None:
        return _KnownIds(name)
    rows = read_feature_table(table, name)
    write_parquet(pa.table({"id": rows.ids}), path)
    where, example = f"{name} ({table.path}, column {table.id!r})", str(next(iter(rows.ids), ""))
    return _KnownIds(where, path, len(rows.ids), example)


if __name__ == "__main__":
    from beam_jobs.common.command import main

    main("beam_jobs.statistics")
