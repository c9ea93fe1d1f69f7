"""How requests travel: what the two transports have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np

Code = grpc.StatusCode

RETRIED = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED})
"""Overload, and a server that is going or coming. TF Serving calls a full queue UNAVAILABLE, `dnc serve`
RESOURCE_EXHAUSTED. Predictions change nothing, so asking again is safe."""


class RetrievalError(Exception):
    """The server did not answer.

    Attributes:
        code: gRPC's status code; REST's statuses are mapped to it.
        message: the server's.
    """

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Target:
    """Whom to ask: a model, and one of its versions by number or label, or the server's default."""

    model: str
    version: int | None = None
    label: str | None = None

    def __post_init__(self) -> None:
        if self.version is not None and self.label is not None:
            raise ValueError(f"name a version or a label, not both: got {self.version} and {self.label!r}")


class Transport(Protocol):
    """One way to reach a server. Every call raises RetrievalError, and takes its time in seconds."""

    def signatures(self, target: Target, timeout: float) -> Mapping[str, Any]:
        """SignatureDefs by name."""

    def predict(
        self, target: Target, signature: str, inputs: Mapping[str, np.ndarray], timeout: float
    ) -> dict[str, np.ndarray]:
        """Outputs by name; strings are bytes, and numbers may have another width than the graph's."""

    def close(self) -> None:
        """Ends the connections."""
