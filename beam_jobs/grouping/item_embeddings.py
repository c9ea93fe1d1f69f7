"""Item embeddings from co-occurrence, or from side features for items without any."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

from beam_jobs.common.arrays import Bool, Float32, Int32, Int64
from beam_jobs.common.files import read_parquet
from beam_jobs.features.side_features import SideColumns, blocks_of_items
from contracts.storage import local

_RIDGE = 1.0
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


def embed_cold(embeddings: Float32, side: SideColumns) -> tuple[Float32, Bool]:
    """Embeds items without co-occurrence by their side features, with a ridge regression.

    The map from side features to embeddings is learnt from items that have both. An item that shares no feature with
    them, such as the first of a brand, gets no embedding.

    Args:
        embeddings: [num_items, dim], rows of 0 to be filled.
        side: features of the same items.

    Returns:
        [num_items, dim] embeddings and [num_items] whether each row is not 0.
    """
    warm: Bool = np.any(embeddings != 0, axis=1)
    informed = side.shared_with(np.flatnonzero(warm))
    train, cold = np.flatnonzero(warm & informed), np.flatnonzero(~warm & informed)
    if not len(train) or not len(cold):
        return embeddings, warm
    mean = embeddings[train].mean(axis=0)
    of_values, of_numbers = np.split(_ridge(side, train, embeddings, mean), [side.values.shape[1]])
    filled = embeddings.copy()
    for items in blocks_of_items(cold):
        filled[items] = normalise_rows(side.values[items] @ of_values + side.numbers(items) @ of_numbers + mean)
    return filled, np.any(filled != 0, axis=1)


def _ridge(side: SideColumns, train: Int64, embeddings: Float32, mean: Float32) -> npt.NDArray[np.floating]:
    """[num_columns, dim] weights of the regression of `embeddings` - `mean` on the columns, over the items `train`."""
    num_values = side.values.shape[1]
    size = num_values + side.width
    gram, moments = _RIDGE * np.eye(size), np.zeros((size, embeddings.shape[1]))
    values = side.values[train]
    gram[:num_values, :num_values] += (values.T @ values).toarray()
    moments[:num_values] = values.T @ (embeddings[train] - mean)
    for items in blocks_of_items(train) if side.width else ():
        numbers = side.numbers(items)
        gram[num_values:, num_values:] += numbers.T @ numbers
        gram[:num_values, num_values:] += side.values[items].T @ numbers
        moments[num_values:] += numbers.T @ (embeddings[items] - mean)
    gram[num_values:, :num_values] = gram[:num_values, num_values:].T
    return np.linalg.solve(gram, moments)
