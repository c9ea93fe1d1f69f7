"""Item embeddings from co-occurrence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from beam_jobs.common.arrays import Float32, Int32, Int64
from beam_jobs.common.files import read_parquet
from contracts.storage import local

_LEAST_NORM = 1e-6


def ppmi(blocks: Sequence[Path], num_items: int) -> sp.csr_matrix:
    """Positive pointwise mutual information: max(0, log(p(i, j) / (p(i) p(j)))), for i and j that co-occur.

    Args:
        blocks: files of `CountCooccurrences`; read one by one, twice, so that only the positive entries need be kept.
        num_items: size of the catalogue.

    Returns:
        symmetric [num_items, num_items].
    """
    totals = np.zeros(num_items)
    for rows, columns, weights in map(read_block, blocks):
        totals += np.bincount(rows, weights, num_items) + np.bincount(columns, weights, num_items)
    upper = [(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))]
    for rows, columns, weights in map(read_block, blocks):
        values = np.log(weights * totals.sum() / (totals[rows] * totals[columns]))
        kept = np.flatnonzero(values > 0)
        upper.append((rows[kept], columns[kept], values[kept].astype(np.float32)))
    row, column, value = (np.concatenate(parts) for parts in zip(*upper, strict=True))
    both = np.concatenate([row, column]), np.concatenate([column, row])
    return sp.coo_matrix((np.concatenate([value, value]), both), shape=(num_items, num_items)).tocsr()


def read_block(path: Path) -> tuple[Int32, Int32, Int64]:
    """[num_pairs] rows, columns and weights of a file of `CountCooccurrences` or `MergeCooccurrences`."""
    table = read_parquet(local(path))
    return table["row"].to_numpy(), table["column"].to_numpy(), table["weight"].to_numpy()


def embed_cooccurrences(matrix: sp.csr_matrix, dim: int, seed: int) -> Float32:
    """Rows of U sqrt(S) of the PPMI matrix's truncated SVD, L2-normalised (Levy & Goldberg 2014).

    The sign of each axis is fixed by its largest entry, so equal input gives equal output.

    Args:
        matrix: [num_items, num_items] of `ppmi`.
        dim: axes of an embedding; those beyond the matrix's size are 0.
        seed: of the SVD's random projection.

    Returns:
        [num_items, dim] embeddings; 0 for items that co-occur with none.
    """
    num_items = matrix.shape[0]
    embeddings = np.zeros((num_items, dim), np.float32)
    rank = min(dim, num_items)
    if matrix.nnz:
        u, s, _ = randomized_svd(matrix, n_components=rank, random_state=seed, n_iter=4)
        embeddings[:, :rank] = u * np.sqrt(s)
        # If the matrix's rank is below `rank`, rounding would give an item without co-occurrence a direction.
        embeddings[np.diff(matrix.indptr) == 0] = 0
    return normalise_rows(embeddings)


def normalise_rows(rows: npt.NDArray[np.floating]) -> Float32:
    """[num_rows, dim] rows scaled to length 1; rows of next to no length become 0."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Float32 = np.where(norms > _LEAST_NORM, rows / np.maximum(norms, _LEAST_NORM), 0).astype(np.float32)
    return scaled
