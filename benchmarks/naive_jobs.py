"""The Beam jobs as tutorials write them: one Python element per event, pair or item; dicts as rows.

They read and write the same content as `beam_jobs`, and `benchmarks/beam.py` compares the two. The windows job is in
`naive_windows_job.py`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.grouping.cooccurrence import UNIT
from beam_jobs.grouping.item_embeddings import embed_cooccurrences, ppmi
from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import EventColumn, ItemColumn, Split

Row = dict[str, Any]

EVENT_SCHEMA = pa.schema(
    {
        EventColumn.USER_ID: pa.string(),
        EventColumn.ITEM_ID: pa.string(),
        EventColumn.TIMESTAMP: pa.int64(),
        EventColumn.FEEDBACK_LEVEL: pa.int8(),
        EventColumn.SPLIT: pa.int8(),
    }
)


def ingest(config: Config, workdir: Workdir, out: Path) -> None:
    """CSV lines -> each user's events in order of time, split by leave-one-out."""
    del workdir
    levels = list(config.data.feedback.levels)

    def parse(line: str) -> Row:
        user, item, time, event = next(csv.reader([line]))
        level = levels.index(event)
        if not user or not item or int(time) < 0:
            raise ValueError(line)
        return dict(zip(EVENT_SCHEMA.names, (user, item, int(time) * 1_000_000, level), strict=False))

    [pattern] = config.data.events
    with _pipeline(config) as pipeline:
        (
            pipeline
            | "Read lines" >> beam.io.ReadFromText(pattern, skip_header_lines=1)
            | "Parse" >> beam.Map(parse)
            | "Key by user" >> beam.Map(lambda row: (row[EventColumn.USER_ID], row))
            | "Group by user" >> beam.GroupByKey()
            | "Split" >> beam.FlatMap(_split, config.data.feedback.target_level_index, config.split.min_user_events)
            | "Write" >> beam.io.WriteToParquet(str(out), EVENT_SCHEMA, file_name_suffix=".parquet")
        )


def _split(element: tuple[str, list[Row]], target: int, min_user_events: int) -> Iterator[Row]:
    """Splits a user's events: the last new positive opens the test split, the one before it the validation split."""
    rows = sorted(element[1], key=lambda row: row[EventColumn.TIMESTAMP])
    seen, new = set(), []
    for place, row in enumerate(rows):
        if row[EventColumn.FEEDBACK_LEVEL] >= target and row[EventColumn.ITEM_ID] not in seen:
            seen.add(row[EventColumn.ITEM_ID])
            new.append(place)
    validation, test = new[-2:] if len(new) >= min_user_events else (len(rows), len(rows))
    for place, row in enumerate(rows):
        split = Split.TEST if place >= test else Split.VALIDATION if place >= validation else Split.TRAIN
        yield {**row, EventColumn.SPLIT: int(split)}


def statistics(config: Config, workdir: Workdir, out: Path) -> None:
    """Events -> a line per item and a line per user, each with its number of training positives."""
    with _pipeline(config) as pipeline:
        events = _read_events(pipeline, workdir)
        target = config.data.feedback.target_level_index
        for column in (EventColumn.ITEM_ID, EventColumn.USER_ID):
            (
                events
                | f"Key by {column}" >> beam.Map(_key_and_count, column, target)
                | f"Count by {column}" >> beam.CombinePerKey(sum)
                | f"Format {column}" >> beam.Map(_tab_separated)
                | f"Write {column}" >> beam.io.WriteToText(f"{out}-{column}")
            )


def _key_and_count(row: Row, column: str, target: int) -> tuple[str, int]:
    return row[column], int(_is_positive(row, target))


def _is_positive(row: Row, target: int) -> bool:
    return bool(row[EventColumn.SPLIT] == Split.TRAIN and row[EventColumn.FEEDBACK_LEVEL] >= target)


def embeddings(config: Config, workdir: Workdir, out: Path) -> None:
    """Events -> pairs that co-occur -> item embeddings (.npy), by the same PPMI and SVD."""
    ids = pq.read_table(workdir.item_statistics.items, columns=[ItemColumn.ITEM_ID])[ItemColumn.ITEM_ID].to_pylist()
    index = {item: place for place, item in enumerate(ids)}
    schema = pa.schema({"row": pa.int32(), "column": pa.int32(), "weight": pa.int64()})
    with _pipeline(config) as pipeline:
        (
            _read_events(pipeline, workdir)
            | "Keep positives" >> beam.Filter(_is_positive, config.data.feedback.target_level_index)
            | "Key by user" >> beam.Map(lambda row: (row[EventColumn.USER_ID], row))
            | "Group by user" >> beam.GroupByKey()
            | "Pair" >> beam.FlatMap(_pairs, index, config.groups.cooccurrence_window)
            | "Sum pairs" >> beam.CombinePerKey(sum)
            | "Row" >> beam.Map(lambda pair: {"row": pair[0][0], "column": pair[0][1], "weight": pair[1]})
            | "Write" >> beam.io.WriteToParquet(str(out), schema, num_shards=1, file_name_suffix=".parquet")
        )
    matrix = ppmi(sorted(out.parent.glob(f"{out.name}*.parquet")), len(ids))
    np.save(out.with_suffix(".npy"), embed_cooccurrences(matrix, config.groups.embedding_dim, config.seed))


def _pairs(element: tuple[str, list[Row]], index: dict[str, int], window: int) -> Iterator[tuple[tuple[int, int], int]]:
    rows = sorted(element[1], key=lambda row: row[EventColumn.TIMESTAMP])
    items = [index[row[EventColumn.ITEM_ID]] for row in rows]
    for place, item in enumerate(items):
        for distance, other in enumerate(items[place + 1 : place + 1 + window], 1):
            if item != other:
                yield (min(item, other), max(item, other)), round(UNIT / distance)


def assignment(config: Config, rows: Path, centroids: Path, out: Path) -> None:
    """Rows of an .npy file -> a line per row, with its nearest centroid."""
    with _pipeline(config) as pipeline:
        (
            pipeline
            | "File" >> beam.Create([str(rows)])
            | "Rows" >> beam.FlatMap(lambda path: enumerate(np.load(path)))
            | "Assign" >> beam.Map(_nearest, np.load(centroids))
            | "Format" >> beam.Map(_tab_separated)
            | "Write" >> beam.io.WriteToText(str(out))
        )


def _nearest(element: tuple[int, np.ndarray], centroids: np.ndarray) -> tuple[int, int]:
    place, row = element
    return place, int(((centroids - row) ** 2).sum(axis=1).argmin())


def _tab_separated(pair: tuple[Any, int]) -> str:
    return f"{pair[0]}\t{pair[1]}"


def _read_pairs(out: Path) -> dict[str, int]:
    lines = [line.split("\t") for path in out.parent.glob(f"{out.name}-*-of-*") for line in path.open()]
    return {key: int(value) for key, value in lines}


def content(job: str, folder: Path) -> np.ndarray:
    """What a job wrote to `folder`, as an array that can be compared with `product_content`."""
    if job == "ingest":
        return _events(folder)
    if job == "statistics":
        counts = _read_pairs(folder / f"{job}-{EventColumn.ITEM_ID}")
        return np.array([counts[item] for item in sorted(counts)])
    if job == "embeddings":
        embedded: np.ndarray = np.load(folder / f"{job}.npy")
        return embedded
    groups = _read_pairs(folder / job)
    return np.array([groups[str(row)] for row in range(len(groups))])


def product_content(job: str, workdir: Workdir) -> np.ndarray:
    """The same from the product's artifacts, for the jobs that have some."""
    if job == "ingest":
        return _events(workdir.events.path)
    if job == "statistics":
        items = pq.read_table(workdir.item_statistics.items).sort_by(ItemColumn.ITEM_ID)
        counts: np.ndarray = items[ItemColumn.TRAIN_COUNT].to_numpy()
        return counts
    embedded: np.ndarray = np.load(workdir.item_groups.embeddings)
    return embedded


def _events(folder: Path) -> np.ndarray:
    """[num_users, 3] number of each user's events in each split, by user id: the order of ties in time may differ."""
    events = pq.read_table(sorted(folder.glob("*.parquet")), columns=[EventColumn.USER_ID, EventColumn.SPLIT])
    _, user = np.unique(events[EventColumn.USER_ID].to_numpy(), return_inverse=True)
    key = user * len(Split) + events[EventColumn.SPLIT].to_numpy()
    return np.bincount(key, minlength=(user.max() + 1) * len(Split)).reshape(-1, len(Split))


def _read_events(pipeline: beam.Pipeline, workdir: Workdir) -> beam.PCollection:
    return pipeline | "Read events" >> beam.io.ReadFromParquet(str(workdir.events.path / "*.parquet"))


def _pipeline(config: Config) -> beam.Pipeline:
    return beam.Pipeline(options=PipelineOptions([f"--runner={config.beam.runner}"]))
