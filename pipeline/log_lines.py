"""What a command says on stderr while it runs."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.logging import RichHandler

_ROOMS = ("contracts", "beam_jobs", "trainer", "serving", "pipeline")


def log_to_stderr(level: int) -> None:
    """Shows the lines of our rooms from `level` on, and other packages' warnings.

    Each process that is started anew has to call it: without it, Python shows nothing but warnings.
    """
    verbose = level <= logging.DEBUG
    handler = RichHandler(console=Console(stderr=True), show_path=False, show_level=verbose, log_time_format="%H:%M:%S")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    for room in _ROOMS:
        logging.getLogger(room).setLevel(level)
    # Beam logs what a worker raised, with its traceback, and then raises it here, where it is told in a line.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.ERROR if verbose else logging.CRITICAL)
    # TensorFlow warns of its own loader whenever a servable is loaded, and nobody here can do anything about it.
    logging.getLogger("tensorflow").setLevel(logging.WARNING if verbose else logging.ERROR)
