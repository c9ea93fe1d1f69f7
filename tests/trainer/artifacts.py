"""Writes the artifacts that the trainer reads, from plain sequences; no Beam involved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

import contracts  # noqa: F401  (selects Keras 2)
from contracts.artifact import writing
from contracts.layout import ItemGroups, ItemStatistics, Transform, Windows, Workdir
from contracts.names import ITEMS_PER_USER, EvaluationField, Split, WindowField
from trainer.input.ragged import Ragged


def of_rows(rows: Sequence[Sequence[int]]) -> Ragged:
    return Ragged(np.concatenate(rows).astype(np.int64), np.cumsum([0, *map(len, rows)]))


@dataclass
class Log:
    """A toy log: one sequence of item_index a user; the last two are validation and test targets."""

    sequences: Sequence[np.ndarray]
    group_id: np.ndarray  # [num_items], of item_index 1..
    requests: Sequence[np.ndarray] = ()  # of each sequence, what the requests told; none: nothing
    request_features: dict[str, list[str]] = field(default_factory=dict)
    window_length: int = 10
    in_group_negatives: int = 4
    easy_negatives: int = 2
    exposed_negatives: int = 0  # of a target: itself, so that a test sees where they land
    mined_negatives: int = 0  # of a target: the items after it in the catalogue, 0 after the last one
    resamples: int = 1
    popularity_exponent: float = 0.5
    item_features: dict[str, tuple[dict[str, Any], np.ndarray]] = field(default_factory=dict)
    user_features: dict[str, tuple[dict[str, Any], np.ndarray]] = field(default_factory=dict)
    cooccurrence: np.ndarray | None = None  # [num_items, axes]

    def requests_of(self, user: int) -> np.ndarray:
        return self.requests[user] if len(self.requests) else np.zeros(len(self.sequences[user]), int)

    @property
    def num_items(self) -> int:
        return len(self.group_id)


def write_artifacts(log: Log, path: Path) -> Workdir:
    """All artifacts up to the windows."""
    workdir = Workdir(path)
    counts = np.zeros(log.num_items, np.int64)
    for sequence in log.sequences:
        np.add.at(counts, sequence[:-2] - 1, 1)
    probability = counts**log.popularity_exponent * (counts > 0)
    probability = probability / probability.sum()
    _write_tables(log, workdir, counts, probability)
    with writing(workdir.windows.path, Windows.KIND, "test") as artifact:
        windows = Windows(artifact.path)
        rng = np.random.default_rng(0)
        draws = [(Split.TRAIN, draw, _training_examples(log, probability, rng)) for draw in range(log.resamples)]
        for split, draw, examples in (
            *draws,
            (Split.VALIDATION, 0, _evaluation_examples(log, 2)),
            (Split.TEST, 0, _evaluation_examples(log, 1)),
        ):
            if split != Split.TRAIN:
                artifact.counts[f"{split.name.lower()}_users"] = len(examples)
            file = windows.shard(split, 0, 1, draw)
            with tf.io.TFRecordWriter(str(file), "GZIP") as writer:
                for example in examples:
                    writer.write(example)
            artifact.files.append(file.name)
        windows_of = [-(-(len(sequence) - 3) // log.window_length) for sequence in log.sequences]
        artifact.counts["train_positives"] = int(counts.sum()) - len(log.sequences)
        artifact.counts["train_first_targets"] = sum(windows_of)
        artifact.details["resamples"] = log.resamples
        artifact.details[ITEMS_PER_USER] = float(np.mean([len(set(items[:-2])) for items in log.sequences]))
        artifact.details["request_features"] = log.request_features
    return workdir


def _write_tables(log: Log, workdir: Workdir, counts: np.ndarray, probability: np.ndarray) -> None:
    item_ids = [f"i{index}" for index in range(1, log.num_items + 1)]
    num_users = len(log.sequences)
    with writing(workdir.item_statistics.path, ItemStatistics.KIND, "test") as artifact:
        statistics = ItemStatistics(artifact.path)
        table = {"item_id": item_ids, "train_count": counts, "total_count": counts}
        pq.write_table(pa.table({**table, "sampling_probability": probability}), statistics.items)
        statistics.item_vocabulary.write_text("".join(f"{item}\n" for item in item_ids), encoding="utf-8")
        users = {"user_id": [f"u{index}" for index in range(num_users)], "train_count": np.ones(num_users, np.int64)}
        pq.write_table(pa.table(users), statistics.users)
        statistics.user_vocabulary.write_text("".join(f"u{index}\n" for index in range(num_users)), encoding="utf-8")
    with writing(workdir.item_groups.path, ItemGroups.KIND, "test") as artifact:
        groups = {"item_id": item_ids, "group_id": log.group_id.astype(np.int32)}
        pq.write_table(pa.table(groups), ItemGroups(artifact.path).groups)
        without = np.zeros((log.num_items, 0), np.float32)
        np.save(ItemGroups(artifact.path).embeddings, without if log.cooccurrence is None else log.cooccurrence)
    with writing(workdir.transform.path, Transform.KIND, "test") as artifact:
        transform = Transform(artifact.path)
        pq.write_table(_feature_table("item_index", log.num_items, log.item_features), transform.items)
        pq.write_table(_feature_table("user_index", num_users, log.user_features), transform.users)
        spec = {
            "user": [spec for spec, _ in log.user_features.values()],
            "item": [spec for spec, _ in log.item_features.values()],
        }
        transform.feature_spec.write_text(json.dumps(spec))


def _feature_table(index: str, num_rows: int, features: dict[str, tuple[dict[str, Any], np.ndarray]]) -> pa.Table:
    columns: dict[str, Any] = {index: np.arange(1, num_rows + 1)}
    for name, (_, values) in features.items():
        flat = pa.array(values.ravel())
        columns[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)


def _training_examples(log: Log, probability: np.ndarray, rng: np.random.Generator) -> list[bytes]:
    members = [np.flatnonzero(log.group_id == group) + 1 for group in range(int(log.group_id.max()) + 1)]
    everything = np.arange(1, log.num_items + 1)
    examples = []
    for user, sequence in enumerate(log.sequences):
        events = sequence[:-2]
        for start in range(0, max(len(events) - 1, 0), log.window_length):
            window = events[start : start + log.window_length + 1]
            if len(window) < 2:
                continue
            groups = log.group_id[window - 1]
            hard = [_draw(members[group], probability, log.in_group_negatives, rng) for group in groups[1:]]
            easy = _draw(everything, probability, log.easy_negatives * (len(window) - 1), rng)
            fields = {
                WindowField.USER_INDEX: [user + 1],
                WindowField.ITEM_INDEX: window,
                WindowField.EARLIER_ITEMS: list(dict.fromkeys(events[:start])),
                WindowField.GROUP_ID: groups,
                WindowField.FEEDBACK_LEVEL: np.zeros_like(window),
                WindowField.TIMESTAMP: np.arange(len(window)),
                WindowField.NUM_CONTEXT: [1],
                WindowField.IN_GROUP_NEGATIVES: np.concatenate(hard),
                WindowField.EASY_NEGATIVES: easy,
            }
            if log.request_features:
                fields[WindowField.REQUEST] = log.requests_of(user)[start : start + len(window)]
            if log.exposed_negatives:
                fields[WindowField.EXPOSED_NEGATIVES] = np.repeat(window[1:], log.exposed_negatives)
            if log.mined_negatives:
                near = window[1:, None] + np.arange(1, log.mined_negatives + 1)
                fields[WindowField.MINED_NEGATIVES] = np.where(near <= log.num_items, near, 0).ravel()
            examples.append(_example(fields))
    return examples


def _draw(items: np.ndarray, probability: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    weights = probability[items - 1]
    return rng.choice(items, size, p=weights / weights.sum())


def _evaluation_examples(log: Log, from_end: int) -> list[bytes]:
    examples = []
    for user, sequence in enumerate(log.sequences):
        before, target = sequence[:-from_end], sequence[-from_end]
        if target in before:
            continue
        fields = {
            EvaluationField.USER_INDEX: [user + 1],
            EvaluationField.HISTORY_ITEM_INDEX: before[-log.window_length :],
            EvaluationField.SEEN_ITEM_INDEX: list(dict.fromkeys(before)),
            EvaluationField.TARGET_ITEM_INDEX: [target],
            EvaluationField.REQUEST: [log.requests_of(user)[-from_end]],
        }
        examples.append(_example(fields))
    return examples


def _example(fields: dict[str, Any]) -> bytes:
    features = {
        name: tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, np.int64)))
        for name, values in fields.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def cyclic_log(num_users: int = 200, num_items: int = 60, num_groups: int = 4, **settings: Any) -> Log:
    """Users who walk through the catalogue by steps of their own: the next item follows from the last two."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, num_items, (num_users, 1))
    step = rng.choice([1, 3], (num_users, 1))
    sequences = (start + step * np.arange(14)) % num_items + 1
    lengths = rng.integers(5, 15, num_users)
    group_id = np.sort(rng.permutation(num_items) % num_groups)
    return Log([row[:n] for row, n in zip(sequences, lengths, strict=True)], group_id, **settings)
