"""The preprocessing functions that TFT traces: the one place that defines what a raw feature becomes.

The same graph runs in Beam over the whole table and inside the servable on a request.
"""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf
import tensorflow_transform as tft

from beam_jobs.event_log.column_text import NO_WORD
from contracts.config import Feature
from contracts.layout import vocabulary_file

Tensors = dict[str, tf.Tensor]

_ROUNDING = 1e-12


def make_preprocessing_fn(
    id_name: str, index_name: str, vocabulary: str, features: tuple[Feature, ...]
) -> Callable[[Tensors], Tensors]:
    """Builds a preprocessing function.

    Args:
        id_name: raw feature holding the id.
        index_name: output holding its index.
        vocabulary: text file, one id per line, in the order of the index.
        features: side features.

    Returns:
        a function of raw features, each [batch_size], whose outputs are: `index_name` int64 [batch_size],
        0 for an id outside the vocabulary; categorical int64 [batch_size], tokens and text int64
        [batch_size, max_tokens], 1.. by frequency and 0 for missing or unknown; numeric float32
        [batch_size], z-score over the values present and 0 for a missing one; vector float32 [batch_size, dim],
        the z-score of each column over sqrt(dim), so that a vector weighs about as much as a number.
    """

    def preprocessing_fn(inputs: Tensors) -> Tensors:
        outputs = {index_name: _index(inputs[id_name], vocabulary, index_name)}
        for feature in features:
            raw = inputs[feature.name]
            if feature.kind == "numeric":
                outputs[feature.name] = _z_score(raw)
            elif feature.kind == "vector":
                outputs[feature.name] = _z_score(raw) / feature.dim**0.5
            else:
                values = raw if feature.kind == "categorical" else _split(raw, feature)
                # A vocabulary is a file of lines, and TFT leaves out values of more than one.
                outputs[feature.name] = _vocabulary_index(tf.strings.regex_replace(values, r"[\r\n]", " "), feature)
        return outputs

    return preprocessing_fn


def raw_feature_spec(id_name: str, features: tuple[Feature, ...]) -> dict[str, tf.io.FixedLenFeature]:
    """Raw inputs: float32 for numeric and vector features, else strings."""
    spec = {id_name: tf.io.FixedLenFeature([], tf.string)}
    for feature in features:
        spec[feature.name] = tf.io.FixedLenFeature(feature.raw_shape, tf.float32 if feature.is_number else tf.string)
    return spec


def _index(ids: tf.Tensor, vocabulary: str, name: str) -> tf.Tensor:
    """The file becomes an asset of the graph, so the servable needs nothing else."""

    def table() -> tf.lookup.StaticHashTable:
        initializer = tf.lookup.TextFileInitializer(
            vocabulary, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        return tf.lookup.StaticHashTable(initializer, default_value=-1)

    return tft.make_and_track_object(table, name=f"{name}_table").lookup(ids) + 1


def _vocabulary_index(values: tf.Tensor, feature: Feature) -> tf.Tensor:
    """TFT leaves empty strings out of a vocabulary, so a missing value looks up as unknown."""
    return 1 + tft.compute_and_apply_vocabulary(
        values, default_value=-1, top_k=feature.max_vocabulary, vocab_filename=vocabulary_file(feature.name)
    )


def _split(cells: tf.Tensor, feature: Feature) -> tf.Tensor:
    """[batch_size] -> [batch_size, max_tokens], the first non-empty values of each cell, padded with "".

    The values of a text are its runs of letters and digits, in lower case.
    """
    if feature.kind == "text":
        lower = tf.strings.lower(tf.strings.unicode_transcode(cells, "UTF-8", "UTF-8"), encoding="utf-8")
        ragged = tf.strings.split(tf.strings.regex_replace(lower, NO_WORD, " "), sep=" ")
    else:
        ragged = tf.strings.split(cells, sep=feature.separator)
    present = tf.ragged.boolean_mask(ragged, tf.not_equal(ragged, ""))
    return present.to_tensor(default_value="", shape=[None, feature.max_tokens])


def _z_score(values: tf.Tensor) -> tf.Tensor:
    """(value - mean) / deviation over finite values; 0 for the others, and for all if they are equal.

    For [batch_size, dim] vectors, this is done column by column. A vector is either finite or missing as a whole.

    All sums are independent of each other, so TFT reads the table once. Squares of float32 are exact in
    float64; a variance within the rounding of their sums counts as 0.
    """
    present = tf.math.is_finite(values)
    if values.shape.rank == 2:
        present = tf.broadcast_to(tf.reduce_all(present, axis=1, keepdims=True), tf.shape(values))
    wide = tf.cast(tf.where(present, values, 0.0), tf.float64)
    ones = tf.cast(present, tf.float64)
    count = tf.maximum(_column_sum(ones), 1.0)
    mean = _column_sum(wide) / count
    mean_square = _column_sum(tf.square(wide)) / count
    variance = mean_square - tf.square(mean)
    deviation = tf.sqrt(tf.where(variance > _ROUNDING * mean_square, variance, 0.0))
    scaled = tf.math.divide_no_nan(wide - mean, deviation)
    return tf.where(present, tf.cast(scaled, tf.float32), 0.0)


def _column_sum(values: tf.Tensor) -> tf.Tensor:
    """Sum over all rows of the table: a scalar, or [dim] for vectors."""
    return tft.sum(values, reduce_instance_dims=False)
