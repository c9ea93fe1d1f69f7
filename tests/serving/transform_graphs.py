"""Writes the transform graphs that the servable holds, with TFT itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

import contracts  # noqa: F401  (selects Keras 2)

Tensors = dict[str, tf.Tensor]

GENDERS = ("f", "m")
TAGS = ("red", "green", "blue")
CATEGORIES = ("toys", "books", "music")
MAX_TAGS = 2


def write_item_graph(path: Path, scratch: Path, item_ids: Sequence[str]) -> None:
    """item_id -> item_index in the order of `item_ids`; category -> 1 + its place in CATEGORIES; 0 = unknown."""
    lookup = _lookups(scratch / "items", {"ids": item_ids, "values": CATEGORIES})

    def preprocess(inputs: Tensors) -> Tensors:
        return {
            "item_index": lookup("ids", inputs["item_id"]),
            "category": lookup("values", inputs["category"]),
        }

    _write(path, scratch, preprocess, {"item_id": tf.string, "category": tf.string})


def write_user_graph(path: Path, scratch: Path, user_ids: Sequence[str]) -> None:
    """user_id -> user_index; gender, tags -> 1 + place in GENDERS, TAGS; age -> age / 100; 0 = unknown or missing.

    The files have the item graph's names, as features of both tables may.
    """
    lookup = _lookups(scratch / "users", {"ids": user_ids, "values": GENDERS, "tags": TAGS})

    def preprocess(inputs: Tensors) -> Tensors:
        age = inputs["age"]
        tags = tf.strings.split(inputs["tags"], "|").to_tensor("", shape=[None, MAX_TAGS])
        return {
            "user_index": lookup("ids", inputs["user_id"]),
            "gender": lookup("values", inputs["gender"]),
            "tags": lookup("tags", tags),
            "age": tf.where(tf.math.is_nan(age), tf.zeros_like(age), age / 100.0),
        }

    _write(path, scratch, preprocess, {**dict.fromkeys(("user_id", "gender", "tags"), tf.string), "age": tf.float32})


def _lookups(folder: Path, values: Mapping[str, Sequence[str]]) -> Callable[[str, tf.Tensor], tf.Tensor]:
    folder.mkdir()
    for name, lines in values.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return lambda name, keys: tft.apply_vocabulary(keys, str(folder / f"{name}.txt"), default_value=-1) + 1


def _write(path: Path, scratch: Path, preprocess: Callable[[Tensors], Tensors], dtypes: dict[str, tf.DType]) -> None:
    spec = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in dtypes.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    row = {name: "" if dtype == tf.string else 0.0 for name, dtype in dtypes.items()}
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(scratch / "tft")):
        data = pipeline | beam.Create([row])
        graph = (data, metadata) | tft_beam.AnalyzeDataset(preprocess)
        graph | tft_beam.WriteTransformFn(str(path))
