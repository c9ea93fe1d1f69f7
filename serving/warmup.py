"""Warm-up requests: TF Serving replays them before a version takes traffic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from contracts.layout import ASSETS_EXTRA
from contracts.names import Signature
from serving.requests import UserRequests
from serving.tensors import to_proto

WARMUP_FILE = ASSETS_EXTRA / "tf_serving_warmup_requests"


def write_warmup(version: Path, requests: UserRequests, model_name: str, names: Sequence[str]) -> None:
    """Writes a PredictionLog for each user but the last, then one for all as one batch, to warm up both sizes.

    `names` are the inputs of the model's queries.
    """
    path = version / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    batches = [slice(row, row + 1) for row in range(len(requests) - 1)] + [slice(0, len(requests))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in batches:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = Signature.SERVING_DEFAULT
            for name, value in requests.inputs(rows, names).items():
                request.inputs[name].CopyFrom(to_proto(value))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def read_warmup(version: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yields (signature name, inputs) of each warm-up request of a version directory.

    Raises:
        ValueError: a record is not a PredictionLog.
    """
    for record in tf.data.TFRecordDataset(str(version / WARMUP_FILE)):
        try:
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
        except DecodeError as error:
            raise ValueError(
                f"{version / WARMUP_FILE} holds an invalid PredictionLog ({error}): export again"
            ) from None
        request = log.predict_log.request
        signature = request.model_spec.signature_name or Signature.SERVING_DEFAULT
        yield signature, {n: tf.make_ndarray(t) for n, t in request.inputs.items()}
