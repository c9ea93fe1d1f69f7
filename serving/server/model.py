"""A served model: the versions at one base path, loaded and unloaded as the labels say."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tensorflow_serving.apis import get_model_status_pb2, status_pb2

from contracts.config import ServerConfig
from contracts.layout import SAVED_MODEL
from contracts.serving_labels import LABELS_FILE, STABLE, ServingLabels, effective_labels, versions_on_disk
from serving.server.batcher import Workers
from serving.server.errors import Code, RequestError, invalid
from serving.server.metrics import Metrics
from serving.server.version import LoadedServable, LoadError, Version

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")
State = get_model_status_pb2.ModelVersionStatus

_FIRST_DELAY, _LONGEST_DELAY = 10.0, 600.0
"""Seconds until a version whose failure may pass is loaded again; they double from one failure to the next."""
_UNSEEN = (-1, -1)
"""State of files that cannot be read; no readable files have it."""


@dataclass(frozen=True)
class _Failure:
    """Why a version could not be loaded.

    Attributes:
        state: state of its files at the time.
        message: the reason in words.
        delay: seconds to wait before trying the same files again; infinite if the failure cannot pass.
        at: when it failed, by `time.monotonic`.
    """

    state: tuple[int, int]
    message: str
    delay: float
    at: float

    @classmethod
    def of(cls, error: LoadError, state: tuple[int, int], last: _Failure | None) -> _Failure:
        """The failure that follows `last`."""
        delay = min(2 * last.delay, _LONGEST_DELAY) if last and last.state == state else _FIRST_DELAY
        return cls(state, str(error), delay if error.may_pass else math.inf, time.monotonic())

    def stands(self, state: tuple[int, int]) -> bool:
        """Whether the version need not be tried yet with its files in `state`."""
        return self.state == state and time.monotonic() < self.at + self.delay


class ServedModel:
    """The versions of one model. `refresh` brings the loaded ones in line with `serving.json` or the disk.

    Attributes:
        complaints: why the last refresh could not move labels to where they belong.
    """

    def __init__(
        self, name: str, base: Path, config: ServerConfig, workers: Workers, loader: Executor, metrics: Metrics
    ):
        """Prepares to serve the versions below `base`; `loader` loads them, one at a time."""
        self.name = name
        self.base = base
        self._config = config
        self._workers = workers
        self._loader = loader
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="disk")  # it may stall, and no load must wait for it
        self._metrics = metrics
        self._on_disk: list[int] = []
        self._versions: dict[int, Version] = {}
        self._loaded_from: dict[int, tuple[int, int]] = {}
        self._labels: dict[str, int] = {}
        self._failures: dict[int, _Failure] = {}
        self._loading: set[int] = set()
        self._draining: dict[asyncio.Task[None], int] = {}
        self.complaints: list[str] = []
        self._refreshing = asyncio.Lock()

    async def refresh(self) -> None:
        """Moves the labels, loads the versions that they need, and drains those that no label needs.

        A label moves only to a version that is loaded, warmed up and ready, so requests never wait for a load, and a
        version that cannot be loaded leaves everything as it was. Labels are read again during and after every load,
        which may take minutes, so that the load does not override a rollback that is written meanwhile.
        """
        async with self._refreshing:
            await self._refresh()

    async def relabel(self, labels: ServingLabels | None, write: Callable[[ServingLabels | None], None]) -> None:
        """Loads all versions that `labels` names, has `labels` written (None: no file), then follows them.

        Raises:
            RequestError: FAILED_PRECONDITION if a version cannot be loaded or the file cannot be written. The file then
                stays as it is: a server that starts with labels for such a version would have none to serve.
        """
        async with self._refreshing:
            self._on_disk = await self._on(self._disk, versions_on_disk, self.base)
            newest = [(STABLE, number) for number in self._on_disk[-1:]]
            wanted = labels.by_label() if labels else dict(newest)
            for number in wanted.values():
                await self._load(number)
            refused = self._refused(wanted)
            if not refused:
                try:
                    await self._on(self._disk, write, labels)
                except OSError as error:
                    refused = [f"cannot write {self.base / LABELS_FILE}: {error}"]
                else:
                    await self._refresh()
                    refused = self.complaints
            if refused:
                raise RequestError(Code.FAILED_PRECONDITION, "; ".join(refused))

    async def _refresh(self) -> None:
        tried: set[int] = set()
        while (wanted := await self._follow_labels()) is not None:
            loaded = await self._load_one(number for number in wanted.values() if number not in tried)
            if loaded is None:
                break
            tried.add(loaded)
        if wanted is None:
            return
        if not self._versions and not await self._on(self._disk, (self.base / LABELS_FILE).exists):
            older = sorted(set(self._on_disk) - set(wanted.values()), reverse=True)
            await self._load_newest_whole(older)
        self._complain(self._refused(wanted))
        for number in set(self._versions) - set(self._labels.values()):
            self._drain(number)

    async def _follow_labels(self) -> dict[str, int] | None:
        """Moves labels whose versions are loaded; returns each label's wanted version, None if they are unknown."""
        try:
            self._on_disk = await self._on(self._disk, versions_on_disk, self.base)
            labels = await self._on(self._disk, effective_labels, self.base)
        except (ValueError, OSError) as error:
            self._complain([str(error)])
            return None
        if labels is None and self._versions:  # the disk is gone, or is being tidied up
            self._complain([f"no version under {self.base}: the loaded versions keep serving"])
            return None
        wanted = labels.by_label() if labels else {}
        for label, number in wanted.items():
            if number in self._versions:
                self._move(label, number)
        for label in set(self._labels) - set(wanted):
            del self._labels[label]
            self._metrics.serving.remove(self.name, label)
        return wanted

    def _move(self, label: str, number: int) -> None:
        self._labels[label] = number
        self._metrics.serving.labels(self.name, label).set(number)

    async def _load_one(self, numbers: Iterable[int]) -> int | None:
        """Loads the first version that needs it; returns its number even if that fails, None if there was none."""
        for number in numbers:
            if await self._load(number):
                return number
        return None

    async def _load_newest_whole(self, numbers: Iterable[int]) -> None:
        """Makes the first version that loads stable.

        For a server that starts without labels on disk: a broken version must not keep an older one from answering.
        """
        for number in numbers:
            await self._load(number)
            if number in self._versions:
                self._move(STABLE, number)
                return

    def require(self) -> None:
        """Raises ValueError if no version answers."""
        if STABLE not in self._labels:
            raise ValueError("; ".join(self.complaints))

    def find(self, number: int | None = None, label: str | None = None) -> Version:
        """The version with that number or that label; without either, the stable one.

        Raises:
            RequestError: NOT_FOUND, or INVALID_ARGUMENT for a label, as in TF Serving.
        """
        if number is None:
            wanted = STABLE if label is None else label
            if wanted not in self._labels:
                if label is None:
                    raise RequestError(Code.NOT_FOUND, f"Servable not found for request: Latest({self.name})")
                raise invalid(f"Unrecognized servable version label: {label}; {self.name} has {sorted(self._labels)}")
            number = self._labels[wanted]
        if number not in self._versions:
            raise RequestError(Code.NOT_FOUND, f"Servable not found for request: Specific({self.name}, {number})")
        return self._versions[number]

    def status(self) -> list[get_model_status_pb2.ModelVersionStatus]:
        """The state of every version in memory, or on disk when it was last looked at, newest first."""
        states = {
            **dict.fromkeys(self._on_disk, State.END),
            **dict.fromkeys(self._loading, State.LOADING),
            **dict.fromkeys(self._draining.values(), State.UNLOADING),
            **dict.fromkeys(self._versions, State.AVAILABLE),
        }
        statuses = []
        for number in sorted(states, reverse=True):
            status = State(version=number, state=states[number], status=status_pb2.StatusProto())
            if number in self._failures and number not in self._loading:  # else it is from an earlier try
                status.status.error_code = Code.INVALID_ARGUMENT.value[0]
                status.status.error_message = self._failures[number].message
            statuses.append(status)
        return statuses

    async def close(self) -> None:
        """Drains every version."""
        self._labels.clear()
        for number in list(self._versions):
            self._drain(number)
        await asyncio.gather(*self._draining)
        self._disk.shutdown(wait=False)

    async def _load(self, number: int) -> bool:
        """Loads a version unless it is loaded already or expected to fail; returns whether it tried.

        A version replaced under its own number, e.g. by a run that starts over, is loaded again; the old one serves
        until then.
        """
        path = self.base / str(number)
        try:
            state = await self._on(self._disk, _state, path)
        except OSError as error:
            self._failures[number] = _Failure.of(LoadError(path, error), _UNSEEN, None)
            return False
        if number in self._versions and state in (None, self._loaded_from[number]):
            self._failures.pop(number, None)
            return False
        failure = self._failures.get(number)
        if state is None or (failure and failure.stands(state)):
            return False
        self._loading.add(number)
        try:
            loading = self._on(self._loader, _load, path, state, self._config.session_threads)
            servable = await self._following_labels(loading)
        except LoadError as error:
            self._failures[number] = _Failure.of(error, state, failure)
            self._metrics.loads.labels(str(path), "fail").inc()
            return True
        finally:
            self._loading.discard(number)
        self._failures.pop(number, None)
        self._metrics.loads.labels(str(path), "success").inc()
        if number in self._versions:
            self._drain(number)
        self._versions[number] = Version(number, servable, self._config, self._workers, self._metrics)
        self._loaded_from[number] = state
        log.info("%s: version %d is loaded", self.name, number)
        return True

    async def _following_labels(self, load: asyncio.Future[_Result]) -> _Result:
        """The result of a load; meanwhile labels keep moving between the loaded versions."""
        try:
            while not (await asyncio.wait([load], timeout=self._config.poll_seconds))[0]:
                await self._follow_labels()
        finally:
            load.cancel()
        return load.result()

    @staticmethod
    def _on(executor: Executor, function: Callable[..., _Result], *arguments: Any) -> asyncio.Future[_Result]:
        return asyncio.get_running_loop().run_in_executor(executor, function, *arguments)

    def _drain(self, number: int) -> None:
        """Begins to drain a version; it may be loaded and dropped again before its first drain is over."""

        def done(task: asyncio.Task[None]) -> None:
            del self._draining[task]
            log.info("%s: version %d is unloaded", self.name, number)

        del self._loaded_from[number]
        task = asyncio.get_running_loop().create_task(self._versions.pop(number).drain())
        self._draining[task] = number
        task.add_done_callback(done)

    def _refused(self, wanted: Mapping[str, int]) -> list[str]:
        """The reasons, one for each label that cannot move to its wanted version."""
        return [
            self._why_not(label, number)
            for label, number in wanted.items()
            if number not in self._versions or number in self._failures
        ]

    def _why_not(self, label: str, number: int) -> str:
        if number in self._failures:
            reason = self._failures[number].message
        else:
            reason = f"there is no version {number} under {self.base}; it has {self._on_disk}"
        if number in self._versions:
            return f"{self.name}: version {number} still serves as loaded earlier, not as it is on disk: {reason}"
        return f"{self.name}: the label {label} cannot move to version {number}: {reason}"

    def _complain(self, complaints: list[str]) -> None:
        """Logs what is wrong once, not at every poll."""
        for complaint in complaints:
            if complaint not in self.complaints:
                log.warning("%s", complaint)
        self.complaints = complaints


def _load(version: Path, state: tuple[int, int], num_threads: int) -> LoadedServable:
    """Loads a version whose files were in `state`.

    Raises:
        LoadError: it cannot be served; or its files changed meanwhile or cannot be looked at, so that it is unknown
            what was read: half a vocabulary loads as well as a whole one.
    """
    servable = LoadedServable(version, num_threads)
    try:
        if _state(version) != state:
            raise OSError("its files changed while they were being read")
    except OSError as error:
        servable.close()
        raise LoadError(version, error) from error
    return servable


def _state(version: Path) -> tuple[int, int] | None:
    """Newest modification time and total size of a version's files, which change while it is being copied.

    None if it holds no graph. Times of directories do not count, since some mounts of object stores make them up anew.

    Raises:
        OSError: its directory cannot be read.
    """
    if not (version / SAVED_MODEL).exists():
        return None
    found = []
    for path in version.rglob("*"):
        with contextlib.suppress(OSError):  # it may be moved meanwhile
            found.append(path.stat())
    found = [one for one in found if stat.S_ISREG(one.st_mode)]
    return max((one.st_mtime_ns for one in found), default=0), sum(one.st_size for one in found)
