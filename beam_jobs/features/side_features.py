"""Item side features as tokens and as a sparse matrix, for groups of items without history and for labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from beam_jobs.common.arrays import Bool, Float32, Float64, Int32, Int64
from beam_jobs.event_log.column_text import NO_WORD
from beam_jobs.event_log.vector_column import to_matrix
from beam_jobs.features.feature_tables import read_feature_table
from contracts.config import Feature, FeatureTable

_ROWS_AT_ONCE, _DENSE_ROWS = 1 << 15, 1 << 13
_ROUNDING = 1e-12
# The ridge regression solves a dense system of all values: time grows with the cube of their number.
_MAX_VALUES, _MAX_VALUES_OF_ALL = 2_000, 6_000


@dataclass
class TokenFeature:
    """A categorical or tokens feature, split into its values.

    Attributes:
        name: of the feature.
        values: [num_values] distinct values, most frequent first, as text.
        items: [num_tokens] 0-based item of each token, ascending.
        codes: [num_tokens] index into `values`.
    """

    name: str
    values: list[str]
    items: Int32
    codes: Int32

    def first_codes(self, num_items: int) -> Int64:
        """[num_items] code of each item's first value, -1 without one."""
        codes = np.full(num_items, -1)
        items, first = np.unique(self.items, return_index=True)
        codes[items] = self.codes[first]
        return codes

    def first_values(self, num_items: int) -> pa.Array:
        """[num_items] each item's first value as text, null without one."""
        codes = self.first_codes(num_items)
        return pa.array(self.values, pa.string()).take(pa.array(codes, mask=codes < 0))


@dataclass
class SideFeatures:
    """All that the item table says about the catalogue.

    Attributes:
        num_items: size of the catalogue.
        tokens: categorical, tokens and text features.
        numbers: name -> [num_items, dim] float32, NaN for missing values; dim is 1 for a numeric feature.
        titles: [num_items] readable names, "" if there is none.
    """

    num_items: int
    tokens: list[TokenFeature]
    numbers: dict[str, Float32]
    titles: list[str]

    def feature(self, name: str) -> TokenFeature:
        """The token feature of this name, which `Config` makes sure exists."""
        return next(feature for feature in self.tokens if feature.name == name)

    def columns(self) -> SideColumns:
        """Each feature's most frequent values, one-hot, and standardised numbers."""
        blocks = [sp.csr_matrix((self.num_items, 0), dtype=np.float32)]
        most = min(_MAX_VALUES, _fair_share([len(feature.values) for feature in self.tokens], _MAX_VALUES_OF_ALL))
        for feature in self.tokens:
            kept = feature.codes < most
            shape = (self.num_items, min(len(feature.values), most))
            ones = np.ones(int(kept.sum()), np.float32)
            blocks.append(sp.csr_matrix((ones, (feature.items[kept], feature.codes[kept])), shape=shape))
            blocks[-1].data[:] = 1  # a word that a text has ten times counts once
        return SideColumns(sp.hstack(blocks, format="csr"), list(self.numbers.values()))


class SideColumns:
    """Side features as columns: sparse ones, and dense ones that are computed one block of items at a time.

    Embeddings of text or images are wider than all else: as sparse columns, or all at once in float64, those of a
    million items would not fit into a machine.

    Attributes:
        values: [num_items, num_values] one-hot.
        width: how many columns are dense.
    """

    def __init__(self, values: sp.csr_matrix, numbers: Sequence[Float32]) -> None:
        """`numbers` are arrays [num_items, dim]; a row with NaN is missing."""
        self.values = values
        self.width = sum(each.shape[1] for each in numbers)
        self._numbers = [(each, *_mean_and_scale(each)) for each in numbers]

    def numbers(self, items: Int64) -> Float32:
        """[num_items, width] z-scores of some items, divided by sqrt(dim) of each feature; 0 where it is missing."""
        columns = [np.zeros((len(items), 0), np.float32)]
        for numbers, mean, scale in self._numbers:
            with np.errstate(invalid="ignore"):  # for missing values
                scaled = (numbers[items] - mean) * scale
            scaled[~np.isfinite(scaled).all(axis=1)] = 0
            columns.append(scaled.astype(np.float32))
        return np.concatenate(columns, axis=1)

    def shared_with(self, items: Int64) -> Bool:
        """[num_items] whether an item has a nonzero column in common with any of `items`."""
        of_values = np.bincount(self.values[items].indices, minlength=self.values.shape[1]) > 0
        of_numbers = np.zeros(self.width, bool)
        for block in blocks_of_items(items):
            of_numbers |= self.numbers(block).any(axis=0)
        shared: Bool = self.values @ of_values.astype(np.float32) > 0
        for block in blocks_of_items(np.arange(len(shared))):
            shared[block] |= self.numbers(block)[:, of_numbers].any(axis=1)
        return shared


def blocks_of_items(items: Int64) -> Iterator[Int64]:
    """Yields the items in blocks."""
    return (items[start : start + _DENSE_ROWS] for start in range(0, len(items), _DENSE_ROWS))


def _mean_and_scale(numbers: Float32) -> tuple[Float64, Float64]:
    """[dim] mean of the rows without NaN, and the factor that turns deviations from it into z-scores over sqrt(dim).

    The factor is 0 for a column of equal numbers: a variance within their rounding counts as 0.
    """
    present = np.flatnonzero(np.isfinite(numbers).all(axis=1))
    mean, variance = np.zeros(numbers.shape[1]), np.zeros(numbers.shape[1])
    for items in blocks_of_items(present):
        mean += numbers[items].sum(axis=0, dtype=np.float64) / len(present)
    for items in blocks_of_items(present):
        variance += ((numbers[items] - mean) ** 2).sum(axis=0) / len(present)
    varies = variance > _ROUNDING * mean**2
    return mean, np.where(varies, 1 / np.sqrt(np.where(varies, variance * numbers.shape[1], 1.0)), 0.0)


def _fair_share(sizes: list[int], most: int) -> int:
    """The greatest limit to which `sizes` can be cut so that their sum is at most `most`."""
    left = most
    for place, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - place)
        if size > share:
            return share
        left -= size
    return most


def read_side_features(table: FeatureTable | None, item_ids: pa.Array) -> SideFeatures:
    """Side features in the order of `item_ids`.

    Raises:
        ValueError: the item table cannot be read.
    """
    num_items = len(item_ids)
    if table is None:
        return SideFeatures(num_items, [], {}, [""] * num_items)
    columns = read_feature_table(table, "data.item_features").aligned(item_ids)
    tokens = [take_apart(feature, columns[feature.name]) for feature in table.features if not feature.is_number]
    numbers = {feature.name: _matrix(columns[feature.name]) for feature in table.features if feature.is_number}
    titles = [""] * num_items
    if table.title is not None:
        raw = columns[table.title]
        titles = [
            str(value) if not isinstance(value, bytes) else value.decode("utf-8", "replace")
            for value in raw.to_pylist()
        ]
    return SideFeatures(num_items, tokens, numbers, titles)


def _matrix(column: pa.Array) -> Float32:
    """[num_items, dim]."""
    if pa.types.is_fixed_size_list(column.type):
        return to_matrix(column)
    numbers: Float32 = column.to_numpy(zero_copy_only=False)
    return numbers[:, None]


def _split(column: pa.Array, feature: Feature) -> pa.Array | None:
    """The values of each cell as lists, as the transform's graph splits it; None if each cell is one value."""
    if feature.kind == "tokens":
        return pc.split_pattern(column, feature.separator.encode())
    if feature.kind == "text":
        text = pa.array([cell.decode("utf-8", "replace") for cell in column.to_pylist()], pa.string())
        words = pc.replace_substring_regex(pc.utf8_lower(text), NO_WORD, " ")
        return pc.split_pattern(words.cast(pa.binary()), b" ")
    return None


def take_apart(feature: Feature, column: pa.Array) -> TokenFeature:
    """Splits a column of a feature table into its values, without empty ones."""
    # A block at a time: the words of a million descriptions are a hundred million.
    starts = range(0, max(1, len(column)), _ROWS_AT_ONCE)
    blocks = [_values_of(feature, column.slice(start, _ROWS_AT_ONCE)) for start in starts]
    items = np.concatenate([items + start for (items, _), start in zip(blocks, starts, strict=True)], dtype=np.int32)
    encoded = pa.chunked_array([encoded for _, encoded in blocks]).unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    # Most frequent first, ties by the value's bytes.
    by_value = pc.sort_indices(encoded.dictionary).to_numpy()
    order = by_value[np.argsort(-counts[by_value], kind="stable")]
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    values = [value.decode("utf-8", "replace") for value in encoded.dictionary.take(pa.array(order)).to_pylist()]
    return TokenFeature(feature.name, values, items, rank[codes])


def _values_of(feature: Feature, cells: pa.Array) -> tuple[Int32, pa.DictionaryArray]:
    """The place of each value's cell, and the values."""
    lists = _split(cells, feature)
    flat, places = cells, pa.array(np.arange(len(cells)))
    if lists is not None:
        flat, places = pc.list_flatten(lists), pc.list_parent_indices(lists)
    present = pc.not_equal(flat, pa.scalar(b"", pa.binary()))
    return places.filter(present).to_numpy().astype(np.int32), flat.filter(present).dictionary_encode()
