"""Item side features as tokens and as a sparse matrix, for groups of items without history and for labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from beam_jobs.column_text import NO_WORD
from beam_jobs.feature_tables import read_feature_table
from beam_jobs.vector_column import to_matrix
from contracts.config import Feature, FeatureTable

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 1 << 15
# The ridge regression solves a dense system of all values: time grows with the cube of their number.
_MAX_VALUES, _MAX_VALUES_OF_ALL = 2_000, 6_000


@dataclass
class TokenFeature:
    """A categorical or tokens feature, taken apart.

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


@dataclass
class SideFeatures:
    """All that the item table says of the catalogue.

    Attributes:
        num_items: size of the catalogue.
        tokens: categorical, tokens and text features.
        numbers: name -> [num_items, dim] float32, NaN where there is none; of a numeric feature, dim is 1.
        titles: [num_items] readable names, "" where there is none.
    """

    num_items: int
    tokens: list[TokenFeature]
    numbers: dict[str, npt.NDArray[np.float32]]
    titles: list[str]

    def feature(self, name: str) -> TokenFeature:
        """The token feature of this name.

        Raises:
            ValueError: there is none.
        """
        for feature in self.tokens:
            if feature.name == name:
                return feature
        raise ValueError(
            f"groups.category={name!r} is not a categorical or tokens feature of data.item_features; "
            f"those are {[feature.name for feature in self.tokens]}"
        )

    def matrix(self) -> sp.csr_matrix:
        """[num_items, num_columns] one-hot values, the most frequent of each feature, and standardised numbers."""
        blocks = [sp.csr_matrix((self.num_items, 0), dtype=np.float32)]
        most = min(_MAX_VALUES, _fair_share([len(feature.values) for feature in self.tokens], _MAX_VALUES_OF_ALL))
        for feature in self.tokens:
            kept = feature.codes < most
            shape = (self.num_items, min(len(feature.values), most))
            ones = np.ones(int(kept.sum()), np.float32)
            blocks.append(sp.csr_matrix((ones, (feature.items[kept], feature.codes[kept])), shape=shape))
        for numbers in self.numbers.values():
            present = np.isfinite(numbers).all(axis=1)
            scaled = np.zeros(numbers.shape, np.float32)
            if present.any():
                known = numbers[present].astype(np.float64)
                spread, deviation = known.std(axis=0), known - known.mean(axis=0)
                scaled[present] = deviation / np.where(spread > 0, spread, 1.0) / numbers.shape[1] ** 0.5
            blocks.append(sp.csr_matrix(scaled))
        return sp.hstack(blocks, format="csr")


def _fair_share(sizes: list[int], most: int) -> int:
    """The greatest number to which each of `sizes` may be cut so that their sum is at most `most`."""
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


def _matrix(column: pa.Array) -> npt.NDArray[np.float32]:
    """[num_items, dim]."""
    if pa.types.is_fixed_size_list(column.type):
        return to_matrix(column)
    numbers: npt.NDArray[np.float32] = column.to_numpy(zero_copy_only=False)
    return numbers[:, None]


def _split(column: pa.Array, feature: Feature) -> pa.Array | None:
    """The values of each cell as lists, as the transform's graph splits it; None where a cell is one value."""
    if feature.kind == "tokens":
        return pc.split_pattern(column, feature.separator.encode())
    if feature.kind == "text":
        text = pa.array([cell.decode("utf-8", "replace") for cell in column.to_pylist()], pa.string())
        words = pc.replace_substring_regex(pc.utf8_lower(text), NO_WORD, " ")
        return pc.split_pattern(words.cast(pa.binary()), b" ")
    return None


def take_apart(feature: Feature, column: pa.Array) -> TokenFeature:
    """A column of a feature table by its values; an empty one is none."""
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
    return TokenFeature(feature.name, values, items, rank[codes] if len(codes) else codes)


def _values_of(feature: Feature, cells: pa.Array) -> tuple[Int32, pa.DictionaryArray]:
    """The places of the cells that the values are in, and the values."""
    lists = _split(cells, feature)
    flat, places = cells, pa.array(np.arange(len(cells)))
    if lists is not None:
        flat, places = pc.list_flatten(lists), pc.list_parent_indices(lists)
    present = pc.not_equal(flat, pa.scalar(b"", pa.binary()))
    return places.filter(present).to_numpy().astype(np.int32), flat.filter(present).dictionary_encode()
