"""Requests over REST, in the columnar form."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np
import requests
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2
from urllib3.exceptions import HTTPError, TimeoutError

from contracts.names import SIGNATURE_DEF
from serving.client.transport import Code, RetrievalError, Target, require_headers

_Answer = TypeVar("_Answer")
_TOO_LARGE = 413
_KEPT_CONNECTIONS = 1000
"""Connections kept open, for as many threads. By default requests keeps ten, and closes each further one after its
answer, with a warning in the application's log."""
_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    _TOO_LARGE: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    500: Code.INTERNAL,
    501: Code.UNIMPLEMENTED,
    502: Code.UNAVAILABLE,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
}


class RestTransport:
    """A session with one address."""

    def __init__(self, url: str, headers: Mapping[str, str]):
        """Prepares the session.

        Args:
            url: http://host:port, or https.
            headers: of every request.

        Raises:
            ValueError: the URL has another form, or a header is not one printable line.
        """
        require_headers(headers)
        if not _is_url(url):
            raise ValueError(f"{url!r} is not the URL of a REST API: it must be http://host:port or https://host:port")
        self._url = url.rstrip("/")
        self._headers = dict(headers)
        self._session, self._process = self._new_session(), os.getpid()

    def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
        answer = self._asked("GET", f"{_path(target)}/metadata", timeout)
        # Read as the map itself: TF Serving leaves out the "@type" by which protobuf knows what an Any holds.
        found = get_model_metadata_pb2.SignatureDefMap()
        try:
            json_format.ParseDict(answer.get("metadata", {}).get(SIGNATURE_DEF, {}), found, ignore_unknown_fields=True)
        except (json_format.ParseError, AttributeError, TypeError) as error:
            message = f"{self._url} answers with metadata that is not in TF Serving's form ({error}): check the URL"
            raise RetrievalError(Code.UNKNOWN, message) from None
        return found.signature_def

    def predict(
        self, target: Target, signature: str, inputs: Mapping[str, np.ndarray], timeout: float
    ) -> dict[str, np.ndarray]:
        body = {"signature_name": signature, "inputs": {name: _plain(value) for name, value in inputs.items()}}
        answer = self._asked("POST", f"{_path(target)}:predict", timeout, json.dumps(body))
        outputs = answer.get("outputs")
        if not isinstance(outputs, dict):
            message = f"{self._url} answers without outputs by name, so not in TF Serving's form: check the URL"
            raise RetrievalError(Code.UNKNOWN, message)
        return {name: _array(value) for name, value in outputs.items()}

    def close(self) -> None:
        self._session.close()

    def _asked(self, method: str, path: str, timeout: float, body: str | None = None) -> Any:
        try:
            status, content = _within(timeout, lambda: self._sent(method, self._url + path, body, timeout))
        except (requests.Timeout, TimeoutError, futures.TimeoutError):
            raise RetrievalError(Code.DEADLINE_EXCEEDED, f"no answer within {timeout:.3f} s") from None
        except (requests.RequestException, HTTPError) as error:
            raise RetrievalError(Code.UNAVAILABLE, str(error)) from None
        answer = _object(content)
        if status != requests.codes.ok or answer is None:
            # A proxy refuses with its own pages: the status, not the body, determines what may be asked again.
            said = answer or {"error": f"{self._url} answers with status {status} and no JSON object"}
            code = _CODES.get(status, Code.UNKNOWN)
            raise RetrievalError(code, said.get("error", ""), is_too_large=status == _TOO_LARGE)
        return answer

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.headers.update(self._headers)
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=_KEPT_CONNECTIONS))
        session.auth = lambda request: request  # else a line of ~/.netrc would replace a header
        return session

    def _sent(self, method: str, url: str, body: str | None, timeout: float) -> tuple[int, bytes]:
        deadline = time.monotonic() + timeout
        if self._process != os.getpid():  # forked: on a shared connection, each process would read the other's answers
            self._session, self._process = self._new_session(), os.getpid()
        with self._session.request(method, url, data=body, timeout=timeout, stream=True) as response:
            return response.status_code, _content(response, deadline)


def _within(timeout: float, call: Callable[[], _Answer]) -> _Answer:
    """Returns or raises what `call` does; raises futures.TimeoutError if it takes longer, and abandons it.

    A socket's timeout restarts with every address of a name and every byte of a header, and looking up a name has none,
    so the call runs in a thread, which the caller stops waiting for in time.
    """
    answer: futures.Future[_Answer] = futures.Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer.result(timeout)


def _is_url(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number
        return False


def _object(content: bytes) -> dict[str, Any] | None:
    """The JSON object; None for anything else."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _content(response: requests.Response, deadline: float) -> bytes:
    """Reads the body. A socket's timeout restarts with every byte, so the deadline is checked as they arrive."""
    parts = []
    while part := response.raw.read1(1 << 20, decode_content=True):
        parts.append(part)
        if time.monotonic() >= deadline:
            raise requests.Timeout
    return b"".join(parts)


def _path(target: Target) -> str:
    model = f"/v1/models/{quote(target.model, safe='')}"
    if target.version is not None:
        return f"{model}/versions/{target.version}"
    return model + (f"/labels/{quote(target.label, safe='')}" if target.label is not None else "")


def _plain(value: np.ndarray) -> Any:
    """Nested lists; bytes that are UTF-8 as strings, others in base64."""
    if value.dtype != object:
        return value.tolist()
    flat = np.empty(value.size, object)
    flat[:] = [_text(item) for item in value.ravel()]
    return flat.reshape(value.shape).tolist()


def _text(value: bytes) -> str | dict[str, str]:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _array(value: Any) -> np.ndarray:
    array = np.array(value)
    if array.dtype.kind != "U":
        return array
    flat = np.empty(array.size, object)
    flat[:] = [item.encode() for item in array.ravel().tolist()]
    return flat.reshape(array.shape)
