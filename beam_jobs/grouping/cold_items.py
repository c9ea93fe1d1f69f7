"""Embeddings of items without co-occurrence, from their side features."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from beam_jobs.common.arrays import Bool, Float32, Int64
from beam_jobs.features.side_features import SideColumns, blocks_of_items
from beam_jobs.grouping.item_embeddings import normalise_rows

_RIDGE = 1.0


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
