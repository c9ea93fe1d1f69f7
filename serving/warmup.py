"""Warm-up requests: TF Serving replays them before a version takes traffic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from contracts.config import MAX_BATCH_SIZE
from contracts.layout import ASSETS_EXTRA
from contracts.names import Signature
from serving.signature_spec import SignatureSpec
from serving.signatures import read_signatures
from serving.tensors import to_proto
from serving.user_requests import UserRequests

WARMUP_FILE = ASSETS_EXTRA / "tf_serving_warmup_requests"


def write_warmup(version: Path, requests: UserRequests, model_name: str) -> None:
    """Writes a PredictionLog for each user but the last, then one for all as one batch, to warm up both sizes.

    TF Serving's batches take a record only if it has all inputs, with the same number of rows in each (a default that
    the server fills in has one), and no more rows than a batch. A record that they refuse fails the load.

    Args:
        version: directory of the written SavedModel, whose signature is read.
        requests: of the users; the batch holds the last `MAX_BATCH_SIZE` of them.
        model_name: of the servable.
    """
    path = version / WARMUP_FILE
    path.parent.mkdir(exist_ok=True)
    spec = SignatureSpec(Signature.SERVING_DEFAULT, read_signatures(version)[Signature.SERVING_DEFAULT])
    users = len(requests)
    batches = [slice(row, row + 1) for row in range(users - 1)] + [slice(max(users - MAX_BATCH_SIZE, 0), users)]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows in batches:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = spec.name
            inputs, _ = spec.complete(requests.arrays(spec, rows))
            for name, value in inputs.items():
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
