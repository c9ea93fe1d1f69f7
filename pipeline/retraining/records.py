"""Records: the outcome of each run, and where it came from."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

import contracts
from contracts import artifact
from contracts.config import Config
from contracts.config_io import SECRET_OPTION
from contracts.layout import Workdir
from contracts.patterns import DATE, NUMBER
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.spans import Span
from pipeline.stage import Stage

log = logging.getLogger(__name__)

T = TypeVar("T")
Outcome = Literal["pushed", "not_blessed"]

_SECRET = re.compile(rf"((?:webhook|{SECRET_OPTION.pattern})['\"]?\s*[=:,]).*", re.DOTALL)
"""A word of the command line, from a secret's name on."""
_RECORDED_PACKAGES = ("tensorflow", "tensorflow-recommenders", "scann", "apache-beam", "tensorflow-transform", "numpy")


@dataclass(frozen=True)
class Record:
    """A finished run.

    Attributes:
        outcome: pushed, or not_blessed by the gate.
        version: of the servable; None if nothing was pushed.
        label: the label that the version got when it was pushed.
        spans: key, digest of the files (see `files_of`) and numbers of each span that went in, oldest first.
        left_out: key -> why an older span of the window did not go in.
        unused: key, order and digest of the files of each of those, oldest first; empty in records of older code.
        refused: key -> digest of the files, for those among them that could be read but were not fit.
        parents: {"version", "run_id"} of the model that training started from and was compared with, which
            of its weights were kept ("warm_start"), whether training then failed to improve them ("kept_start"), and
            whether its groups were kept ("groups").
        gate: the verdict, see `pipeline.retraining.gate.Verdict`.
        metrics: the candidate's and the reference's, on the same holdout users.
        catch_up: whether the pushed model has learnt the newest span, too ("is_pushed"), or why not ("why_not"), with
            the verdict ("gate"), the metrics and the stages of the model that learnt it.
        config: the run's whole config, with `data.events` as it was given; `seed` is in it.
        stages: name -> fingerprint and seconds.
        code, machine: what it ran on.
    """

    run_id: str
    outcome: Outcome
    version: int | None
    label: str | None
    created: str
    seconds: float
    spans: list[dict[str, Any]]
    left_out: dict[str, str]
    parents: dict[str, Any]
    gate: dict[str, Any]
    metrics: dict[str, Any]
    config: dict[str, Any]
    stages: dict[str, Any]
    catch_up: dict[str, Any] = field(default_factory=dict)
    unused: list[dict[str, Any]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    code: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def window(self) -> list[dict[str, Any]]:
        """The spans that the run was given, used or not, oldest first."""
        return sorted([*self.spans, *self.unused], key=lambda span: span["order"])


def write_record(store: Store, record: Record) -> None:
    """Ends the run: once its record exists, all else is done."""
    artifact.write_json(RetrainRun(store.run(record.run_id)).record, asdict(record))


def read_record(store: Store, run_id: str) -> Record | None:
    """The record of a run; None if the run is unfinished or, with a warning, if the file is not a record."""
    return _record_at(RetrainRun(store.run(run_id)).record)


def read_pending(store: Store, run_id: str) -> Record | None:
    """The record of a run as it was before its push; None as in `read_record`."""
    return _record_at(RetrainRun(store.run(run_id)).pending)


def _record_at(path: Path) -> Record | None:
    return _read_or_none(path, "a record", _record_of, "restore it, or delete the run's directory")


def _record_of(text: str) -> Record:
    record = artifact.from_json(Record, text)
    if not record.spans:
        raise ValueError("it names no span")
    given = [*record.spans, *record.unused]
    if not all(isinstance(span, dict) and {"key", "order"} <= span.keys() for span in given):
        raise ValueError("one of its spans has no key or no order")
    return record


def _read_or_none(path: Path, what: str, parse: Callable[[str], T], remedy: str) -> T | None:
    """Like `artifact.read_json`, but None if there is no such file or, with a warning, if it is damaged."""
    try:
        return artifact.read_json(path, what, parse, remedy)
    except FileNotFoundError:
        return None
    except ValueError as error:
        _warn(f"{error}; until then, it is ignored")
        return None


@functools.cache
def _warn(message: str) -> None:
    """Warns once per process, however often the file is read."""
    log.warning("%s", message)


def all_records(store: Store) -> list[Record]:
    """The records of all finished runs, oldest first."""
    ids = [path.name for path in store.runs.iterdir() if path.is_dir()] if store.runs.is_dir() else []
    found = [record for record in (read_record(store, run_id) for run_id in ids) if record is not None]
    newest = {placeholder_of(record.spans[-1]["key"]): record.created for record in sorted(found, key=_created)}
    # By newest span, since none is trained on after a later one, whereas a clock may be set back; for the same span, by
    # time and, within a second, by version, as numbers only grow. A date and a number cannot be compared: all runs of
    # the kind that was trained on last come last.
    return sorted(
        found,
        key=lambda record: (
            newest[placeholder_of(record.spans[-1]["key"])],
            record.spans[-1]["order"],
            record.created,
            record.version or 0,
        ),
    )


def _created(record: Record) -> str:
    return record.created


def placeholder_of(key: str) -> str:
    """The placeholder by which data.events names a span; only orders of the same placeholder can be compared."""
    return DATE if "-" in key else NUMBER


def keep_files(store: Store, span: Span) -> None:
    """Writes the list of a span's files. In the records, each list would be repeated for every day of the window."""
    path = store.span_files(span.key, span.digest)
    if _listed(path) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_json(path, span.files_json())


def digest_of(span: dict[str, Any]) -> str:
    """`Span.digest` of a record's span when it went in. Records of code up to 0.3.0 may hold the files themselves."""
    files = span["files"]
    return files if isinstance(files, str) else artifact.fingerprint([span["key"], *files])


def files_of(store: Store, span: dict[str, Any]) -> list[Any] | None:
    """The files of a record's span: name, size, and time or version. None if the list is gone or damaged."""
    if isinstance(span["files"], list):  # see `digest_of`
        return list(span["files"])
    return _listed(store.span_files(span["key"], span["files"]))


def _listed(path: Path) -> list[Any] | None:
    def parse(text: str) -> list[Any]:
        if not isinstance(found := json.loads(text), list):
            raise TypeError("it does not hold a list")
        return found

    remedy = "restore it, or let the next run of that span rewrite it"
    return _read_or_none(path, "a list of a span's files", parse, remedy)


def record_of_version(store: Store, version: int) -> Record | None:
    """The record of the run that made a version."""
    return next((record for record in all_records(store) if record.version == version), None)


def largest_version_given(store: Store) -> int:
    """The largest version number ever given, 0 if none: a number is never given twice."""
    return max((record.version or 0 for record in all_records(store)), default=0)


def kept_start(model: artifact.Manifest) -> bool:
    """Whether a warm-started training ended with the weights that it began with, as no epoch validated better."""
    return model.details["warm_start"] is not None and model.details["best"]["epoch"] == 0


def stage_records(stages: tuple[Stage, ...], config: Config, workdir: Workdir) -> dict[str, Any]:
    """Name -> fingerprint, seconds and counts of each stage that has run in a workdir."""
    found: dict[str, Any] = {}
    for stage in stages:
        paths: tuple[Path, ...] = stage.outputs(config, workdir)
        manifests = [artifact.read_manifest(path) for path in paths]
        found[stage.name] = {
            "fingerprint": manifests[0].fingerprint,
            "seconds": round(sum(manifest.seconds for manifest in manifests), 2),
            "counts": manifests[0].counts,
        }
    return found


def code() -> dict[str, str]:
    """Versions of this project and of what it depends on, with the commit if this is a checkout."""
    found = {"dnc-retrieval": contracts.__version__, "python": platform.python_version()}
    for name in _RECORDED_PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, e.g. in an image, or no checkout
        # A virtual environment may be inside another checkout, whose commit says nothing about this code.
        _git("ls-files", "--error-unmatch", "contracts/__init__.py")
        found["commit"] = _git("describe", "--always", "--dirty")
    return found


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(contracts.__file__).parent.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> dict[str, Any]:
    """The host, for the lineage."""
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "command": [_SECRET.sub(r"\1...", word) for word in sys.argv],
    }
