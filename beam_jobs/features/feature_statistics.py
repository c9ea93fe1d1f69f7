"""Statistics of a feature table: the shapes of its ids, and the values that its columns hold or lack."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from beam_jobs.event_log.dead_letter_remedies import double_the_quotes
from beam_jobs.event_log.id_shapes import SHAPE, id_shapes, merge_shapes
from beam_jobs.event_log.span_statistics import MISSING, OTHER, Statistics, dataset_statistics
from beam_jobs.event_log.vector_column import to_matrix
from beam_jobs.features.feature_tables import read_feature_table
from beam_jobs.features.side_features import take_apart
from contracts.config import DataConfig, Feature

log = logging.getLogger(__name__)

_MOST_VALUES = 1_000  # of a column; all others are counted together
_SEPARATORS = ("|", ",", ";")
_WITH_COMMA = re.compile(r"'\s*[-+]?\d[\d.]*,\d[\d,.]*\s*'")
"""A cell, as shown in messages, that is a number with commas, such as 1.234,5 or 1,234.5."""
_PRINTED = r"(?s)^\s*(?:\[(.*)\]|\{(.*)\}|\((.*)\))\s*$"
"""A cell that is a list, a set or array, or a tuple, as printed by Python, JSON or PostgreSQL."""
_ARE_PRINTED = "has lists, sets or arrays in printed form"
_LEAST_COMBINATIONS = 20  # fewer may share values by chance


def feature_statistics(data: DataConfig) -> Iterator[Statistics]:
    """Yields one data set per configured feature table, named after its section of the config.

    Raises:
        ValueError: a table, or every one of its rows, cannot be read.
    """
    for name, table in (("user_features", data.user_features), ("item_features", data.item_features)):
        if table is None:
            continue
        rows = read_feature_table(table, f"data.{name}")
        left_out = ", ".join(
            f"{count:,} {what}" + (f" ({rows.examples[what]})" if what in rows.examples else "")
            for what, count in rows.counts.items()
            if count
        )
        if left_out and not len(rows.ids):
            mended = double_the_quotes(rows.examples.values()) or "fix it, or remove it from the config"
            raise ValueError(f"data.{name}: no row of {table.path} can be used, {left_out}: {mended}")
        if left_out or not len(rows.ids):
            log.warning("data.%s: rows used from %s: %s; %s", name, table.path, f"{len(rows.ids):,}",
                        f"left out or repaired: {left_out}" if left_out else "the table has no others")  # fmt: skip
        histograms = {f"{name}.{table.id}.{SHAPE}": merge_shapes([id_shapes(rows.ids)])}
        for feature in table.features:
            found = histograms[f"{name}.{feature.name}"] = _histogram(rows.columns[feature.name], feature)
            if found.get(MISSING) and found[MISSING] == len(rows.ids):
                log.warning("data.%s: none of the %s rows of %s has a value of kind %s in column %r", name,
                            f"{len(rows.ids):,}", table.path, feature.kind, feature.name)  # fmt: skip
            example = rows.examples.get(f"malformed_{feature.name}", "")
            if problem := _misread(rows.columns[feature.name], feature, example):
                log.warning("data.%s: column %r of %s %s", name, feature.name, table.path, problem)
        yield dataset_statistics(name, len(rows.ids), histograms)


def _misread(column: pa.Array, feature: Feature, malformed: str) -> str | None:
    """Why values may be misread, and the remedy; `malformed` is the first malformed cell, as shown in messages."""
    if feature.kind == "numeric" and _WITH_COMMA.fullmatch(malformed):
        return (
            f"has numbers with a comma, such as {malformed}, which count as missing: write a point before decimals and "
            "no separator between thousands, as in 1234.5"
        )
    if feature.kind == "tokens":
        return _misread_tokens(column, feature.separator)
    return _misread_categories(column) if feature.kind == "categorical" else None


def _misread_categories(cells: pa.Array) -> str | None:
    """Why each combination of a few values counts as a category, if so, and the remedy."""
    found = pc.unique(cells.filter(pc.greater(pc.binary_length(cells), 0)))
    present = pc.unique(pc.replace_substring_regex(found, _PRINTED, r"\1\2\3"))
    for mark in _SEPARATORS:
        if len(present) < _LEAST_COMBINATIONS or not _most(pc.match_substring(present, mark)):
            continue
        separator = f"{mark} " if _most(pc.match_substring(present, f"{mark} ")) else mark
        parts = pc.split_pattern(present, separator)
        values = pc.unique(pc.list_flatten(parts))
        if 2 * len(values) <= len(present) and _share_values(parts):
            if _most(pc.match_substring_regex(found, _PRINTED)):
                return (
                    f"{_ARE_PRINTED}, and each of {len(present):,} combinations of {len(values):,} values counts as a "
                    "category: set kind: tokens, and separate values by '|', or write a column of lists to Parquet"
                )
            return (
                f"has {len(present):,} categories made of {len(values):,} values separated by {separator!r}, so what "
                f"two of them share is lost: set kind: tokens and separator: '{separator}'"
            )
    return None


def _share_values(parts: pa.Array) -> bool:
    """Whether most later parts also occur as first parts, unlike in "Smith, John", 1,234 and Men|Shoes."""
    behind = pc.unique(pc.list_flatten(pc.list_slice(parts, 1)))
    return _most(pc.is_in(behind, pc.unique(pc.list_element(parts, 0))))


def _misread_tokens(cells: pa.Array, separator: str) -> str | None:
    """Why values of a tokens column are misread, if most non-empty cells show it, and the remedy."""
    present = cells.filter(pc.greater(pc.binary_length(cells), 0))
    separated = present.filter(pc.match_substring(present, separator))
    if _most(pc.match_substring_regex(present, _PRINTED)):
        return (
            f"{_ARE_PRINTED}: their brackets and quotes count as part of the tokens, so one value counts as several. "
            f"Separate values by {separator!r}, or write a column of lists to Parquet"
        )
    if not separator.endswith(" ") and _most(pc.match_substring(separated, f"{separator} ")):
        return (
            f"has a space after each {separator!r}, which counts as part of the token, so a value that comes first "
            f"counts as a different one: set separator: '{separator} '"
        )
    for other in _SEPARATORS:
        if not len(separated) and _most(pc.match_substring(present, other)):
            return f"has {other!r} in most cells, and {separator!r} in none, so each cell is one token: set separator"
    return None


def _most(mask: pa.Array) -> bool:
    return 2 * (pc.sum(mask).as_py() or 0) > len(mask)


def _histogram(column: pa.Array, feature: Feature) -> dict[str, int]:
    if feature.kind == "numeric":
        return magnitudes(column.to_numpy(zero_copy_only=False))
    if feature.kind == "vector":
        vectors = to_matrix(column)  # whose squares may not fit float32
        return magnitudes(np.sqrt(np.einsum("id,id->i", vectors, vectors, dtype=np.float64)))
    if feature.kind == "text":  # new words are no anomaly
        missing = pc.sum(pc.equal(pc.binary_length(column), 0)).as_py() or 0
        return {"(text)": len(column) - missing, MISSING: missing}
    return value_counts(column, feature)


def value_counts(column: pa.Array, feature: Feature) -> dict[str, int]:
    """How often each of the most frequent values occurs (tokens count one by one), and how many rows have none."""
    tokens = take_apart(feature, column)
    counts = np.bincount(tokens.codes, minlength=len(tokens.values))
    common = dict(zip(tokens.values[:_MOST_VALUES], counts[:_MOST_VALUES].tolist(), strict=True))
    return {**common, OTHER: int(counts[_MOST_VALUES:].sum()), MISSING: len(column) - len(np.unique(tokens.items))}


def magnitudes(numbers: npt.NDArray[np.floating]) -> dict[str, int]:
    """How many of [n] numbers, or lengths of vectors, have each sign and power of ten.

    A price in cents instead of dollars moves by two powers. Values that are not finite count as missing.
    """
    finite = np.isfinite(numbers)
    present = numbers[finite]
    power = np.floor(np.log10(np.abs(present[present != 0]).astype(np.float64))).astype(np.int64)
    powers, counts = np.unique(np.stack([np.sign(present[present != 0]), power]), axis=1, return_counts=True)
    names = [f"{'-' if sign < 0 else ''}1e{exponent:.0f}" for sign, exponent in powers.T.tolist()]
    found = dict(zip(names, counts.tolist(), strict=True))
    return {**found, "0": int((present == 0).sum()), MISSING: int((~finite).sum())}
