"""The arrows between rooms, as docs/architecture.md has them: nothing may import against them. And what rooms need."""

import ast
import contextlib
import runpy
import sys
from collections.abc import Mapping
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "contracts": set(),
    "beam_jobs": {"contracts"},
    "trainer": {"contracts"},
    "serving": {"contracts", "trainer"},
    "pipeline": {"contracts", "beam_jobs", "trainer", "serving"},
}
FOREIGN = {
    "contracts": {"tensorflow", "apache_beam", "tensorflow_recommenders", "scann", "tensorflow_transform"},
    "beam_jobs": {"tensorflow_recommenders", "scann"},
    "trainer": {"apache_beam", "tensorflow_transform", "scann"},
    # TFT pins another TensorFlow than ScaNN's ops: a serving machine installs without it.
    "serving": {"apache_beam", "tensorflow_transform"},
    "pipeline": {"tensorflow", "apache_beam"},
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.split(".")[0])
    return modules


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_follow_the_arrows(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    forbidden = (set(MAY_IMPORT) - MAY_IMPORT[room] - {room}) | FOREIGN[room]
    against = {str(file.relative_to(ROOT)): sorted(imported_modules(file) & forbidden) for file in files}
    assert {file: modules for file, modules in against.items() if modules} == {}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_parts_of_a_room_import_one_another_in_one_direction(room: str) -> None:
    """A part is a folder with all that is in it, or a file beside the folders."""
    imports: dict[str, set[str]] = {}
    for file in (ROOT / room).rglob("*.py"):
        part = file.relative_to(ROOT / room).parts[0].removesuffix(".py")
        names = [name.split(".") for name in first_party(file)]
        of_room = {name[1] for name in names if name[0] == room and len(name) > 1}
        imports.setdefault(part, set()).update(of_room - {part})
    assert any(imports.values())
    TopologicalSorter(imports).prepare()  # raises CycleError


PARTS = {room: {path.parent.name for path in (ROOT / room).glob("*/__init__.py")} for room in MAY_IMPORT}
"""Room -> its folders."""


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_the_docs_name_every_folder(room: str) -> None:
    """Each folder of the three large rooms is in the list of docs/architecture.md, those of the others beside them."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rooms = page.split("\n## ")[1]
    assert {folder for folder in PARTS[room] if f"`{folder}/`" not in rooms} == set()


ON_THEIR_OWN = {"client", "server", "deploy"}
"""Folders of `serving/` that not every serving machine runs."""

EXTRAS = {
    ("beam",): ["beam_jobs/**/*.py"],
    ("train",): ["trainer/**/*.py"],
    ("serving",): ["serving/*.py", *(f"serving/{folder}/*.py" for folder in sorted(PARTS["serving"] - ON_THEIR_OWN))],
    ("serving", "server"): ["serving/**/*.py"],
}
"""Extras that docs/environment.md names -> the files that they are for."""


def files_that_load(patterns: list[str]) -> set[Path]:
    """Files that come with those of the patterns: what they import of the rooms, and what that imports."""
    left, found = [file for pattern in patterns for file in ROOT.glob(pattern)], set[Path]()
    while left:
        file = left.pop()
        if file not in found:
            found.add(file)
            left += [path for name in first_party(file) for path in files_of(name)]
    return found


def first_party(file: Path) -> set[str]:
    """Dotted names that a file imports of the rooms, wherever in it."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in MAY_IMPORT}


def files_of(name: str) -> list[Path]:
    """Files that are run where a dotted name, or what lies in it, is imported."""
    parts = name.split(".")
    steps = [ROOT.joinpath(*parts[:end]) for end in range(1, len(parts) + 1)]
    return [path for step in steps for path in (step / "__init__.py", step.with_suffix(".py")) if path.exists()]


def installed_by(extras: tuple[str, ...], given: Mapping[str, list[str]]) -> set[str]:
    """Distributions that the extras install, by what these declare, without their own extras."""
    left = [*given[""], *(requirement for extra in extras for requirement in given[extra])]
    found = set[str]()
    while left:
        requirement = Requirement(left.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # what the lock leaves out
            left += metadata.requires(name) or []
    return found


@pytest.mark.parametrize("extras", EXTRAS, ids="+".join)
def test_an_extra_installs_what_its_rooms_import(extras: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, list[str]] = {}

    def setup(install_requires: list[str], extras_require: dict[str, list[str]], **_: object) -> None:
        given.update({"": install_requires, **extras_require})

    monkeypatch.setattr("setuptools.setup", setup)
    runpy.run_path(str(ROOT / "setup.py"))
    provided, of_module = installed_by(extras, given), metadata.packages_distributions()
    missing = {
        module
        for file in files_that_load(EXTRAS[extras])
        for module in imported_modules(file)
        - set(MAY_IMPORT)
        - sys.stdlib_module_names
        - {"_typeshed"}  # of types alone
        if not {canonicalize_name(name) for name in of_module.get(module, [module])} & provided
    }
    assert missing == set()


def test_an_installation_has_every_file_of_the_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image or a manifest that is only in the checkout would be missing where the project was installed."""
    given: dict[str, list[str]] = {}
    monkeypatch.setattr("setuptools.setup", lambda package_data, **_: given.update(package_data))
    runpy.run_path(str(ROOT / "setup.py"))
    files = [path for room in MAY_IMPORT for path in (ROOT / room).rglob("*") if path.is_file()]
    left_out = {
        path.name
        for path in files
        if path.suffix not in {".py", ".pyc"} and not any(path.match(pattern) for pattern in given[""])
    }
    assert left_out == set()
    assert (ROOT / "serving" / "deploy" / "models.config") in files


def test_keras_2_is_chosen_before_tensorflow() -> None:
    for room in set(MAY_IMPORT) - {"contracts"}:
        first = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body[1]
        assert isinstance(first, ast.Import), room
        assert first.names[0].name == "contracts", room
