"""What `dnc doctor` looks at."""

import importlib
import platform
from importlib import metadata
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.doctor import check


def test_every_pin_and_import_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Imports of the extras server, tune and schedule are among them, and one that fails is told with its remedy."""

    def load(module: str) -> None:
        if module == "optuna":
            raise ImportError  # some say nothing more

    monkeypatch.setattr(importlib, "import_module", load)
    found = list(check())
    findings = {finding.what: finding for finding in found}
    assert len(findings) == len(found)
    assert {"tensorflow==2.20.0", "import tensorflow", "import aiohttp", "import apscheduler"} <= findings.keys()
    failed = [what for what, finding in findings.items() if what.startswith("import") and not finding.ok]
    assert failed == ["import optuna"]
    assert findings["import optuna"].found == "ImportError"
    assert "make install" in findings["import optuna"].remedy


def test_a_checkout_that_nobody_installed_is_told_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    monkeypatch.setattr(importlib, "import_module", lambda module: None)
    findings = {finding.what: finding for finding in check()}
    missing = findings["dnc-retrieval"]
    assert (missing.ok, missing.found) == (False, "not installed") and "make install" in missing.remedy
    assert findings["import tensorflow"].ok  # the other checks go on


@pytest.mark.parametrize(("machine", "ok"), [("x86_64", True), ("aarch64", False)])
def test_the_beam_side_needs_a_processor_that_it_has_wheels_for(
    machine: str, ok: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(importlib, "import_module", lambda module: None)
    assert [finding.ok for finding in check(["beam"]) if finding.what == "x86-64"] == [ok]
    assert "x86-64" not in {finding.what for finding in check(["server"])}


@pytest.mark.parametrize(
    ("line", "ok"),
    [("flags\t\t: sse4_2 avx avx2 fma", True), ("flags\t\t: sse4_2 avx fma", False), ("Features\t: fp asimd", True)],
    ids=["x86-64", "x86-64 without AVX2", "ARM"],
)
def test_a_processor_on_which_scann_would_end_the_process_is_told(
    line: str, ok: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\n\nprocessor\t: 1\n{line}\n")
    monkeypatch.setattr(doctor, "_CPU_INFO", tmp_path / "cpuinfo")
    imported = []
    monkeypatch.setattr(importlib, "import_module", imported.append)
    findings = {finding.what: finding for finding in check(["serving"])}
    processor = findings["processor"]
    assert (processor.ok, processor.found) == (ok, "all that ScaNN needs" if ok else "without avx2")
    assert ("scann" in imported) == ok
    assert "processor" not in {finding.what for finding in check(["train"])}


def test_a_machine_for_some_extras_needs_these_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(module: str) -> None:
        if module != "apache_beam":
            raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", load)
    findings = {finding.what: finding for finding in check(["beam"])}
    assert not [what for what in findings if "scann" in what or what.startswith("tensorflow==")]
    assert findings["import apache_beam"].ok
    assert findings["import tensorflow_transform"].remedy.startswith("pip install --no-deps -r requirements.lock")


@pytest.mark.parametrize("extras", [["beam"], ["train"], ["serving"], ["serving", "server"]], ids=",".join)
def test_the_remedy_is_what_the_documentation_says(extras: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Other installs take other versions: of the Beam side alone, pip takes TensorFlow 2.21."""

    def load(module: str) -> None:
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(importlib, "import_module", load)
    [remedy] = {finding.remedy for finding in check(extras) if finding.what.startswith("import ")}
    page = Path(__file__).parents[2] / "docs" / "environment.md"
    assert f"`{remedy.replace(chr(39), '')}`" in page.read_text(encoding="utf-8")
