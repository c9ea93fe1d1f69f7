"""Transform: TFT graphs of the item and the user table, and both tables transformed by them."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_metadata.proto.v0 import schema_pb2
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils
from tfx_bsl.public import tfxio

from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_parquet, write_parquet
from beam_jobs.common.payload import one_array, pack, unpack
from beam_jobs.features.preprocessing import make_preprocessing_fn, raw_feature_spec
from beam_jobs.features.raw_tables import ROWS_PER_BATCH, ReadRawBatches, write_raw_table
from contracts.artifact import Manifest, current, read_manifest, write_json, writing
from contracts.config import BeamConfig, Config, Feature, FeatureTable
from contracts.layout import ItemStatistics, Transform, Workdir, vocabulary_file
from contracts.names import ItemColumn, UserColumn
from contracts.storage import RemotePath, local, remove, remove_tree, store_tree, write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableJob:
    """One of the two tables: where it comes from and where its graph and rows go."""

    kind: str  # "item" or "user"
    source: Path  # Parquet of the statistics, in the order of the index
    vocabulary: Path  # which TensorFlow can open
    features: FeatureTable | None
    field: str
    graph: Path
    output: Path

    @property
    def id_name(self) -> str:
        return {"item": ItemColumn.ITEM_ID, "user": UserColumn.USER_ID}[self.kind]

    @property
    def index_name(self) -> str:
        return f"{self.kind}_index"

    @property
    def columns(self) -> tuple[Feature, ...]:
        return self.features.features if self.features is not None else ()


class TransformTable(beam.PTransform):
    """(path, number of a row group) of a raw table -> its graph and its transformed rows, in the order of the index."""

    def __init__(self, job: TableJob) -> None:
        super().__init__()
        self._job = job

    def expand(self, row_groups: beam.PCollection) -> beam.PCollection:
        job = self._job
        schema = schema_utils.schema_from_feature_spec(raw_feature_spec(job.id_name, job.columns))
        batches = row_groups | "ReadRaw" >> beam.ParDo(ReadRawBatches()).with_output_types(pa.RecordBatch)
        preprocessing_fn = make_preprocessing_fn(job.id_name, job.index_name, str(job.vocabulary), job.columns)
        (transformed, _), graph = (batches, _adapter_config(job)) | "Fit" >> tft_beam.AnalyzeAndTransformDataset(
            preprocessing_fn, output_record_batches=True
        )
        graph | "WriteGraph" >> tft_beam.WriteTransformFn(str(job.graph))
        raw = dataset_metadata.DatasetMetadata(schema)
        raw | "WriteRawSchema" >> tft_beam.WriteMetadata(
            str(job.graph / tft.TFTransformOutput.RAW_METADATA_DIR), row_groups.pipeline
        )
        return (
            transformed
            | "Pack" >> beam.ParDo(_PackBatch(job))
            | "OneTable" >> beam.GroupByKey()
            | "WriteTable" >> beam.ParDo(_WriteTable(job.output, job.index_name))
        )


def _adapter_config(job: TableJob) -> tfxio.TensorAdapterConfig:
    """How record batches become tensors: each column dense."""
    fields = [pa.field(job.id_name, pa.list_(pa.binary()))]
    fields += [pa.field(f.name, pa.list_(pa.float32() if f.is_number else pa.binary())) for f in job.columns]
    shapes: dict[str, tuple[int, ...]] = {job.id_name: (), **{f.name: f.raw_shape for f in job.columns}}
    return tfxio.TensorAdapterConfig(pa.schema(fields), {name: _dense(name, shape) for name, shape in shapes.items()})


def _dense(column: str, shape: tuple[int, ...]) -> schema_pb2.TensorRepresentation:
    representation = schema_pb2.TensorRepresentation()
    representation.dense_tensor.column_name = column
    representation.dense_tensor.shape.SetInParent()
    for size in shape:
        representation.dense_tensor.shape.dim.add(size=size)
    return representation


class _PackBatch(beam.DoFn):
    """Transformed record batch -> (0, packed table): scalars flat, tokens and vectors as fixed-size lists."""

    def __init__(self, job: TableJob) -> None:
        self._widths = {feature.name: feature.width for feature in job.columns}
        self._names = [job.index_name, *(feature.name for feature in job.columns)]

    def process(self, element: tuple[pa.RecordBatch, dict[str, Any]]) -> Iterator[tuple[int, bytes]]:
        batch, _ = element
        columns = {}
        for name in self._names:
            values = batch.column(batch.schema.get_field_index(name)).flatten()
            width = self._widths.get(name)
            columns[name] = pa.FixedSizeListArray.from_arrays(values, width) if width else values
        yield 0, pack(pa.table(columns))


class _WriteTable(beam.DoFn):
    """(0, packed tables) -> one Parquet file, sorted by index."""

    def __init__(self, path: Path, index_name: str) -> None:
        self._path = path
        self._index_name = index_name

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[int]:
        table = unpack(element[1]).combine_chunks()
        order = np.argsort(table[self._index_name].to_numpy(), kind="stable")
        write_parquet(table.take(pa.array(order)), self._path)
        yield table.num_rows


def run(config: Config, workdir: Workdir, fingerprint: str) -> Manifest:
    """Writes the `Transform` artifact.

    Raises:
        ValueError: a feature table is missing, unreadable or lacks a column.
    """
    statistics = ItemStatistics(current(workdir.item_statistics.path))
    read_manifest(statistics.path)
    with writing(workdir.transform.path, Transform.KIND, fingerprint) as writer:
        staged = Transform(writer.path)
        jobs = [
            TableJob("item", statistics.items, statistics.item_vocabulary.absolute(), config.data.item_features,
                     "data.item_features", staged.item_graph, staged.items),
            TableJob("user", statistics.users, statistics.user_vocabulary.absolute(), config.data.user_features,
                     "data.user_features", staged.user_graph, staged.users),
        ]  # fmt: skip
        specs = {}
        for job in jobs:
            done = _run_table(config, job, writer.path)
            writer.counts[f"{job.kind}s"] = done.rows
            writer.details[f"{job.kind}_table"] = done.left_out
            specs[job.kind] = done.specs
        write_json(staged.feature_spec, specs)
        writer.files = [staged.items.name, staged.users.name, staged.feature_spec.name]
        log.info("transform: %s", ", ".join(f"{count:,} {name}" for name, count in writer.counts.items()))
    return read_manifest(workdir.transform.path)


@dataclass(frozen=True)
class TableDone:
    """Rows of a transformed table, rows left out of its feature table, and what its features became."""

    rows: int
    left_out: dict[str, int]
    specs: list[dict[str, Any]]


def _run_table(config: Config, job: TableJob, scratch: Path) -> TableDone:
    """Runs one table on the configured runner, or in this process if TensorFlow cannot open the artifact's scheme.

    TFT exchanges its graphs between steps as files that TensorFlow writes and reads, and TensorFlow has no file
    system for s3 or hdfs. The tables are as long as the catalogue, not the log, so one machine will do.
    """
    if not isinstance(scratch, RemotePath) or scratch.scheme in tf.io.gfile.get_registered_schemes():
        return _transform(config.beam, job, scratch)
    with tempfile.TemporaryDirectory(prefix="dnc-") as folder:
        here = Path(folder)
        graph, output = here / job.graph.name, here / job.output.name
        moved = replace(job, vocabulary=local(job.vocabulary), graph=graph, output=output)
        done = _transform(BeamConfig(), moved, here)
        store_tree(graph, job.graph)
        write_whole(job.output, lambda staging: shutil.copyfile(output, staging))
    return done


def _transform(beam_config: BeamConfig, job: TableJob, scratch: Path) -> TableDone:
    ids = read_parquet(job.source, columns=[job.id_name])[job.id_name]
    raw_path = scratch / f"raw-{job.kind}.parquet"
    left_out = write_raw_table(one_array(ids), job.id_name, job.features, job.field, raw_path)
    row_groups = [(raw_path, number) for number in range(math.ceil(len(ids) / ROWS_PER_BATCH))]
    tft_scratch = scratch / f"tft-{job.kind}"
    with tft_beam.Context(temp_dir=str(tft_scratch)):
        collect(beam_config, row_groups, TransformTable(job), scratch)
    remove(raw_path)
    remove_tree(tft_scratch)
    return TableDone(len(ids), left_out, [_spec(feature, job.graph) for feature in job.columns])


def _spec(feature: Feature, graph: Path) -> dict[str, Any]:
    """`vocabulary_size` counts the known values: indices run from 0 (missing) to it. By now, a text is tokens."""
    size, kind = 0, "tokens" if feature.kind == "text" else feature.kind
    if not feature.is_number:
        size = len(tft.TFTransformOutput(str(graph)).vocabulary_by_name(vocabulary_file(feature.name)))
    return {"name": feature.name, "kind": kind, "vocabulary_size": size, "width": feature.width or 1}


if __name__ == "__main__":
    from beam_jobs.common.command import main

    main("beam_jobs.transform")
