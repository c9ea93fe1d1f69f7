"""One loaded version of a servable, and the requests that it is answering."""

from __future__ import annotations

import asyncio
import ctypes
import gc
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf

from contracts.config import ServerConfig
from serving.servable_session import load_version, new_session
from serving.server.batcher import Batcher, Workers
from serving.server.errors import Code, RequestError, from_tensorflow, invalid
from serving.server.metrics import Metrics
from serving.server.splitting import split
from serving.signature_spec import Arrays, SignatureSpec
from serving.warmup import WARMUP_FILE, read_warmup

_MAY_PASS = (
    OSError,
    MemoryError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
    # What TensorFlow makes of a file that it cannot read: EIO, ESTALE, ETIMEDOUT, EACCES.
    tf.errors.UnknownError,
    tf.errors.AbortedError,
    tf.errors.DeadlineExceededError,
    tf.errors.PermissionDeniedError,
)
_CODES_THAT_MAY_PASS = (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE)
"""Codes of a warm-up request's error that may pass."""


class LoadError(ValueError):
    """A version cannot be served; the message says why.

    Attributes:
        may_pass: whether trying again may help even if its files stay the same.
    """

    def __init__(self, path: Path, cause: Exception):
        super().__init__(f"{path} cannot be served: {cause}")
        warmup = isinstance(cause, RequestError) and cause.code in _CODES_THAT_MAY_PASS
        self.may_pass = warmup or isinstance(cause, _MAY_PASS)


class LoadedServable:
    """A version in its own session; closing it frees the memory."""

    def __init__(self, path: Path, num_threads: int):
        """Loads a version directory and replays its warm-up requests.

        Raises:
            LoadError: there is no servable, or it cannot be served.
        """
        self._session = new_session(num_threads)
        self._default_widths: dict[str, int] = {}
        try:
            self.definitions = dict(load_version(self._session, path))
            self.signatures = {
                name: SignatureSpec(name, definition)
                for name, definition in self.definitions.items()
                if definition.inputs and definition.outputs
            }
            self._calls = {
                name: self._session.make_callable(list(spec.outputs.values()), [i.tensor for i in spec.inputs.values()])
                for name, spec in self.signatures.items()
            }
            for signature, inputs in read_warmup(path) if (path / WARMUP_FILE).exists() else ():
                self.run(signature, [self.signatures[signature].complete(inputs)[0]])
            self._default_widths |= {
                name: self._default_width(spec) for name, spec in self.signatures.items() if spec.lists
            }
        except Exception as error:  # a graph from another release may fail in any way
            self._session.close()
            raise LoadError(path, error) from error

    def run(self, signature: str, requests: Sequence[Arrays]) -> list[Arrays]:
        """Answers several completed requests as one batch.

        Raises:
            RequestError: with the code that TensorFlow gives.
        """
        spec = self.signatures[signature]
        batch = spec.join(requests)
        try:
            values = self._calls[signature](*batch.values())
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from None
        sizes = [len(next(iter(request.values()))) for request in requests]
        if any(not value.ndim or len(value) != sum(sizes) for value in values):
            shapes = {name: list(value.shape) for name, value in zip(spec.outputs, values, strict=True)}
            raise RequestError(Code.INTERNAL, f"{signature} returned outputs without one row per query: {shapes}")
        return split(spec, requests, values, self._default_widths.get(signature, 0))

    def _default_width(self, spec: SignatureSpec) -> int:
        """List length for a request that leaves everything out: the graph knows it, but does not declare it."""
        [answer] = self.run(spec.name, [spec.complete({})[0]])
        return int(answer[spec.lists[0]].shape[1])

    def close(self) -> None:
        """Frees the memory: a graph's Python objects reference each other, and malloc keeps what TensorFlow frees."""
        self._calls = {}
        self._session.close()
        del self._session
        gc.collect()
        _trim_heap()


def _trim_heap() -> None:
    """Gives freed memory back to the system, if the C library can do so."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


class Version:
    """A version that takes requests, until it is drained."""

    def __init__(self, number: int, servable: LoadedServable, config: ServerConfig, workers: Workers, metrics: Metrics):
        """Starts the queues; needs a running loop."""
        self.number = number
        self.definitions = servable.definitions
        self._servable = servable
        self._in_flight = 0
        self._batchers = {
            name: Batcher(partial(servable.run, name), config, workers, metrics) for name in servable.signatures
        }

    def signature(self, name: str) -> SignatureSpec:
        """The signature of that name.

        Raises:
            RequestError: FAILED_PRECONDITION, as in TF Serving, if there is none.
        """
        if name not in self._servable.signatures:
            known = ", ".join(sorted(self._servable.signatures))
            raise RequestError(
                Code.FAILED_PRECONDITION, f"version {self.number} has no signature {name!r}; it has {known}"
            )
        return self._servable.signatures[name]

    async def predict(self, signature: SignatureSpec, given: Mapping[str, np.ndarray], deadline: float) -> Arrays:
        """All outputs for a request's inputs; `deadline` is in the loop's time.

        Raises:
            RequestError: the request is wrong, too late, or one too many.
        """
        try:
            inputs, rows = signature.complete(given)
        except ValueError as error:
            raise invalid(str(error)) from None
        self._in_flight += 1
        try:
            return await self._batchers[signature.name].submit(inputs, rows, deadline)
        finally:
            self._in_flight -= 1

    async def drain(self) -> None:
        """Waits for its pending requests, then frees the memory. No new ones may come."""
        while self._in_flight:
            await asyncio.sleep(0.01)
        for batcher in self._batchers.values():
            await batcher.close()
        await asyncio.get_running_loop().run_in_executor(None, self._servable.close)
