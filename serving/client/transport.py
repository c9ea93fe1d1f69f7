"""What the two transports of requests have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

Code = grpc.StatusCode

_TRANSIENT = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.CANCELLED})
"""Overload, and a server that is stopping or starting. TF Serving calls a full queue UNAVAILABLE, `dnc serve`
RESOURCE_EXHAUSTED; and gRPC answers CANCELLED to requests that a server has not taken up when it stops or has too many.
Predictions change nothing, so asking again is safe."""


class RetrievalError(Exception):
    """The server did not answer.

    Attributes:
        code: gRPC's status code; REST's statuses are mapped to it.
        message: the server's.
        is_transient: whether asking again may help.
    """

    def __init__(self, code: grpc.StatusCode, message: str, *, is_too_large: bool = False):
        """`is_too_large`: the request is larger than the server accepts, for which gRPC uses the code of overload."""
        super().__init__(f"{code.name}: {message}")
        self.is_transient = code in _TRANSIENT and not is_too_large
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Target:
    """What to ask: a model, in a version named by number or label, or in the server's default."""

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(f"name a version or a label, not both: got {self.version} and {self.label!r}")
        if "" in (self.model, self.label):
            raise ValueError("the name of a model or a label must not be empty; got ''")


def require_headers(headers: Mapping[str, str]) -> None:
    """Raises ValueError if a header cannot be sent, which would otherwise take all retries to find out."""
    for name, value in headers.items():
        if not (name + value).isprintable():
            raise ValueError(f"the header {name!r} must be one printable line")  # its value may be a secret


class Transport(Protocol):
    """One way to reach a server. Every call may raise RetrievalError; `timeout` is in seconds."""

    def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
        """SignatureDefs by name."""

    def predict(
        self, target: Target, signature: str, inputs: Mapping[str, np.ndarray], timeout: float
    ) -> dict[str, np.ndarray]:
        """Outputs by name; strings are bytes, and numbers may have a different width than the graph's."""

    def close(self) -> None:
        """Ends the connections."""
