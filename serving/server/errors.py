"""Request errors, with gRPC's codes; REST uses the HTTP status that TF Serving maps each code to."""

from __future__ import annotations

import grpc
import tensorflow as tf

Code = grpc.StatusCode

HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""The mapping of `ToHTTPStatusCode` in TF Serving's model_servers/http_server.cc."""

_CODES = {code.value[0]: code for code in Code}
_MAX_MESSAGE_BYTES = 1024


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        code: gRPC's status code.
        message: for the client: what is wrong, with the received value, and the remedy.
        http_status: REST's.
    """

    def __init__(self, code: grpc.StatusCode, message: str, http_status: int | None = None):
        """`http_status`: given if HTTP has a more specific status than that of `HTTP_STATUS` for the code."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.http_status = HTTP_STATUS[code] if http_status is None else http_status


def invalid(message: str) -> RequestError:
    """An INVALID_ARGUMENT error."""
    return RequestError(Code.INVALID_ARGUMENT, message)


def shortened(message: str) -> str:
    """Truncated as in TF Serving (`grpc_status_util.cc`), over REST, too: it may quote megabytes of the request.

    gRPC refuses to send more than a few kilobytes; JSON takes six bytes for a character, and a client that does not
    read its answers leaves them in memory.
    """
    written = message[: _MAX_MESSAGE_BYTES + 1].encode("utf-8", "surrogatepass")
    if len(written) <= _MAX_MESSAGE_BYTES:
        return message
    return written[:_MAX_MESSAGE_BYTES].decode(errors="ignore") + "...TRUNCATED"


def from_tensorflow(error: tf.errors.OpError) -> RequestError:
    """Converts an error of TensorFlow, whose codes are gRPC's."""
    return RequestError(_CODES.get(error.error_code, Code.UNKNOWN), error.message)
