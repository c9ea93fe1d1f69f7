"""gRPC: TF Serving's PredictionService and ModelService, and gRPC's standard health check."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from google.protobuf import wrappers_pb2
from google.protobuf.message import DecodeError
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    predict_pb2,
)

from contracts.config import ServerConfig
from contracts.config.serving import MOST_OF_GRPC
from serving.server.errors import Code, RequestError, invalid, shortened
from serving.server.metrics import Metrics
from serving.server.model_info import model_metadata, model_status, resolved
from serving.server.models import Models, signature_name
from serving.server.ports import address, cannot_listen
from serving.server.reload_labels import reload_labels
from serving.signature_spec import SignatureSpec
from serving.tensors import to_array, to_value_proto

log = logging.getLogger(__name__)
_Method = Callable[[Any, float | None], Awaitable[Any]]
"""A request and the seconds left until the client's deadline -> the response; raises RequestError."""
_MODEL_SERVICE = "tensorflow.serving.ModelService"
_SERVING, _NOT_SERVING = 1, 2
"""Values of grpc.health.v1's ServingStatus."""
_QUEUES_UNREAD, _LEAST_UNREAD = 4, 2**15
"""How many full queues of requests, and at least how many requests, may arrive while the loop is busy: gRPC answers
any more itself, with CANCELLED and no reason, whereas the queue says RESOURCE_EXHAUSTED. gRPC's default limit is
1,000."""


class GrpcApi:
    """The methods. Requests come as bytes, so that a malformed proto is the client's error and not ours."""

    def __init__(self, models: Models, metrics: Metrics, max_elements: int):
        """`max_elements`: the most elements that a request's tensor may have."""
        self._models = models
        self._metrics = metrics
        self._max_elements = max_elements

    def handlers(self) -> list[grpc.GenericRpcHandler]:
        """A handler for each service; the methods left out, those for Examples, are UNIMPLEMENTED."""
        services: dict[str, dict[str, tuple[Any, _Method]]] = {
            "tensorflow.serving.PredictionService": {
                "Predict": (predict_pb2.PredictRequest, self._measured_predict),
                "GetModelMetadata": (get_model_metadata_pb2.GetModelMetadataRequest, self._metadata),
            },
            _MODEL_SERVICE: {
                "GetModelStatus": (get_model_status_pb2.GetModelStatusRequest, self._status),
                "HandleReloadConfigRequest": (model_management_pb2.ReloadConfigRequest, self._reload),
            },
            # Its messages are one string and one enum; these wrappers are the same on the wire.
            "grpc.health.v1.Health": {"Check": (wrappers_pb2.StringValue, self._health)},
        }
        return [
            grpc.method_handlers_generic_handler(
                service,
                {name: grpc.unary_unary_rpc_method_handler(_served(*method)) for name, method in methods.items()},
            )
            for service, methods in services.items()
        ]

    async def _measured_predict(self, request: Any, seconds_left: float | None) -> Any:
        with self._metrics.measured(request.model_spec.name, "Predict", "GRPC"):
            return await self._predict(request, seconds_left)

    async def _predict(self, request: Any, seconds_left: float | None) -> Any:
        spec = request.model_spec
        version = self._models.find(spec)
        signature = version.signature(signature_name(spec))
        _require_outputs(request.output_filter, signature)
        try:
            signature.require_known(request.inputs)  # before any is made: a few bytes can stand for many values
            inputs = {name: to_array(name, tensor, self._max_elements) for name, tensor in request.inputs.items()}
        except ValueError as error:
            raise invalid(str(error)) from None
        outputs = await self._models.predict(version, signature, inputs, seconds_left)
        response = predict_pb2.PredictResponse(model_spec=resolved(spec.name, version.number, signature.name))
        for name in request.output_filter or outputs:
            response.outputs[name].CopyFrom(to_value_proto(outputs[name]))
        return response

    async def _metadata(self, request: Any, seconds_left: float | None) -> Any:
        return model_metadata(self._models, request)

    async def _status(self, request: Any, seconds_left: float | None) -> Any:
        return model_status(self._models, request)

    async def _reload(self, request: Any, seconds_left: float | None) -> Any:
        # A load may take longer than the caller waits: if every call started it anew, it would never finish.
        await asyncio.shield(reload_labels(self._models, request.config))
        return model_management_pb2.ReloadConfigResponse()

    async def _health(self, request: Any, seconds_left: float | None) -> Any:
        """Whether the model that the request names has a version that answers; if it names none, whether all have."""
        try:
            if request.value:
                self._models.model(model_pb2.ModelSpec(name=request.value)).require()
            else:
                self._models.require_all()
        except ValueError:
            return wrappers_pb2.Int32Value(value=_NOT_SERVING)
        return wrappers_pb2.Int32Value(value=_SERVING)


async def start_grpc(models: Models, metrics: Metrics, config: ServerConfig) -> tuple[Any, int]:
    """Starts a grpc.aio server; returns it and its port.

    Raises:
        ValueError: the port cannot be bound.
    """
    logging.getLogger("grpc._cython.cygrpc").addFilter(_client_was_there)
    queues = _QUEUES_UNREAD * config.max_batch_size * config.max_enqueued_batches
    unread = min(max(_LEAST_UNREAD, queues), MOST_OF_GRPC)
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", config.max_request_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", config.max_connections),
            ("grpc.server.max_pending_requests", unread),
            ("grpc.server.max_pending_requests_hard_limit", unread),
        ]
    )
    server.add_generic_rpc_handlers(GrpcApi(models, metrics, config.max_batch_elements).handlers())
    try:
        bound = server.add_insecure_port(address(config, config.grpc_port))
    except RuntimeError:  # which does not say why
        raise cannot_listen(config, "grpc_port", "in use, or not on this machine") from None
    await server.start()
    return server, bound


async def stop_grpc(server: Any, port: int, models: Models, config: ServerConfig) -> None:
    """Answers the requests that have arrived, then stops.

    When gRPC stops, it cancels the requests that the loop has not picked up, and a busy loop picks up few
    (https://github.com/grpc/grpc/issues/41785). They are picked up in order of arrival, so an answer to a request of
    our own, whatever it says, means that all earlier ones have been picked up. No batch runs meanwhile: with no answers
    to write, the loop does little else.

    Args:
        port: where `server` listens.
    """
    async with models.workers.at_rest():
        await _answer_of(address(config, port), config.request_timeout_seconds)
        stopped = asyncio.create_task(server.stop(config.request_timeout_seconds))
        await asyncio.sleep(0)  # from here on, no more come
    await stopped


async def _answer_of(target: str, timeout_seconds: float) -> None:
    """Returns when a server on this machine answers, or when the time is up."""
    async with grpc.aio.insecure_channel(target, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(f"/{_MODEL_SERVICE}/GetModelStatus")
        with contextlib.suppress(grpc.aio.AioRpcError):
            await ask(b"", timeout=timeout_seconds)


def _require_outputs(wanted: Sequence[str], signature: SignatureSpec) -> None:
    """Raises RequestError if an output is unknown or, as in TF Serving, named twice: a message may name millions."""
    distinct = set(wanted)
    for name in distinct:
        if name not in signature.outputs:
            raise invalid(f"{signature.name} has no output {name!r}; it has {', '.join(signature.outputs)}")
    if len(distinct) < len(wanted):
        raise invalid(f"output_filter must name each output only once; got {len(wanted)} names of {sorted(distinct)}")


def _client_was_there(record: logging.LogRecord) -> bool:
    """False for gRPC's traceback of an answer whose client has just left, as many do under overload."""
    return not record.getMessage().startswith("ExecuteBatchError")


def _served(message: Any, method: _Method) -> Callable[[bytes, grpc.aio.ServicerContext], Awaitable[bytes]]:
    async def answer(body: bytes, seconds_left: float | None) -> bytes:
        try:
            request = message.FromString(body)
        except DecodeError:
            raise invalid(f"the message is not a {message.DESCRIPTOR.full_name}") from None
        response = await method(request, seconds_left)
        serialized: bytes = response.SerializeToString()
        return serialized

    async def handler(body: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return await answer(body, context.time_remaining())
        except RequestError as error:
            refusal = error.code, shortened(error.message)
        except Exception:
            log.exception("a request failed")
            refusal = Code.INTERNAL, "internal error; see the server's log"
        try:
            await context.abort(*refusal)
        finally:  # the call keeps the error of `abort`, which keeps this frame: it must hold neither request nor call
            del body, context
        raise AssertionError("abort has raised")

    return handler
