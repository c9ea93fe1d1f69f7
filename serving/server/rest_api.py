"""REST, as TF Serving has it:

GET  /v1/models/NAME[/versions/N|/labels/L]             states
GET  /v1/models/NAME[/versions/N|/labels/L]/metadata    signatures
POST /v1/models/NAME[/versions/N|/labels/L]:predict     a prediction
GET  /monitoring/prometheus/metrics
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from aiohttp import web
from aiohttp.http import HttpProcessingError
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2

from contracts.config import ServerConfig
from contracts.names import SIGNATURE_DEF
from contracts.serving_labels import MAX_VERSION
from serving.server.compression import inflated
from serving.server.connections import Connections
from serving.server.errors import HTTP_STATUS, Code, RequestError, invalid, shortened
from serving.server.json_tensors import parse_body, request_arrays, requested_signature, response_body
from serving.server.metrics import CONTENT_TYPE, Metrics
from serving.server.model_info import model_metadata, model_status
from serving.server.models import Models
from serving.server.ports import bound_socket

log = logging.getLogger(__name__)
_JSON = "application/json"
METRICS_PATH = "/monitoring/prometheus/metrics"
_ORIGIN = re.compile(r"^https?://[^/?]*", re.IGNORECASE)
"""What precedes the path if a request has the whole URL, as some proxies send it."""
_ROOT = "/v1/"
_PATH = re.compile(
    r"(?i:/v1/models/)(?P<name>[^/:]+)(?:(?i:/versions/)(?P<version>[0-9]+)|(?i:/labels/)(?P<label>[^/:]+))?"
    r"(?P<what>:predict|/metadata|)"
)
"""As in TF Serving: matches the path before it is unquoted, with anything after a "?", which no request may have."""
_DRAIN_SECONDS = 0.5
"""Time for busy clients to send one more request over an open connection; its answer tells them to leave it."""
_ARRIVAL_SECONDS = 0.01
"""Time between two checks of whether all bodies have arrived."""
_BACKLOG = 128
"""Connections that the system may hold before the loop accepts them."""
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RestApi:
    """The handlers."""

    def __init__(self, models: Models, metrics: Metrics, config: ServerConfig):
        self._models = models
        self._metrics = metrics
        self._config = config
        self._is_draining = False
        self._arriving = 0
        self.connections = Connections(config.max_connections)

    async def drain(self) -> None:
        """Makes every answer tell its client to ask elsewhere next, and returns when no body is still arriving.

        aiohttp reads nothing more from connections that it has been told to close.
        """
        self._is_draining = True
        await asyncio.sleep(_DRAIN_SECONDS)
        while self._arriving:
            await asyncio.sleep(_ARRIVAL_SECONDS)

    def application(self) -> web.Application:
        """The aiohttp application."""
        middlewares = [self._end_connections, _errors_as_json]
        app = web.Application(client_max_size=self._config.max_request_bytes, middlewares=middlewares)
        app.router.add_get(METRICS_PATH, self._page)
        app.router.add_route("*", "/{path:.*}", self._dispatch)
        return app

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.page(), headers={"Content-Type": CONTENT_TYPE})

    @web.middleware
    async def _end_connections(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        connection = self.connections.begin(request)
        try:
            response = await handler(request)
        finally:
            connection.end()
        if self._is_draining or connection.is_half_closed:
            response.force_close()
        return response

    async def _dispatch(self, request: web.Request) -> web.Response:
        path = _ORIGIN.sub("", request.raw_path)
        if not path.lower().startswith(_ROOT):
            raise RequestError(Code.NOT_FOUND, f"{request.method} {path}: the API is under {_ROOT}models")
        matched = _PATH.fullmatch(path)
        method = "POST" if matched and matched["what"] == ":predict" else "GET"
        if not matched or request.method != method:
            raise invalid(f"Malformed request: {request.method} {path}")
        spec = _model_spec(matched)
        if matched["what"] == ":predict":
            with self._metrics.measured(spec.name, "predict", "REST"):
                body = await self._predict(spec, request)
            return web.Response(body=body, content_type=_JSON)
        if matched["what"] == "/metadata":
            asked = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[SIGNATURE_DEF])
            answer = _fields(model_metadata(self._models, asked))
            del answer["metadata"][SIGNATURE_DEF]["@type"]  # which TF Serving does not write
        else:
            answer = _fields(model_status(self._models, get_model_status_pb2.GetModelStatusRequest(model_spec=spec)))
        return _json(answer)

    async def _predict(self, spec: Any, request: web.Request) -> bytes:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.request_timeout_seconds
        self._arriving += 1
        try:
            content = await _read(request, self._config)
        finally:
            self._arriving -= 1
        version = self._models.find(spec)  # not before the body has come: it could be drained by then
        most = self._config.max_batch_elements
        body = parse_body(content, most)
        signature = version.signature(requested_signature(body))
        inputs, form = request_arrays(body, signature, most)
        outputs = await self._models.predict(version, signature, inputs, deadline - loop.time())
        return response_body(outputs, form)


def _fields(message: Any) -> dict[str, Any]:
    """A message as TF Serving writes it: with the proto's names, and with fields that are 0 or empty."""
    found: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _model_spec(matched: re.Match[str]) -> Any:
    spec = model_pb2.ModelSpec(name=_unquoted(matched["name"]))
    if matched["version"]:
        number = int(matched["version"][:20])
        if number > MAX_VERSION:
            raise invalid(f"Malformed request: version {matched['version'][:30]} is not a 64-bit number")
        spec.version.value = number
    elif matched["label"]:
        spec.version_label = _unquoted(matched["label"])
    return spec


def _unquoted(part: str) -> str:
    """Unquotes part of a path; aiohttp keeps bytes that are not UTF-8 as what Python calls surrogates."""
    return unquote_to_bytes(part.encode("utf-8", "surrogateescape")).decode("utf-8", "replace")


async def _read(request: web.Request, config: ServerConfig) -> bytes:
    try:
        content = await asyncio.wait_for(request.read(), config.request_timeout_seconds)
    except BaseException as error:
        error.__traceback__ = None  # aiohttp and asyncio keep the error; its frames hold what came of the body
        raise _unread(error, config) from None
    coding = request.headers.get("Content-Encoding")
    return await asyncio.to_thread(inflated, content, coding, config.max_request_bytes) if coding else content


def _unread(error: BaseException, config: ServerConfig) -> BaseException:
    """What to raise for an error that ended the reading of a body."""
    match error:
        case web.HTTPRequestEntityTooLarge():
            message = f"{error.text} Set server.max_request_bytes to allow more"  # the text is a sentence
            return RequestError(Code.RESOURCE_EXHAUSTED, message, error.status)
        case web.RequestPayloadError():
            return invalid(f"the body cannot be read: {error}")
        case ConnectionError():
            return RequestError(Code.CANCELLED, "the client disconnected before the body had arrived")
        case asyncio.TimeoutError():
            message = f"the body did not arrive within {config.request_timeout_seconds} s"
            return RequestError(Code.DEADLINE_EXCEEDED, message)
        case _:
            return error


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Answers every error as `{"error": "..."}` with the status that TF Serving gives it."""
    try:
        return await handler(request)
    except RequestError as error:
        return _error(error.http_status, error.message)
    except web.HTTPException as error:
        return _error(error.status, error.reason)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return _error(HTTP_STATUS[Code.INTERNAL], "internal error; see the server's log")


def _error(status: int, message: str) -> web.Response:
    return _json({"error": shortened(message)}, status)


def _json(answer: Any, status: int = 200) -> web.Response:
    """A response without a charset, which neither JSON nor TF Serving's answer has."""
    return web.Response(status=status, body=json.dumps(answer, indent=2).encode(), content_type=_JSON)


def _is_ours(record: logging.LogRecord) -> bool:
    """False for aiohttp's traceback of input that is not HTTP, of which a port scanner sends as much as it likes.

    Also false for a body that ends too early, whose request is refused like any other.
    """
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | web.RequestPayloadError))


@dataclass(frozen=True)
class RestServer:
    """A started server."""

    api: RestApi
    runner: web.AppRunner
    listener: asyncio.Server
    port: int
    watch: asyncio.Task[None]

    async def stop(self) -> None:
        """Accepts no new connections, and closes each open one after its next answer, or if it has been idle."""
        self.listener.close()
        await self.api.drain()
        self.watch.cancel()
        await self.runner.cleanup()


async def start_rest(models: Models, metrics: Metrics, config: ServerConfig) -> RestServer:
    """Starts to listen.

    Raises:
        ValueError: the port cannot be bound.
    """
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    api = RestApi(models, metrics, config)
    bound = bound_socket(config, "rest_port")
    runner = web.AppRunner(api.application(), handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None  # since `setup`
    accept = partial(api.connections.accept, runner.server)
    listener = await asyncio.get_running_loop().create_server(accept, sock=bound, backlog=_BACKLOG)
    watch = asyncio.create_task(api.connections.end_silent(runner.server))
    return RestServer(api, runner, listener, bound.getsockname()[1], watch)
