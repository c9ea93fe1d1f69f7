"""Requests over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    model_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from contracts.names import SIGNATURE_DEF
from serving.client.transport import RetrievalError, Target, require_headers
from serving.tensors import to_proto

_RECONNECT_MS = 1000
_TOO_LARGE = "message larger than max"
"""Part of gRPC's message about the limit of either side."""


class GrpcTransport:
    """A channel to one address."""

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None, headers: Mapping[str, str]):
        """Opens the channel.

        Args:
            address: host:port, or any target that gRPC resolves.
            credentials: for TLS; with None, the channel is plain text.
            headers: metadata of every request.

        Raises:
            ValueError: the address is an HTTP URL, or a header is not one printable line.
        """
        if address.startswith(("http://", "https://")):
            raise ValueError(f"{address!r} is an HTTP URL: gRPC takes host:port, e.g. {urlsplit(address).netloc!r}")
        require_headers(headers)
        options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.lb_policy_name", "round_robin"),
            # Else a channel that lost its server waits up to two minutes to reconnect, and no retry before reaches it.
            ("grpc.initial_reconnect_backoff_ms", _RECONNECT_MS // 10),
            ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
        ]
        if credentials:
            self._channel = grpc.secure_channel(address, credentials, options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._metadata = [(name.lower(), value) for name, value in headers.items()]  # gRPC takes no other case
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_spec(target), metadata_field=[SIGNATURE_DEF]
        )
        response = self._called(self._stub.GetModelMetadata, request, timeout)
        found = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(found)
        return found.signature_def

    def predict(
        self, target: Target, signature: str, inputs: Mapping[str, np.ndarray], timeout: float
    ) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=_spec(target))
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(to_proto(value))
        response = self._called(self._stub.Predict, request, timeout)
        return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}

    def close(self) -> None:
        self._channel.close()

    def _called(self, method: Callable[..., Any], request: Any, timeout: float) -> Any:
        try:
            return method(request, timeout=timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            details = error.details() or ""
            raise RetrievalError(error.code(), details, is_too_large=_TOO_LARGE in details) from None


def _spec(target: Target) -> Any:
    spec = model_pb2.ModelSpec(name=target.model)
    if target.version is not None:
        spec.version.value = target.version
    elif target.label is not None:
        spec.version_label = target.label
    return spec
