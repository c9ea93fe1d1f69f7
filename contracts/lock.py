"""One writer per workdir or store: a second one is refused.

On a POSIX file system the kernel's file lock decides, and is released when the process that holds it ends. Object
stores have no file locks. There the holder keeps incrementing a counter in an object beside the artifacts. A run that
finds this object watches it, and takes over only if the counter stands still, as it does after a kill. Reading and then
writing takes two steps, so two runs that start at the same moment may both go on: each then writes its own
generations, and of each artifact the last one to be finished is kept, whole.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from contracts import storage
from contracts.artifact import now
from contracts.layout import Workdir

log = logging.getLogger(__name__)

_OWNER = ".lock-owner"
_BEAT_SECONDS = 5.0
_DEAD_AFTER = 5  # beats


@contextmanager
def holding(workdir: Workdir) -> Iterator[None]:
    """Holds the workdir, which is created if it does not exist.

    Raises:
        ValueError: another run holds it, or it cannot be created or written to.
    """
    with _beating(workdir) if storage.is_remote(workdir.path) else holding_directory(workdir.lock, "--workdir"):
        yield


@contextmanager
def holding_directory(lock: Path, option: str) -> Iterator[None]:
    """Holds the directory of a lock file on this machine; it is created if it does not exist.

    A file beside the lock names its owner, for the message that a second process gets. The operating system releases
    the lock when its owner dies, however it dies: then only that file is left, and nobody reads it.

    Args:
        option: the command-line option that named the directory.

    Raises:
        ValueError: another process holds it, and the message says which; or it cannot be created or written to.
    """
    storage.make_directory(lock.parent, option)
    held, owner = FileLock(lock), lock.with_name(_OWNER)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise _busy(lock, _owner(owner), option) from None
    except OSError as error:
        raise ValueError(
            f"{option} {lock.parent} cannot be written to: {error.strerror}; choose another directory"
        ) from None
    try:
        with suppress(OSError):  # such as a full disk, which the run itself will report
            storage.write_text(owner, f"{_this_process()} since {now()}")
        yield
    finally:
        with suppress(OSError):  # for example if it has become read-only
            owner.unlink()
        held.release()


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:  # the owner is about to write it, or has just removed it
        return "another process"


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _busy(lock: Path, owner: str, option: str) -> ValueError:
    return ValueError(f"{lock.parent} is held by {owner}: wait for it, or choose another directory ({option})")


@contextmanager
def _beating(workdir: Workdir) -> Iterator[None]:
    _wait_for_dead(workdir)
    token, over = uuid.uuid4().hex, threading.Event()
    _write(workdir.lock, token, 0)
    beats = threading.Thread(target=_beat, args=(workdir.lock, token, over), daemon=True)
    beats.start()
    try:
        yield
    finally:
        over.set()
        beats.join()
        if _is_ours(workdir.lock, token):
            storage.remove(workdir.lock)


def _wait_for_dead(workdir: Workdir) -> None:
    """Returns once nobody holds the workdir."""
    found = _read(workdir.lock)
    for beat in range(_DEAD_AFTER):
        if found is None:
            return
        if beat == 0:
            log.info("%s is locked by %s: waiting to see whether it is still running", workdir.path, found["owner"])
        time.sleep(_BEAT_SECONDS)
        seen = _read(workdir.lock)
        if seen not in (found, None):
            raise _busy(workdir.lock, found["owner"], "--workdir")
        found = seen


def _beat(lock: Path, token: str, over: threading.Event) -> None:
    count = 0
    while not over.wait(_BEAT_SECONDS):
        count += 1
        try:
            if not _is_ours(lock, token):
                log.error(
                    "another run took over %s: of each artifact, the last one to be finished is kept", lock.parent
                )
                return
            _write(lock, token, count)
        except storage.StorageError as error:  # the run's own reads and writes will say so, if it lasts
            log.warning("%s", error)


def _is_ours(lock: Path, token: str) -> bool:
    found = _read(lock)
    return found is None or found["token"] == token


def _read(lock: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(storage.read_text(lock))
        return found
    except FileNotFoundError:
        return None


def _write(lock: Path, token: str, count: int) -> None:
    storage.write_text(lock, json.dumps({"owner": _this_process(), "token": token, "count": count}))
