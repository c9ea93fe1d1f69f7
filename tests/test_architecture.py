"""The arrows between rooms, as docs/architecture.md has them: nothing may import against them."""

import ast
from pathlib import Path

import pytest

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


def test_keras_2_is_chosen_before_tensorflow() -> None:
    for room in set(MAY_IMPORT) - {"contracts"}:
        first = ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8")).body[1]
        assert isinstance(first, ast.Import), room
        assert first.names[0].name == "contracts", room
