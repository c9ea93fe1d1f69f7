"""Every command that the documentation shows is one that exists, with options that it takes."""

import importlib.util
import re
import shlex
from pathlib import Path

import click
import pytest

from pipeline.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"```(?:sh|bash)\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


SHOWN = [(page.name, words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_shown_command_exists(page: str, words: list[str]) -> None:
    program, *arguments = words
    if program == "dnc":
        command: click.Command = main
        while isinstance(command, click.Group) and not arguments[0].startswith("-"):
            command = command.commands[arguments.pop(0)]
        if arguments != ["--help"]:
            command.make_context(command.name, arguments)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert [word for word in arguments if "=" not in word][-1] in targets
    elif program == "python":
        assert arguments[0] == "-m" or (ROOT / arguments[0]).exists()
        assert arguments[0] != "-m" or importlib.util.find_spec(arguments[1])
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), f"{page} names {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_readme_shows_commands() -> None:
    assert len([words for name, words in SHOWN if name == "README.md"]) >= 8
