"""Checks of the machine and the environment, each with its remedy."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

import contracts  # noqa: F401  (selects Keras 2 before TensorFlow is imported)

DISTRIBUTION = "dnc-retrieval"
_REINSTALL = "rm -rf .venv && make install (installs requirements.lock with --no-deps)"
_MIN_FREE_GIB = 5
_CPU_INFO = Path("/proc/cpuinfo")
_SCANN_NEEDS = ["avx2", "fma"]
_MODULES = {
    "beam": ("apache_beam", "tensorflow_transform"),
    "train": ("tensorflow", "tensorflow_recommenders"),
    "serving": ("tensorflow", "scann"),
    "server": ("aiohttp", "grpc", "prometheus_client", "requests", "tenacity"),
    "tune": ("optuna",),
    "schedule": ("apscheduler", "requests", "tenacity"),
}
EXTRAS = tuple(_MODULES)


@dataclass(frozen=True)
class Finding:
    """One check's outcome."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def check(extras: Sequence[str] = EXTRAS) -> Iterator[Finding]:
    """Runs every check, cheap ones first.

    Args:
        extras: those of `EXTRAS` that this machine should have.
    """
    version = sys.version_info
    yield Finding(
        "Python 3.10-3.13",
        (3, 10) <= version[:2] <= (3, 13),
        sys.version.split()[0],
        "use CPython 3.11: make PYTHON=...",
    )
    if "beam" in extras:
        machine = platform.machine()
        yield Finding("x86-64", machine == "x86_64", machine, "use another machine: TFX-BSL has no wheels for this one")
    lacking = _lacking_for_scann() if "serving" in extras else []
    if "serving" in extras:
        found = f"without {', '.join(lacking)}" if lacking else "all that ScaNN needs"
        yield Finding("processor", not lacking, found, "use another machine: on this one, ScaNN would end the process")
    free = shutil.disk_usage(".").free / 2**30
    yield Finding("free disk", free >= _MIN_FREE_GIB, f"{free:.0f} GiB", f"free at least {_MIN_FREE_GIB} GiB")
    keras = os.environ.get("TF_USE_LEGACY_KERAS", "")
    yield Finding("TF_USE_LEGACY_KERAS", keras == "1", keras or "unset", "unset it, or export TF_USE_LEGACY_KERAS=1")
    remedy = _install(extras)
    yield from _pinned_versions(extras, remedy)
    for module in dict.fromkeys(module for extra in extras for module in _MODULES[extra]):
        if module != "scann" or not lacking:  # importing it would end this process, too
            yield _imports(module, remedy)


def _lacking_for_scann() -> list[str]:
    """Features that ScaNN's x86-64 wheel is compiled for and the processor lacks; other processors list no flags."""
    lines = _CPU_INFO.read_text(encoding="utf-8").splitlines() if _CPU_INFO.exists() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), _SCANN_NEEDS)
    return [flag for flag in _SCANN_NEEDS if flag not in flags]


def _install(extras: Sequence[str]) -> str:
    """The command in docs/environment.md for such a machine: without the lock, pip would install untested versions."""
    if tuple(extras) == EXTRAS:
        return _REINSTALL
    if "beam" in extras:  # TFT declares another TensorFlow than the lock has
        return "pip install --no-deps -r requirements.lock && pip install --no-deps ."
    return f"pip install '.[{','.join(extras)}]' -c requirements.lock"


def _pinned_versions(extras: Sequence[str], remedy: str) -> Iterator[Finding]:
    try:
        every = [Requirement(text) for text in metadata.requires(DISTRIBUTION) or ()]
    except metadata.PackageNotFoundError:  # e.g. a checkout that is only on PYTHONPATH
        yield Finding(DISTRIBUTION, False, "not installed", remedy)
        return
    wanted = [pin for pin in every if pin.marker is None or any(pin.marker.evaluate({"extra": x}) for x in extras)]
    pins = {(pin.name, pin.specifier) for pin in wanted if any(clause.operator == "==" for clause in pin.specifier)}
    for name, specifier in sorted(pins, key=str):  # extras may share one
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "not installed"
        ok = found != "not installed" and specifier.contains(found)
        yield Finding(f"{name}{specifier}", ok, found, remedy)


def _imports(module: str, remedy: str) -> Finding:
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # an import may fail in any way, e.g. an undefined symbol
        return Finding(f"import {module}", False, str(error).partition("\n")[0] or type(error).__name__, remedy)
    return Finding(f"import {module}", True, getattr(loaded, "__version__", "imported"))
