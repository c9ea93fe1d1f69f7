"""User and item tables as TFT reads them: every id of the vocabulary, in order, with raw features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from beam_jobs.common.files import write_parquet
from beam_jobs.common.payload import one_array
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import FeatureTable
from contracts.storage import local

ROWS_PER_BATCH = 1 << 15


def write_raw_table(ids: pa.Array, id_name: str, table: FeatureTable | None, field: str, path: Path) -> dict[str, int]:
    """Joins `ids` with the feature table, in row groups of `ROWS_PER_BATCH`; returns counts of rows that were left out.

    Raises:
        ValueError: the feature table cannot be read.
    """
    columns: dict[str, pa.Array] = {id_name: ids.cast(pa.binary())}
    counts: dict[str, int] = {}
    if table is not None:
        rows = read_feature_table(table, field)
        aligned = rows.aligned(ids)
        columns.update({feature.name: aligned[feature.name] for feature in table.features})
        counts = rows.counts
    write_parquet(pa.table(columns), path, ROWS_PER_BATCH)
    return counts


class ReadRawBatches(beam.DoFn):
    """(path, number of a row group) -> a record batch with each scalar as a list of one, as TFT expects it."""

    def process(self, element: tuple[Path, int]) -> Iterator[pa.RecordBatch]:
        path, number = element
        with pq.ParquetFile(local(path)) as file:  # if it read the whole table, work would be quadratic in its size
            yield as_lists(file.read_row_group(number, use_threads=False))


def as_lists(table: pa.Table) -> pa.RecordBatch:
    """Turns columns of scalars into lists of length 1, and fixed-size lists into lists."""
    return pa.RecordBatch.from_arrays([_as_list(one_array(column)) for column in table.columns], table.column_names)


def _as_list(column: pa.Array) -> pa.Array:
    is_vector = pa.types.is_fixed_size_list(column.type)
    values, size = (column.flatten(), column.type.list_size) if is_vector else (column, 1)
    return pa.ListArray.from_arrays(pa.array(np.arange(len(column) + 1) * size, pa.int32()), values)
