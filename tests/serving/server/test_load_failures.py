"""A version that cannot be loaded: what is freed, and when it is tried again."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

import serving.servable_session
import serving.server.model
import serving.server.version
from contracts.config import ServerConfig
from contracts.serving_labels import ServingLabels, write_labels
from serving.servable_session import ServableSession, new_session
from serving.server.batcher import Workers
from serving.server.errors import Code, RequestError
from serving.server.metrics import Metrics
from serving.server.model import ServedModel, State
from serving.server.version import LoadedServable, LoadError
from serving.warmup import WARMUP_FILE, read_warmup
from tests.contracts.nobody import as_nobody

PASSES = [
    OSError("stale file handle"),
    tf.errors.ResourceExhaustedError(None, None, "no memory"),
    tf.errors.UnavailableError(None, None, "no storage"),
    tf.errors.UnknownError(None, None, "Input/output error"),
    tf.errors.AbortedError(None, None, "Stale file handle"),
    tf.errors.DeadlineExceededError(None, None, "Connection timed out"),
    RequestError(Code.RESOURCE_EXHAUSTED, "no memory for a warm-up request"),
]
STAYS = [tf.errors.DataLossError(None, None, "bad file"), ValueError("bad graph"), RequestError(Code.INTERNAL, "rows")]


class Tried:
    """A base path with version 1, a clock, and what is made of each attempt to load."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
        self.graph, self.error, self.now, self.times = base / "1" / "saved_model.pb", error, 0, []
        self.graph.parent.mkdir(parents=True)
        self.graph.touch()
        monkeypatch.setattr(serving.server.model, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(serving.server.model, "LoadedServable", self.load)
        self.model = ServedModel("dnc", base, ServerConfig(), None, ThreadPoolExecutor(1), Metrics(["dnc"]))

    def load(self, path: Path, num_threads: int) -> Any:
        self.times.append(self.now)
        raise LoadError(path, self.error)

    def poll(self, until: int) -> list[int]:
        """The seconds at which it was tried, of a poll a second."""

        async def polls() -> None:
            while self.now < until:
                await self.model.refresh()
                self.now += 1

        asyncio.run(polls())
        return self.times


@pytest.mark.parametrize("error", PASSES, ids=str)
def test_a_failure_that_may_pass_is_tried_again_after_ever_longer(error, tmp_path, monkeypatch):
    tried = Tried(tmp_path / "dnc", monkeypatch, error)
    # 10 seconds, doubled each time, at most 600.
    assert tried.poll(2_500) == [0, 10, 30, 70, 150, 310, 630, 1230, 1830, 2430]
    tried.graph.write_text("repaired, and failing still")
    assert tried.poll(2_520)[-2:] == [2500, 2510]


@pytest.mark.parametrize("error", STAYS, ids=str)
def test_a_failure_that_stays_is_tried_again_when_the_files_change(error, tmp_path, monkeypatch):
    tried = Tried(tmp_path / "dnc", monkeypatch, error)
    assert tried.poll(2_000) == [0]
    tried.graph.write_text("other")
    assert tried.poll(4_000) == [0, 2000]


def test_while_a_version_is_tried_again_it_is_loading_and_has_not_failed(tmp_path, monkeypatch):
    tried, seen = Tried(tmp_path / "dnc", monkeypatch, OSError("stale file handle")), []

    def load(path: Path, num_threads: int) -> Any:
        seen.extend(tried.model.status())
        return tried.load(path, num_threads)

    monkeypatch.setattr(serving.server.model, "LoadedServable", load)
    assert tried.poll(11) == [0, 10]
    said = [(one.state, one.status.error_code, one.status.error_message) for one in seen]
    assert said == [(State.LOADING, 0, "")] * 2
    (failed,) = tried.model.status()
    assert (failed.state, "stale file handle" in failed.status.error_message) == (State.END, True)


def test_a_version_whose_files_change_while_it_is_loaded_is_loaded_again(tmp_path, monkeypatch):
    tried, closed = Tried(tmp_path / "dnc", monkeypatch, ValueError()), []

    def load(path: Path, num_threads: int) -> Any:
        tried.times.append(tried.now)
        os.utime(path)  # of a directory, whose time is not its files'
        if len(tried.times) < 3:
            (path / "assets").mkdir(exist_ok=True)
            (path / "assets" / "vocabulary").write_text("id\n" * len(tried.times))
        return SimpleNamespace(definitions={}, signatures={}, close=lambda: closed.append(tried.now))

    monkeypatch.setattr(serving.server.model, "LoadedServable", load)
    assert tried.poll(10) == [0, 1, 2]
    assert closed == [0, 1]
    assert tried.model.find().number == 1


def test_a_version_whose_files_are_out_of_reach_after_its_load_is_freed(tmp_path, monkeypatch):
    """As on a network disk that goes away for a moment: `dnc serve` goes on, and loads it when the wait is over."""
    tried, closed, away, rglob = Tried(tmp_path / "dnc", monkeypatch, ValueError()), [], [], Path.rglob

    def load(path: Path, num_threads: int) -> Any:
        tried.times.append(tried.now)
        if len(tried.times) == 1:
            away.append(OSError(errno.ESTALE, "Stale file handle"))
        return SimpleNamespace(definitions={}, signatures={}, close=lambda: closed.append(tried.now))

    def looked_at(path: Path, pattern: str) -> Any:
        if away:
            raise away.pop()
        return rglob(path, pattern)

    monkeypatch.setattr(serving.server.model, "LoadedServable", load)
    monkeypatch.setattr(Path, "rglob", looked_at)
    assert tried.poll(5) == [0]
    assert closed == [0]
    assert "Stale file handle" in tried.model.complaints[0]
    assert tried.poll(15) == [0, 10]
    assert closed == [0]
    assert tried.model.find().number == 1


def test_only_a_label_of_a_version_that_may_not_be_read_stays_where_it_is(tmp_path, monkeypatch):
    """A server that starts serves the newest that it may; a rollback is followed, and a push of 3 is refused."""
    monkeypatch.chdir(tmp_path)  # what lies above may be for its owner alone
    tmp_path.chmod(0o755)
    for number in (1, 2, 3):
        (tmp_path / "dnc" / str(number)).mkdir(parents=True)
        (tmp_path / "dnc" / str(number) / "saved_model.pb").touch()
    (tmp_path / "dnc" / "3").chmod(0o000)
    parts = SimpleNamespace(definitions={}, signatures={}, close=lambda: None)
    monkeypatch.setattr(serving.server.model, "LoadedServable", lambda *_: parts)
    model = ServedModel("dnc", Path("dnc"), ServerConfig(), None, ThreadPoolExecutor(1), Metrics(["dnc"]))
    complaint = r"^dnc: the label stable cannot move to version 3: dnc/3 cannot be served: \[Errno 13\]"

    def stable(labels: ServingLabels | None) -> int:
        if labels:
            write_labels(tmp_path / "dnc", labels)
        with as_nobody():
            asyncio.run(model.refresh())
        return model.find().number

    assert stable(None) == 2
    assert re.match(complaint, model.complaints[0])
    assert stable(ServingLabels(stable=1)) == 1
    assert model.complaints == []
    assert stable(ServingLabels(stable=3)) == 1
    assert re.match(complaint, model.complaints[0])


def test_files_that_may_be_read_after_all_are_loaded(servable, tmp_path, monkeypatch):
    """Permissions leave no trace in a file's size or time."""
    monkeypatch.chdir(tmp_path)  # what lies above may be for its owner alone
    tmp_path.chmod(0o755)
    now = [0]
    monkeypatch.setattr(serving.server.model, "time", SimpleNamespace(monotonic=lambda: now[0]))
    version = Path(shutil.copytree(servable, Path("dnc", "1")))
    (weights,) = (version / "variables").glob("variables.data*")
    pool = ThreadPoolExecutor(1)
    model = ServedModel("dnc", version.parent, ServerConfig(), Workers(pool, 1), pool, Metrics(["dnc"]))

    async def complaints() -> list[str]:
        with as_nobody():
            await model.refresh()
        return model.complaints

    async def follow() -> None:
        weights.chmod(0o600)
        assert "Permission denied" in "".join(await complaints())
        weights.chmod(0o644)
        assert "Permission denied" in "".join(await complaints())
        now[0] = 11
        assert await complaints() == []
        assert model.find().number == 1
        await model.close()

    asyncio.run(follow())


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each session that was opened, whether it is closed."""
    found: list[bool] = []

    def recorded(num_threads: int) -> tf.compat.v1.Session:
        session, place = new_session(num_threads), len(found)
        found.append(False)
        close = session.close

        def closing() -> None:
            found[place] = True
            close()

        session.close = closing
        return session

    for module in (serving.servable_session, serving.server.version):
        monkeypatch.setattr(module, "new_session", recorded)
    return found


def test_a_warm_up_file_of_another_kind_is_named_and_the_session_closed(tmp_path, closed):
    module = tf.Module()
    double = tf.function(lambda x: {"y": 2.0 * x}, input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path), signatures={"double": double.get_concrete_function()})
    (tmp_path / WARMUP_FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / WARMUP_FILE)) as writer:
        writer.write(b"\xff")
    with pytest.raises(
        LoadError, match=r"tf_serving_warmup_requests holds an invalid PredictionLog .*export again"
    ) as error:
        LoadedServable(tmp_path, 1)
    assert not error.value.may_pass
    assert closed == [True]


def test_a_session_that_cannot_be_loaded_is_closed(tmp_path, closed):
    (tmp_path / "saved_model.pb").write_bytes(b"\xffnonsense")
    with pytest.raises(OSError, match="Cannot parse file"):
        ServableSession(tmp_path)
    assert closed == [True]


@pytest.mark.parametrize("vocabulary", ["item_vocabulary.txt", "user_vocabulary.txt", "values.txt", "tags.txt"])
def test_a_version_whose_vocabulary_is_still_being_copied_is_refused(servable, vocabulary, tmp_path):
    """Its items, or values of user features, would be unknown: nothing else says that lines are missing."""
    shutil.copytree(servable, tmp_path / "1")
    lines = (tmp_path / "1" / "assets" / vocabulary).read_bytes().splitlines(keepends=True)
    (tmp_path / "1" / "assets" / vocabulary).write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(LoadError, match=f"expected {len(lines)} but got {len(lines) // 2}"):
        LoadedServable(tmp_path / "1", 1)


def test_a_warm_up_request_that_names_no_signature_is_of_the_default_one(tmp_path):
    """As in TF Serving, whose request logs are made into warm-up files."""
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["history"].CopyFrom(tf.make_tensor_proto([["i1"]]))
    (tmp_path / WARMUP_FILE).parent.mkdir()
    with tf.io.TFRecordWriter(str(tmp_path / WARMUP_FILE)) as writer:
        writer.write(log.SerializeToString())
    [(signature, inputs)] = read_warmup(tmp_path)
    assert (signature, inputs["history"].tolist()) == ("serving_default", [[b"i1"]])
