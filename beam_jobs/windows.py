"""Windows: bucketed events -> group-tagged TFRecords with negatives, one shard a bucket and split."""

from __future__ import annotations

import logging
from collections import Counter

import apache_beam as beam

from beam_jobs.beam_run import collect
from beam_jobs.windows_steps import WriteWindows
from contracts.artifact import Manifest, read_manifest, writing
from contracts.config import Config
from contracts.layout import Windows, Workdir
from contracts.names import Split

logger = logging.getLogger(__name__)


def run(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the `Windows` artifact from events, item statistics and item groups.

    Raises:
        ValueError: an input artifact is missing, or no user has two positives to train on.
    """
    for needed in (workdir.events.path, workdir.item_statistics.path, workdir.item_groups.path):
        read_manifest(needed)
    buckets = range(config.data.num_buckets)
    with writing(workdir.windows.path, Windows.KIND, fingerprint) as writer:
        staged = Windows(writer.path)
        paths = [(bucket, str(workdir.events.bucket(bucket, len(buckets)))) for bucket in buckets]
        totals: Counter[str] = Counter()
        for counts in collect(config.beam, paths, beam.ParDo(WriteWindows(config, workdir, staged)), writer.path):
            totals.update(counts)
        if not totals["train_positives"]:
            raise ValueError(
                f"no user of {workdir.events.path} has two events to train on (after the validation and test events "
                "are set apart): give the log longer histories, or lower data.feedback.target_level"
            )
        writer.counts.update(totals)
        writer.files = [staged.shard(split, bucket, len(buckets)).name for split in Split for bucket in buckets]
        writer.details.update(
            in_group_negatives=config.windows.in_group_negatives, easy_negatives=config.windows.easy_negatives
        )
        logger.info(
            "windows: %s positives in %s windows", f"{totals['train_positives']:,}", f"{totals['train_windows']:,}"
        )
    return read_manifest(workdir.windows.path)


if __name__ == "__main__":
    from beam_jobs.command import main

    main("beam_jobs.windows")
