"""Statistics: the catalogue, the users, their training counts, and each item's sampling probability."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import apache_beam as beam
import pyarrow as pa

from beam_jobs.beam_run import collect
from beam_jobs.feature_tables import read_feature_table
from beam_jobs.files import write_parquet
from beam_jobs.statistics_steps import CountBucket, MergeCounts, WriteItems, WriteUsers
from contracts.artifact import Manifest, current, read_manifest, writing
from contracts.config import Config, FeatureTable
from contracts.layout import ItemStatistics, Workdir
from contracts.storage import remove

logger = logging.getLogger(__name__)


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
        # Every bucket sends something to every partition: as many partitions as buckets would be too much post.
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
    # Merged spans were counted one by one already.
    folder = current(workdir.events.path)
    sources = events.details.get("counts") or [{"events": str(folder / name)} for name in events.files]
    with writing(workdir.item_statistics.path, ItemStatistics.KIND, fingerprint) as writer:
        staged = ItemStatistics(writer.path)
        item_ids, item_counts = _known_ids(config.data.item_features, "data.item_features", writer.path / "items.ids")
        user_ids, user_counts = _known_ids(config.data.user_features, "data.user_features", writer.path / "users.ids")
        for sizes in collect(config.beam, sources, CountItemsAndUsers(config, staged, item_ids, user_ids), writer.path):
            writer.counts.update(sizes)
        remove(*(path for path in (item_ids, user_ids) if path is not None))
        writer.details.update(item_table=item_counts, user_table=user_counts)
        writer.files = [staged.items.name, staged.users.name, staged.item_vocabulary.name, staged.user_vocabulary.name]
        logger.info("statistics: %s", ", ".join(f"{count:,} {name}" for name, count in writer.counts.items()))
    return read_manifest(workdir.item_statistics.path)


def _known_ids(table: FeatureTable | None, field: str, path: Path) -> tuple[Path | None, dict[str, int]]:
    """A file with the ids of a feature table (None without one), and what was left out."""
    if table is None:
        return None, {}
    rows = read_feature_table(table, field)
    write_parquet(pa.table({"id": rows.ids}), path)
    return path, rows.counts


if __name__ == "__main__":
    from beam_jobs.command import main

    main("beam_jobs.statistics")
