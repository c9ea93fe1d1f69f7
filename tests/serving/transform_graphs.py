"""Writes the transform graphs that the servable holds, with TFT itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

import contracts  # noqa: F401  (selects Keras 2)


def write_item_graph(path: Path, scratch: Path, item_ids: list[str]) -> None:
    """item_id -> item_index in the order of `item_ids`; 0 = unknown."""
    vocabulary = scratch / "items.txt"
    vocabulary.write_text("\n".join(item_ids) + "\n", encoding="utf-8")

    def preprocess(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"item_index": tft.apply_vocabulary(inputs["item_id"], str(vocabulary), default_value=-1) + 1}

    _write(path, scratch, preprocess, {"item_id": tf.string}, [{"item_id": item} for item in item_ids])


def write_user_graph(path: Path, scratch: Path, user_ids: list[str], genders: list[str], ages: list[float]) -> None:
    """user_id -> user_index; gender -> 1 + its place among f, m (0 = unknown); age -> age / 100, 0 if missing."""
    vocabulary, gender_vocabulary = scratch / "users.txt", scratch / "genders.txt"
    vocabulary.write_text("\n".join(user_ids) + "\n", encoding="utf-8")
    gender_vocabulary.write_text("f\nm\n", encoding="utf-8")

    def preprocess(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        age = inputs["age"]
        return {
            "user_index": tft.apply_vocabulary(inputs["user_id"], str(vocabulary), default_value=-1) + 1,
            "gender": tft.apply_vocabulary(inputs["gender"], str(gender_vocabulary), default_value=-1) + 1,
            "age": tf.where(tf.math.is_nan(age), tf.zeros_like(age), age / 100.0),
        }

    rows = [
        {"user_id": user, "gender": gender, "age": age}
        for user, gender, age in zip(user_ids, genders, ages, strict=True)
    ]
    _write(path, scratch, preprocess, {"user_id": tf.string, "gender": tf.string, "age": tf.float32}, rows)


def _write(
    path: Path,
    scratch: Path,
    preprocess: Callable[[dict[str, tf.Tensor]], dict[str, tf.Tensor]],
    dtypes: dict[str, tf.DType],
    rows: list[dict[str, Any]],
) -> None:
    spec = {name: tf.io.FixedLenFeature([], dtype) for name, dtype in dtypes.items()}
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(scratch / "tft")):
        data = pipeline | beam.Create(rows[:1])
        graph = (data, metadata) | tft_beam.AnalyzeDataset(preprocess)
        graph | tft_beam.WriteTransformFn(str(path))
