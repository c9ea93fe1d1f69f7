"""The server's metrics, in Prometheus' format.

Metrics that TF Serving also has keep its names; Prometheus' client appends "_total" to those of counters.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from serving.server.errors import Code, RequestError

_MICROSECONDS = [10 * 1.8**power for power in range(24)]
"""Bounds of TF Serving's latency histograms, 10 us to 7 s."""
_SECONDS = [bound / 1e6 for bound in _MICROSECONDS]
_ROWS = [2**power for power in range(13)]

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one server."""

    def __init__(self, known: Collection[str]) -> None:
        """`known`: the names of the models."""
        self._known = known
        disable_created_metrics()
        self._registry = CollectorRegistry()
        self.requests = Counter(
            ":tensorflow:serving:request_count",
            "Predict requests by model and gRPC status.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self.latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Microseconds from a request's arrival to its answer, of those that were answered with OK.",
            ["model_name", "API", "entrypoint"],
            buckets=_MICROSECONDS,
            registry=self._registry,
        )
        self.batch_rows = Histogram(
            ":tensorflow:serving:batching_session:processed_batch_size",
            "Rows of the batches that ran.",
            buckets=_ROWS,
            registry=self._registry,
        )
        self.queue_seconds = Histogram(
            "dnc_queue_seconds", "How long requests waited for a batch.", buckets=_SECONDS, registry=self._registry
        )
        self.loads = Counter(
            ":tensorflow:cc:saved_model:load_attempt_count",
            "Loads of versions by outcome, success or fail.",
            ["model_path", "status"],
            registry=self._registry,
        )
        self.serving = Gauge(
            "dnc_serving_version", "The version behind a label.", ["model_name", "label"], registry=self._registry
        )

    @contextmanager
    def measured(self, model_name: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts a Predict request by outcome and, if it is answered, records its latency.

        Clients may ask for any name: unknown ones are counted as "", so that they cannot fill the memory.

        Args:
            model_name: as requested.
            api: the method's name at that entrypoint.
            entrypoint: GRPC or REST.
        """
        name = model_name if model_name in self._known else ""
        status, started = Code.OK, time.perf_counter()
        try:
            yield
        except RequestError as error:
            status = error.code
            raise
        except asyncio.CancelledError:
            status = Code.CANCELLED
            raise
        except Exception:
            status = Code.INTERNAL
            raise
        finally:
            self.requests.labels(name, status.name).inc()
            if status is Code.OK:
                self.latency.labels(name, api, entrypoint).observe((time.perf_counter() - started) * 1e6)

    def page(self) -> bytes:
        """The exposition, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self._registry)
