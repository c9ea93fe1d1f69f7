"""The records of the windows stage, read in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf

from contracts.artifact import ArtifactError, read_manifest
from contracts.layout import Workdir
from contracts.names import Split
from trainer.input.ragged import Ragged

_CHUNK = 16_384
"""Number of records in a chunk."""
_SHUFFLED = 4 * _CHUNK
"""Number of records from which shuffling takes the next."""


def shards_of(workdir: Workdir, split: Split, draw: int = 0) -> list[str]:
    """The split's shards as listed in the manifest; other files are never read."""
    path: Path = workdir.windows.path
    prefix = workdir.windows.prefix(split, draw)
    files = [str(path / name) for name in read_manifest(path).files if name.startswith(prefix)]
    if not files:
        raise ArtifactError(f"{path} lists no {split.name.lower()} shards: run the windows stage again")
    return sorted(files)


def read_chunks(
    files: list[str], names: tuple[str, ...], shuffle_seed: int | None = None
) -> Iterator[dict[str, Ragged]]:
    """Yields the fields `names` of 16,384 records at a time, shuffled if there is a seed.

    Raises:
        ArtifactError: one of the files is damaged or gone.
    """
    records = _records(files)
    if shuffle_seed is not None:
        records = records.shuffle(_SHUFFLED, seed=shuffle_seed, reshuffle_each_iteration=False)
    feature = tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64)
    parsed = records.batch(_CHUNK).map(
        lambda serialized: tf.io.parse_example(serialized, dict.fromkeys(names, feature))
    )
    try:
        for chunk in parsed.prefetch(1).with_options(_no_autotune()):
            yield {name: Ragged(value.values.numpy(), value.row_splits.numpy()) for name, value in chunk.items()}
    except (tf.errors.DataLossError, tf.errors.NotFoundError):
        file = Path(next(filter(_is_damaged, files), files[0]))  # TensorFlow does not say which
        raise ArtifactError(
            f"{file} is damaged or missing: delete {file.parent} and run again to recreate it"
        ) from None


def _records(files: list[str]) -> tf.data.Dataset:
    return tf.data.TFRecordDataset(files, compression_type="GZIP")


def _is_damaged(file: str) -> bool:
    try:
        _records([file]).reduce(np.int64(0), lambda number, _: number + 1)
    except tf.errors.OpError:
        return True
    return False


def _no_autotune() -> tf.data.Options:
    """Turns autotuning off: there is nothing to tune, and the end of an epoch would wait for the tuner.

    tf.data's tuner sleeps for 10 ms, 20 ms, 40 ms, ..., and an iterator is not gone until it wakes:
    on average, this made an epoch half as long again.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return options
