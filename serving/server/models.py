"""All models of a server: finds what requests name, and follows the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_serving.apis import get_model_status_pb2

from contracts.config import ServerConfig
from contracts.names import Signature
from serving.server.batcher import Workers
from serving.server.errors import Code, RequestError, invalid
from serving.server.metrics import Metrics
from serving.server.model import ServedModel
from serving.server.version import Version
from serving.signature_spec import Arrays, SignatureSpec

log = logging.getLogger(__name__)


class Models:
    """The served models by name. Use it as an async context manager, inside which it follows the disk.

    Attributes:
        workers: the threads that run the batches of all models.
    """

    def __init__(self, bases: Mapping[str, Path], config: ServerConfig, metrics: Metrics):
        """Prepares to serve each name's base path; needs a running loop."""
        self._config = config
        self._threads = ThreadPoolExecutor(config.num_batch_threads, thread_name_prefix="batch")
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="loader")
        self.workers = Workers(self._threads, config.num_batch_threads)
        self._models = {
            name: ServedModel(name, base, config, self.workers, self._loader, metrics) for name, base in bases.items()
        }
        self._polls: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Models:
        """Loads what is there, then polls."""
        try:
            await asyncio.gather(*(model.refresh() for model in self._models.values()))
        except BaseException:  # e.g. a signal
            await self.__aexit__()
            raise
        self._polls = [asyncio.create_task(self._follow(model)) for model in self._models.values()]
        return self

    async def __aexit__(self, *error: object) -> None:
        """Drains every version. An unfinished load is left to itself: a thread cannot be stopped."""
        for poll in self._polls:
            poll.cancel()
        for model in self._models.values():
            await model.close()
        self._threads.shutdown()
        self._loader.shutdown(wait=False, cancel_futures=True)

    def require_all(self) -> None:
        """Raises ValueError if a model has no version that answers."""
        for model in self._models.values():
            model.require()

    def find(self, spec: Any) -> Version:
        """The version that a ModelSpec names.

        Raises:
            RequestError: INVALID_ARGUMENT or NOT_FOUND.
        """
        return self.model(spec).find(
            spec.version.value if spec.HasField("version") else None,
            spec.version_label if spec.HasField("version_label") else None,
        )

    def model(self, spec: Any) -> ServedModel:
        """The model that a ModelSpec names.

        Raises:
            RequestError: INVALID_ARGUMENT if it names none; NOT_FOUND if there is none of that name.
        """
        if not spec.name:
            raise invalid("Missing ModelSpec: the request must name a model")
        if spec.name not in self._models:
            known = ", ".join(sorted(self._models))
            raise RequestError(
                Code.NOT_FOUND, f"Could not find any versions of model {spec.name}; this server has {known}"
            )
        return self._models[spec.name]

    def status(self, spec: Any) -> list[get_model_status_pb2.ModelVersionStatus]:
        """States of the versions that a ModelSpec names; of all if it names none.

        Raises:
            RequestError: INVALID_ARGUMENT or NOT_FOUND.
        """
        model = self.model(spec)
        number = spec.version.value if spec.HasField("version") else None
        if spec.HasField("version_label"):
            number = model.find(label=spec.version_label).number
        statuses = [status for status in model.status() if number in (None, status.version)]
        if not statuses:
            what = f"version {number}" if number is not None else "any versions"
            raise RequestError(Code.NOT_FOUND, f"Could not find {what} of model {spec.name}")
        return statuses

    async def predict(
        self, version: Version, signature: SignatureSpec, inputs: Mapping[str, np.ndarray], seconds_left: float | None
    ) -> Arrays:
        """The outputs, within the client's remaining time and at most the config's timeout.

        Raises:
            RequestError: as `Version.predict`.
        """
        most = self._config.request_timeout_seconds
        # A little before the client's own deadline: past it, gRPC drops the call as CANCELLED and gives no reason.
        left = most if seconds_left is None else min(seconds_left - min(0.01, seconds_left / 10), most)
        return await version.predict(signature, inputs, asyncio.get_running_loop().time() + left)

    async def _follow(self, model: ServedModel) -> None:
        while True:
            await asyncio.sleep(self._config.poll_seconds)
            try:
                await model.refresh()
            except Exception:  # the disk may fail in any way; loaded versions must go on
                log.exception("%s: cannot look for versions; will try again", model.name)


def signature_name(spec: Any) -> str:
    """The signature that a ModelSpec names, serving_default if none."""
    return spec.signature_name or Signature.SERVING_DEFAULT
