"""Each item's nearest other items under a trained model's embeddings: where mined negatives come from."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from beam_jobs.common.arrays import Float32, Int32
from beam_jobs.common.beam_run import collect
from beam_jobs.common.files import read_array, write_array
from beam_jobs.common.payload import one_array
from beam_jobs.event_log.column_text import to_binary
from beam_jobs.event_log.event_files import is_parquet
from beam_jobs.grouping.item_embeddings import normalise_rows
from beam_jobs.sampling.uniform import UniformLists
from contracts.config import BeamConfig
from contracts.names import EmbeddingColumn
from contracts.storage import StorageError, as_path, local, open_binary, reading, remove

_ROWS_PER_ELEMENT = 8_192
_SCORES_AT_ONCE = 1 << 25  # 128 MiB


def read_item_embeddings(path: str, item_ids: pa.Array) -> Float32:
    """[num_items, dim] embeddings of unit length in the order of `item_ids`; 0 for an item without one.

    An item has none if the file lacks it, or if Parquet holds a null for it.

    Raises:
        ValueError: the file is unreadable, does not hold [n, dim] finite numbers for n distinct ids, or has none of the
            items.
    """
    with _told_as_unreadable(path), reading(as_path(path)) as copy:
        ids, vectors = _read(copy)
    if (
        vectors.ndim != 2
        or len(vectors) != len(ids)
        or not np.isfinite(vectors).all()
        or len(pc.unique(ids)) < len(ids)
    ):
        raise ValueError(
            f"windows.mined_from: {path} holds {len(ids)} ids and embeddings of shape {vectors.shape}; "
            "it needs distinct ids, and one row of finite numbers for each"
        )
    rows = pc.fill_null(pc.index_in(item_ids, ids), -1).to_numpy(zero_copy_only=False)
    if not (rows >= 0).any():
        raise ValueError(
            f"windows.mined_from: {path} holds none of the log's items, {len(item_ids)} in all (its first id is "
            f"{ids[0].as_py() if len(ids) else None!r}): name the embeddings of a model of this catalogue"
        )
    aligned = np.zeros((len(item_ids), vectors.shape[1]), np.float32)
    aligned[rows >= 0] = vectors[rows[rows >= 0]]
    return normalise_rows(aligned)


def require_item_embeddings(path: str) -> None:
    """Checks the names in a file of item embeddings, but not its numbers, before stages that may take hours.

    Raises:
        ValueError: it is not such a file.
    """
    with _told_as_unreadable(path), open_binary(as_path(path)) as stream:
        if is_parquet(path):
            names = pq.read_schema(stream).names
        else:
            arrays = np.load(stream, allow_pickle=False)
            names = arrays.files if isinstance(arrays, np.lib.npyio.NpzFile) else []
        for name in (EmbeddingColumn.ITEM_ID, EmbeddingColumn.EMBEDDING):
            if name not in names:
                raise ValueError(f"it has no {name!r}")


@contextmanager
def _told_as_unreadable(path: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, pa.ArrowException) as error:
        raise ValueError(
            f"windows.mined_from: {path} cannot be read ({error}): it must be .npz or .parquet with "
            f"{EmbeddingColumn.ITEM_ID!r}, [n] text, and {EmbeddingColumn.EMBEDDING!r}, [n, dim] numbers"
        ) from None


def _read(path: Path) -> tuple[pa.Array, Float32]:
    if is_parquet(path.name):
        ids, vectors = _read_parquet(path)
    else:
        arrays = np.load(path, allow_pickle=False)
        if isinstance(arrays, np.ndarray):
            raise ValueError("it is a single array, without ids")
        with arrays:
            ids = to_binary(pa.array(arrays[EmbeddingColumn.ITEM_ID].tolist())).cast(pa.string())
            vectors = arrays[EmbeddingColumn.EMBEDDING]
    if vectors.dtype.kind not in "iuf":
        raise ValueError(f"its embeddings are of type {vectors.dtype}")
    with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused as such
        return ids, vectors.astype(np.float32)


def _read_parquet(path: Path) -> tuple[pa.Array, npt.NDArray[np.generic]]:
    """Ids and embeddings of the rows that have an embedding."""
    table = pq.read_table(path, columns=[EmbeddingColumn.ITEM_ID, EmbeddingColumn.EMBEDDING])
    column = table[EmbeddingColumn.EMBEDDING].combine_chunks()
    present = column.is_valid()
    rows = np.flatnonzero(present)
    column = column.filter(present)  # flattening skips nulls, which would move up the rows after them
    lengths = pc.list_value_length(column).to_numpy()
    width = lengths[0] if len(lengths) else 0
    if not width:
        raise ValueError("none of its rows has an embedding")
    for other in np.flatnonzero(lengths != width)[:1]:
        raise ValueError(
            f"row {rows[other] + 1} has an embedding of {lengths[other]} numbers, row {rows[0] + 1} one of {width}"
        )
    ids = to_binary(one_array(table[EmbeddingColumn.ITEM_ID])).cast(pa.string()).filter(present)
    return ids, pc.list_flatten(column).to_numpy(zero_copy_only=False).reshape(len(column), width)


def find_neighbors(config: BeamConfig, embeddings: Float32, number: int, scratch: Path) -> Path:
    """Writes [num_items, number] 0-based nearest items by cosine to an .npy below `scratch`, -1 = none.

    The search is exact, and its cost is quadratic in the catalogue: some minutes on one core for 100,000 items.
    Each block of items is a separate element, so that a cluster shares the work.
    """
    source = scratch / "mined_embeddings.npy"
    write_array(source, embeddings)
    starts = list(range(0, len(embeddings), _ROWS_PER_ELEMENT))
    steps = beam.ParDo(_NeighborsOfBlock(source, number, scratch))
    blocks = [as_path(path) for path in sorted(collect(config, starts, steps, scratch))]
    joined = scratch / "mined_neighbors.npy"
    write_array(joined, np.concatenate([read_array(block) for block in blocks]))
    remove(source, *blocks)
    return joined


def neighbor_lists(path: Path) -> UniformLists:
    """The file of `find_neighbors` as lists."""
    neighbors = np.load(local(path), mmap_mode="r")
    present = neighbors >= 0
    return UniformLists(neighbors[present], present.sum(axis=1))


class _NeighborsOfBlock(beam.DoFn):
    """First row of a block -> file of its rows' neighbours."""

    def __init__(self, source: Path, number: int, scratch: Path) -> None:
        self._source = source
        self._number = number
        self._scratch = scratch

    def process(self, start: int) -> Iterator[str]:
        embeddings = np.load(local(self._source), mmap_mode="r")
        found = nearest(np.asarray(embeddings), start, min(start + _ROWS_PER_ELEMENT, len(embeddings)), self._number)
        path = self._scratch / f"mined-{start:012d}.npy"
        write_array(path, found)
        yield str(path)


def nearest(embeddings: Float32, start: int, stop: int, number: int) -> Int32:
    """[stop - start, number] nearest other rows by inner product, ascending (not by it); -1 where there is none.

    Rows of 0 have no neighbours and are never neighbours.
    """
    known = np.flatnonzero(embeddings.any(axis=1))
    result = np.full((stop - start, number), -1, np.int32)
    kept = min(number, len(known) - 1)
    rows = known[(known >= start) & (known < stop)]
    if kept < 1:
        return result
    candidates = embeddings[known]
    step = max(1, _SCORES_AT_ONCE // len(known))
    for first in range(0, len(rows), step):
        block = rows[first : first + step]
        scores = embeddings[block] @ candidates.T
        scores[np.arange(len(block)), np.searchsorted(known, block)] = -np.inf
        # In an order that does not depend on the CPU's rounding: draws go by place.
        result[block - start, :kept] = known[np.sort(np.argpartition(scores, -kept, axis=1)[:, -kept:], axis=1)]
    return result
