"""Calls that train, each in a separate process: TensorFlow frees memory only when its process ends."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

from contracts.log_lines import log_to_stderr


@contextmanager
def training_processes(jobs: int) -> Iterator[Callable[..., Future[Any]]]:
    """Yields `submit(function, *arguments)`, whose calls run `jobs` at a time.

    No call outlives the block or this process, however either ends: running calls are killed, waiting ones are dropped.
    If a call's process dies, only that call fails. Calls log as this process does.
    """
    context = multiprocessing.get_context("spawn")
    # Nothing is written to the pipe: its end shows every call that the block, or this process, is over.
    over, open_end = context.Pipe(duplex=False)
    level = logging.getLogger(__name__).getEffectiveLevel()

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        with ProcessPoolExecutor(1, context, _begin, (over, level)) as process:
            return process.submit(function, *arguments).result()

    threads = ThreadPoolExecutor(jobs)
    try:
        yield lambda function, *arguments: threads.submit(call, function, *arguments)
    finally:
        open_end.close()
        threads.shutdown(cancel_futures=True)


def _begin(over: Connection, level: int) -> None:
    log_to_stderr(level)

    def wait() -> None:
        over.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
