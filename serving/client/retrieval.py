"""The client that applications call: histories in, candidates out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import tenacity
from grpc import ChannelCredentials

from contracts.names import Request, Response, Signature
from serving.client.grpc_transport import GrpcTransport
from serving.client.rest_transport import RestTransport
from serving.client.transport import Code, RetrievalError, Target, Transport
from serving.request_values import given_inputs, request_arrays, require_ids
from serving.signature_spec import Arrays, SignatureSpec

DEFAULT_TIMEOUT = 5.0
"""Seconds that a call may take, its retries included; infinite for no limit."""
_LONGEST_TRY = 86_400.0
"""Seconds: gRPC takes infinity for a deadline that has passed, and a lock does not accept it either."""
_LEAST_TRY = 0.05
"""Seconds that another try needs: a shorter one would run out of time, and hide what the server said before."""
_MARKS_SECONDS = 60.0
"""How long metadata determine whether marks of context are read. No refusal reveals a change: a version that has begun
to read them can be asked without, and TF Serving's REST ignores inputs that a version does not have."""
_REFUSED_INPUTS = (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION)
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Candidates:
    """One user's candidates, in the order of the merge.

    Attributes:
        item_ids: the items.
        scores: float32 [len(item_ids)], of the items; descending, except in a list by `round_robin`.
        group_ids: int32 [len(item_ids)].
    """

    item_ids: list[str]
    scores: np.ndarray
    group_ids: np.ndarray


class RetrievalClient:
    """Asks one model of `dnc serve` or TF Serving. Use it as a context manager, or `close` it.

    It sends every input of the signature with a row per user, filling in the defaults from the servable's
    metadata for what the caller leaves out: TF Serving's REST requires all inputs, and its batches require
    rows in all of them.

    Overloaded and unreachable servers are asked again, with growing pauses, until the time is up.

    Threads may share a client over gRPC or REST, and over REST so may forked processes; `close` it when all are done.
    """

    def __init__(self, transport: Transport, target: Target, timeout: float = DEFAULT_TIMEOUT):
        """Prepares to ask `target`; nothing is sent yet. Use `grpc` or `rest` in most cases."""
        self._transport = transport
        self._target = target
        self._timeout = timeout
        self._specs: dict[str, SignatureSpec] = {}
        self._read_at: dict[str, float] = {}

    @classmethod
    def grpc(
        cls,
        address: str,
        model: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        version: int | None = None,
        label: str | None = None,
        credentials: ChannelCredentials | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RetrievalClient:
        """Creates a client over gRPC of the model's `version`, the one with a `label`, or the server's choice.

        The address is host:port. `credentials`, such as `grpc.ssl_channel_credentials()`, turn on TLS; `headers` go
        with every request.
        """
        return cls(GrpcTransport(address, credentials, headers or {}), Target(model, version, label), timeout)

    @classmethod
    def rest(
        cls,
        url: str,
        model: str,
        *,
        timeout: float = DEFAULT_TIMEOUT,
        version: int | None = None,
        label: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> RetrievalClient:
        """Creates a client over REST of the model's `version`, the one with a `label`, or the server's choice.

        The URL is http://host:port or https; `headers` go with every request.
        """
        return cls(RestTransport(url, headers or {}), Target(model, version, label), timeout)

    def __enter__(self) -> RetrievalClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connections."""
        self._transport.close()

    def recommend(
        self, histories: Sequence[Sequence[str]], *, timeout: float | None = None, **inputs: Any
    ) -> list[Candidates]:
        """Candidates for each user.

        Args:
            histories: item ids, oldest first, a list per user; `history_is_context`, if given, is as long. A model that
                reads no context is asked without the marked events.
            timeout: seconds, retries included; default: the client's.
            inputs: any other input of serving_default by its name (see `contracts.names.Request`):
                one value for all users, or a value per user; for inputs with several values per user,
                such as `groups`, a list for all, or a list per user. None is the same as leaving it out.

        Raises:
            ValueError: the servable has no such input, or the value does not fit it.
            RetrievalError: the server's refusal, or no answer in time.
        """
        given = given_inputs(histories, inputs)
        outputs = self._call(Signature.SERVING_DEFAULT, given, len(given[Request.HISTORY]), timeout)
        fields = (outputs[name] for name in (Response.ITEM_IDS, Response.SCORES, Response.GROUP_IDS))
        return [_candidates(*row) for row in zip(*fields, strict=True)]

    def query_embedding(
        self, histories: Sequence[Sequence[str]], *, timeout: float | None = None, **inputs: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [num_users, num_groups, dim] and p(group | user) [num_users, num_groups].

        Arguments and errors are those of `recommend`.
        """
        given = given_inputs(histories, inputs)
        outputs = self._call(Signature.QUERY_EMBEDDING, given, len(given[Request.HISTORY]), timeout)
        return outputs[Response.EMBEDDINGS].astype(np.float32), outputs[Response.INTENT].astype(np.float32)

    def candidate_embedding(
        self, item_ids: Sequence[str], *, timeout: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings float32 [num_items, dim] and group_ids int32 [num_items], -1 = unknown.

        Raises:
            ValueError: `item_ids` is a single string, whose letters would each be an id.
            RetrievalError: as `recommend`.
        """
        require_ids(item_ids)
        outputs = self._call(Signature.CANDIDATE_EMBEDDING, {Request.ITEM_IDS: item_ids}, len(item_ids), timeout)
        return outputs[Response.EMBEDDINGS].astype(np.float32), outputs[Response.GROUP_IDS].astype(np.int32)

    def wait_until_ready(self, timeout: float) -> None:
        """Returns once the model can be asked.

        Raises:
            RetrievalError: it cannot within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        ready = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(RetrievalError),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_before_delay(timeout),
            reraise=True,
        )
        ready(lambda: self._transport.signatures(self._target, min(_left(deadline), self._timeout)))

    def _call(
        self, signature: str, given: Mapping[str, Any], rows: int, timeout: float | None
    ) -> dict[str, np.ndarray]:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        spec, is_fresh = self._spec(signature, given, deadline)
        try:
            return self._predict(spec, request_arrays(spec, given, rows), deadline)
        except (RetrievalError, ValueError) as error:
            # A new version may take other inputs than the one whose metadata is remembered.
            if is_fresh or (isinstance(error, RetrievalError) and error.code not in _REFUSED_INPUTS):
                raise
            self._specs.pop(signature, None)  # another thread may have been faster
        spec, _ = self._spec(signature, given, deadline)
        return self._predict(spec, request_arrays(spec, given, rows), deadline)

    def _spec(self, signature: str, given: Mapping[str, Any], deadline: float) -> tuple[SignatureSpec, bool]:
        """Returns the signature, as remembered or newly read from the metadata, and whether it is new."""
        known = self._specs.get(signature)
        has_marks = given.get(Request.HISTORY_IS_CONTEXT) is not None
        if known and (not has_marks or time.monotonic() < self._read_at[signature] + _MARKS_SECONDS):
            return known, False
        found = _retried(lambda left: self._transport.signatures(self._target, left), deadline)
        if signature not in found:
            raise ValueError(f"{self._target.model} has no signature {signature!r}; it has {sorted(found)}")
        self._read_at[signature] = time.monotonic()
        spec = self._specs[signature] = SignatureSpec(signature, found[signature])
        return spec, True

    def _predict(self, spec: SignatureSpec, inputs: Arrays, deadline: float) -> dict[str, np.ndarray]:
        if not all(map(len, inputs.values())):
            return spec.no_rows()  # not the server's: in JSON, lists without rows say nothing about their columns
        whole, _ = spec.complete(inputs)
        return _retried(lambda left: self._transport.predict(self._target, spec.name, whole, left), deadline)


def _retried(call: Callable[[float], _Answer], deadline: float) -> _Answer:
    """Calls `call` with the seconds left, again and again while the server is overloaded or unreachable."""
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, RetrievalError) and error.is_transient),
        wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
        stop=lambda state: time.monotonic() + state.upcoming_sleep >= deadline - _LEAST_TRY,
        reraise=True,
    )
    return retrying(lambda: call(_left(deadline)))


def _left(deadline: float) -> float:
    """The seconds left, made a valid timeout: more than 0, and finite."""
    return min(max(deadline - time.monotonic(), 1e-3), _LONGEST_TRY)


def _candidates(item_ids: np.ndarray, scores: np.ndarray, group_ids: np.ndarray) -> Candidates:
    present = item_ids != b""
    return Candidates(
        [item.decode() for item in item_ids[present]],
        scores[present].astype(np.float32),
        group_ids[present].astype(np.int32),
    )
