"""Item side features as tokens and as a sparse matrix, for groups of items without history and for labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from beam_jobs.feature_tables import read_feature_table
from contracts.config import Feature, FeatureTable

Int64 = npt.NDArray[np.int64]

_MAX_VALUES = 2_000  # per feature: the ridge regression solves a dense system of their number


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
    items: Int64
    codes: Int64

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
        tokens: categorical and tokens features.
        numbers: name -> [num_items] float32, NaN where there is none.
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
        """[num_items, num_columns] one-hot values and standardised numbers."""
        blocks = [sp.csr_matrix((self.num_items, 0), dtype=np.float32)]
        for feature in self.tokens:
            kept = feature.codes < _MAX_VALUES
            shape = (self.num_items, min(len(feature.values), _MAX_VALUES))
            ones = np.ones(int(kept.sum()), np.float32)
            blocks.append(sp.csr_matrix((ones, (feature.items[kept], feature.codes[kept])), shape=shape))
        for numbers in self.numbers.values():
            present = np.isfinite(numbers)
            scaled = np.zeros(self.num_items, np.float32)
            if present.any():
                spread = float(numbers[present].std()) or 1.0
                scaled[present] = (numbers[present] - numbers[present].mean()) / spread
            blocks.append(sp.csr_matrix(scaled[:, None]))
        return sp.hstack(blocks, format="csr")


def read_side_features(table: FeatureTable | None, item_ids: pa.Array) -> SideFeatures:
    """Side features in the order of `item_ids`.

    Raises:
        ValueError: the item table cannot be read.
    """
    num_items = len(item_ids)
    if table is None:
        return SideFeatures(num_items, [], {}, [""] * num_items)
    columns = read_feature_table(table, "data.item_features").aligned(item_ids)
    tokens = [_tokens(feature, columns[feature.name]) for feature in table.features if feature.kind != "numeric"]
    numbers = {
        feature.name: columns[feature.name].to_numpy(zero_copy_only=False)
        for feature in table.features
        if feature.kind == "numeric"
    }
    titles = [""] * num_items
    if table.title is not None:
        raw = columns[table.title]
        titles = [
            str(value) if not isinstance(value, bytes) else value.decode("utf-8", "replace")
            for value in raw.to_pylist()
        ]
    return SideFeatures(num_items, tokens, numbers, titles)


def _tokens(feature: Feature, column: pa.Array) -> TokenFeature:
    lists = pc.split_pattern(column, feature.separator.encode()) if feature.kind == "tokens" else None
    if lists is None:
        flat, items = column, np.arange(len(column))
    else:
        flat = pc.list_flatten(lists)
        items = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    present = pc.not_equal(flat, pa.scalar(b"", pa.binary()))
    encoded = flat.filter(present).dictionary_encode()
    codes = encoded.indices.to_numpy().astype(np.int64)
    counts = np.bincount(codes, minlength=len(encoded.dictionary))
    # Most frequent first, ties by the value's bytes.
    by_value = pc.sort_indices(encoded.dictionary).to_numpy()
    order = by_value[np.argsort(-counts[by_value], kind="stable")]
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    values = [value.decode("utf-8", "replace") for value in encoded.dictionary.take(pa.array(order)).to_pylist()]
    kept_items = items[present.to_numpy(zero_copy_only=False)].astype(np.int64)
    return TokenFeature(feature.name, values, kept_items, rank[codes] if len(codes) else codes)
