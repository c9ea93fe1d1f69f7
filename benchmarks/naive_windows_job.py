"""The windows job as tutorials write it: one Python element per event, one dict per row, one proto per record.

It has the same input (the validated events), records and rules as `beam_jobs.windows`, and is the baseline of
`benchmarks/beam.py`.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet as pq
import tensorflow as tf
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.windows_steps import MOST_EARLIER_ITEMS
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import EvaluationField, EventColumn, ItemColumn, Split, UserColumn, WindowField

_EVALUATED = (Split.VALIDATION, Split.TEST)


class Catalogue:
    """Dictionaries from ids to indices, and cumulative weights to draw negatives with."""

    def __init__(self, workdir: Workdir) -> None:
        items = pq.read_table(workdir.item_statistics.items)
        groups = pq.read_table(workdir.item_groups.groups)[ItemColumn.GROUP_ID].to_pylist()
        users = pq.read_table(workdir.item_statistics.users)[UserColumn.USER_ID].to_pylist()
        weights = items[ItemColumn.SAMPLING_PROBABILITY].to_pylist()
        self.item_index = {item: row + 1 for row, item in enumerate(items[ItemColumn.ITEM_ID].to_pylist())}
        self.user_index = {user: row + 1 for row, user in enumerate(users)}
        self.group_id = [-1, *groups]
        self.members: dict[int, list[int]] = {group: [] for group in set(groups)}
        self.cumulative: dict[int, list[float]] = {}
        for index, group in enumerate(groups, 1):
            self.members[group].append(index)
        for group, members in self.members.items():
            self.cumulative[group] = list(itertools.accumulate(weights[index - 1] for index in members))
        self.all_cumulative = list(itertools.accumulate(weights))

    def draw_in_group(self, group: int, own: set[int]) -> int:
        cumulative = self.cumulative[group]
        for _ in range(100):
            position = bisect.bisect_left(cumulative, random.random() * cumulative[-1])
            if self.members[group][position] not in own:
                break
        return self.members[group][position]

    def draw_easy(self, own: set[int]) -> int:
        for _ in range(100):
            index = bisect.bisect_left(self.all_cumulative, random.random() * self.all_cumulative[-1]) + 1
            if index not in own:
                break
        return index


class MakeRecords(beam.DoFn):
    """(user_id, rows) -> serialised windows, and the user's validation and test records as tagged outputs."""

    def __init__(self, config: Config, workdir: Path) -> None:
        self.config = config
        self.workdir = workdir

    def setup(self) -> None:
        self.catalogue = Catalogue(Workdir(self.workdir))

    def process(self, element: tuple[str, list[dict]]) -> Iterator[bytes | beam.pvalue.TaggedOutput]:
        user_id, rows = element
        first: dict[str, dict] = {}
        events = []
        for row in sorted(rows, key=lambda row: row[EventColumn.TIMESTAMP]):
            item, level = row[EventColumn.ITEM_ID], row[EventColumn.FEEDBACK_LEVEL]
            if row[EventColumn.SPLIT] != Split.TRAIN:
                events.append(row)
            elif item in first:
                first[item][EventColumn.FEEDBACK_LEVEL] = max(first[item][EventColumn.FEEDBACK_LEVEL], level)
            else:
                first[item] = {**row}
                events.append(first[item])
        yield from self.windows(user_id, [row for row in events if row[EventColumn.SPLIT] == Split.TRAIN])
        for split in _EVALUATED:
            if record := self.evaluation(user_id, events, split):
                yield beam.pvalue.TaggedOutput(split.name, record)

    def evaluation(self, user_id: str, events: list[dict], split: Split) -> bytes | None:
        catalogue = self.catalogue
        past = [catalogue.item_index[row[EventColumn.ITEM_ID]] for row in events if row[EventColumn.SPLIT] < split]
        history = list(dict.fromkeys(past))
        present = [catalogue.item_index[row[EventColumn.ITEM_ID]] for row in events if row[EventColumn.SPLIT] == split]
        seen = set(history)
        targets = [item for item in dict.fromkeys(present) if item not in seen]
        if not history or not targets:
            return None
        return _example(
            {
                EvaluationField.USER_INDEX: [catalogue.user_index[user_id]],
                EvaluationField.HISTORY_ITEM_INDEX: history[-self.config.windows.length :],
                EvaluationField.HISTORY_CONTEXT: [],
                EvaluationField.SEEN_ITEM_INDEX: history,
                EvaluationField.TARGET_ITEM_INDEX: targets,
            }
        )

    def windows(self, user_id: str, events: list[dict]) -> Iterator[bytes]:
        catalogue, settings = self.catalogue, self.config.windows
        items = [catalogue.item_index[row[EventColumn.ITEM_ID]] for row in events]
        own = set(items)
        for last in range(len(events), 1, -settings.length):
            first = max(last - settings.length, 1)
            hard, easy = [], []
            for item in items[first:last]:
                group = catalogue.group_id[item]
                hard += [catalogue.draw_in_group(group, own) for _ in range(settings.in_group_negatives)]
                easy += [catalogue.draw_easy(own) for _ in range(settings.easy_negatives)]
            window = slice(first - 1, last)
            yield _example(
                {
                    WindowField.USER_INDEX: [catalogue.user_index[user_id]],
                    WindowField.ITEM_INDEX: items[window],
                    WindowField.EARLIER_ITEMS: items[: first - 1][-MOST_EARLIER_ITEMS:],
                    WindowField.GROUP_ID: [catalogue.group_id[item] for item in items[window]],
                    WindowField.FEEDBACK_LEVEL: [row[EventColumn.FEEDBACK_LEVEL] for row in events[window]],
                    WindowField.TIMESTAMP: [row[EventColumn.TIMESTAMP] // 1_000_000 for row in events[window]],
                    WindowField.NUM_CONTEXT: [1],
                    WindowField.NON_TARGETS: [],
                    WindowField.IN_GROUP_NEGATIVES: hard,
                    WindowField.EASY_NEGATIVES: easy,
                }
            )


def _example(features: dict[str, list[int]]) -> bytes:
    feature = {name: tf.train.Feature(int64_list=tf.train.Int64List(value=values)) for name, values in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def run(config: Config, workdir: Workdir, out: Path) -> None:
    """Writes SPLIT-*.tfrecord.gz in the folder `out`."""
    target = config.data.feedback.target_level_index

    def is_positive(row: dict) -> bool:
        return row[EventColumn.FEEDBACK_LEVEL] >= target

    with beam.Pipeline(options=PipelineOptions([f"--runner={config.beam.runner}"])) as pipeline:
        records = (
            pipeline
            | "Read events" >> beam.io.ReadFromParquet(str(workdir.events.path / "*.parquet"))
            | "Keep positives" >> beam.Filter(is_positive)
            | "Key by user" >> beam.Map(lambda row: (row[EventColumn.USER_ID], row))
            | "Group by user" >> beam.GroupByKey()
            | "Make records"
            >> beam.ParDo(MakeRecords(config, workdir.path)).with_outputs(
                *(split.name for split in _EVALUATED), main=Split.TRAIN.name
            )
        )
        for split in Split:
            records[split.name] | f"Write {split.name}" >> beam.io.WriteToTFRecord(
                str(out / split.name),
                file_name_suffix=".tfrecord.gz",
                num_shards=8,
                compression_type=CompressionTypes.GZIP,
            )


def count(folder: Path) -> dict[str, int]:
    """Counts of the records that `run` wrote, named as in the product's manifest."""
    counts: Counter[str] = Counter()
    for features in _records(folder, Split.TRAIN):
        counts["train_windows"] += 1
        counts["train_positives"] += len(features[WindowField.ITEM_INDEX]) - 1
    for split in _EVALUATED:
        for features in _records(folder, split):
            counts[f"{split.name.lower()}_users"] += 1
            counts[f"{split.name.lower()}_targets"] += len(features[EvaluationField.TARGET_ITEM_INDEX])
    return dict(counts)


def _records(folder: Path, split: Split) -> Iterator[dict[str, Sequence[int]]]:
    files = [str(path) for path in folder.glob(f"{split.name}-*")]
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        yield {name: feature.int64_list.value for name, feature in features.items()}
