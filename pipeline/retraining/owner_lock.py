"""One retrain at a time on a store, with the name of who is at it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from contracts import artifact
from contracts.layout import Store
from contracts.storage import make_directory
from pipeline.retraining.records import now


@contextmanager
def owning(store: Store) -> Iterator[None]:
    """Holds the store's lock.

    The operating system lets go of it when the owner dies, however it dies: a dead owner's lock is free.

    Raises:
        ValueError: another process holds it, and the message says which; or the store cannot be made.
    """
    make_directory(store.path, "-s")
    lock = FileLock(store.lock)
    try:
        lock.acquire(timeout=0)
        artifact.write_json(store.lock_owner, {"pid": os.getpid(), "host": socket.gethostname(), "since": now()})
    except Timeout:
        raise ValueError(f"{store.path} is held by {_owner(store)}: wait for it, or use another store (-s)") from None
    except OSError as error:
        lock.release()
        raise ValueError(f"-s {store.path} cannot be written to: {error.strerror}; name another one") from None
    try:
        yield
    finally:
        store.lock_owner.unlink(missing_ok=True)
        lock.release()


def _owner(store: Store) -> str:
    try:
        owner = json.loads(store.lock_owner.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
