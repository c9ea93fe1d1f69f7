"""Every command and config key that the documentation shows exists, with options that the command takes."""

import ast
import functools
import importlib.util
import itertools
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from beam_jobs import group_sweep
from beam_jobs.common.command import command_of
from contracts.config import Config
from contracts.config_io import load_config
from pipeline.cli import main
from pipeline.retraining.commands import EXIT_CODES
from serving.deploy import models_config
from trainer import item_embeddings

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```(?:sh|bash)\n(.*?)```", re.DOTALL)
YAML = re.compile(r"```yaml\n(.*?)```", re.DOTALL)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
OURS = ("benchmarks", "beam_jobs", "serving", "trainer", "pipeline")
INLINE = re.compile(r"`((?:dnc|python -m) [^`<]+)`")
KEY = re.compile(r"`([a-z_]+(?:\.[a-z_]+)+)[`=]")
LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
ANCHOR = re.compile(r"\]\((?!https?://)([^)#]*)#([^)]+)\)")
FILE = re.compile(r"`((?:contracts|beam_jobs|trainer|serving|pipeline|benchmarks|tests|configs|docs)/[\w./{},-]*)`")
BLOCKS = re.compile(r"```.*?```", re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = "\n".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def commands_of_comments(config: Path) -> list[list[str]]:
    lines = [line[1:].strip() for line in config.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    parts = re.split(r"\n|&&", "\n".join(lines).replace("\\\n", " "))
    return [shlex.split(part.removesuffix("...")) for part in map(str.strip, parts) if part.startswith("dnc ")]


def leaves(command: click.Command = main) -> list[click.Command]:
    inner = command.commands.values() if isinstance(command, click.Group) else ()
    return [command, *(leaf for child in inner for leaf in leaves(child))]


def commands_of_help(command: click.Command) -> list[list[str]]:
    return [shlex.split(line) for line in (command.help or "").splitlines() if line.strip().startswith("dnc ")]


SHOWN = [
    *((page.name, words) for page in PAGES for words in commands(page)),
    *((config.name, words) for config in CONFIGS for words in commands_of_comments(config)),
    *((f"{command.name} --help", words) for command in leaves() for words in commands_of_help(command)),
]


@functools.cache
def flags_of(module: str) -> set[str]:
    """Flags that the source of a program declares, its own or the one that it hands its command line to."""
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    if module.startswith("beam_jobs.") and "from beam_jobs.common.command import main" in source:
        source = (ROOT / "beam_jobs" / "common" / "command.py").read_text(encoding="utf-8")
    return set(re.findall(r"""["'](--[a-z0-9-]+)["']""", source))


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
        if arguments[0] == "-m" and arguments[1].split(".")[0] in OURS:
            flags = {word.split("=")[0] for word in arguments[2:] if word.startswith("--")}
            assert flags <= flags_of(arguments[1]), page
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).exists(), f"{page} names {word}"
    config = next((ROOT / word for word in words if re.fullmatch(r"configs/[^/]+", word)), None)
    load_config(config, [value for flag, value in itertools.pairwise(words) if flag == "--set"])


SHOWN_YAML = [(page.name, block) for page in PAGES for block in YAML.findall(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("page", "block"), SHOWN_YAML, ids=[page for page, _ in SHOWN_YAML])
def test_shown_yaml_is_a_config(page: str, block: str) -> None:
    tree = yaml.safe_load(block)
    assert Config.model_validate(tree).model_fields_set == set(tree), page


NAMED = {(page.name, " ".join(span.split())) for page in PAGES for span in INLINE.findall(page.read_text("utf-8"))}


@pytest.mark.parametrize(("page", "line"), sorted(NAMED))
def test_a_command_within_a_sentence_exists(page: str, line: str) -> None:
    program, *words = shlex.split(line)
    if program == "dnc":
        command = main.commands[words[0]]
        taken = {opt for parameter in command.params for opt in parameter.opts}
    else:
        assert importlib.util.find_spec(words[1])
        taken = flags_of(words[1]) if words[1].split(".")[0] in OURS else set(words)
    assert {word for word in words if word.startswith("--")} <= taken, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_config_key_exists(page: Path) -> None:
    for key in KEY.findall(page.read_text(encoding="utf-8")):
        if key.split(".")[0] not in Config.model_fields or key in ("serving.client", "serving.json"):
            continue
        model: type[BaseModel] | None = Config
        for part in key.split("."):
            assert model and part in model.model_fields, f"{page.name} names {key}"
            model = model_of(model.model_fields[part].annotation)


def model_of(annotation: object) -> type[BaseModel] | None:
    kinds = [annotation, *get_args(annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


MODULES = [command_of("beam_jobs.ingest"), group_sweep.main, item_embeddings.main, models_config.main]
"""Command lines of `python -m`."""


@pytest.mark.parametrize("command", [*leaves(), *MODULES], ids=lambda command: command.name)
def test_every_option_says_what_it_is(command: click.Command) -> None:
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.opts for option in options if not option.help] == []
    # click names a function that reads a value after the function.
    assert [p.name for p in command.params if isinstance(p.type, click.types.FuncParamType) and not p.metavar] == []


@pytest.mark.parametrize("module", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda module: module.name)
def test_every_option_of_a_benchmark_says_what_it_is_by_default(module: Path) -> None:
    for call in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and getattr(call.func, "attr", None) == "add_argument":
            told = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert "help" in told, ast.unparse(call)
            if told.get("default", "[]") not in ("[]", "True"):  # a list begins empty, a flag shows it by its name
                assert "(default: %(default)s)" in told["help"], ast.unparse(call)


@pytest.mark.parametrize(
    "script",
    [path for path in sorted((ROOT / "benchmarks").glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")],
    ids=lambda path: path.name,
)
def test_a_benchmark_can_be_run_as_a_file(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As well as by `python -m`. Python then searches benchmarks/ first, whose serving.py would hide the package."""
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.setattr(sys, "path", [str(script.parent), *sys.path[1:]])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert (ended.value.code, sys.path[0]) == (0, str(ROOT))
    assert f"usage: {script.name}" in capsys.readouterr().out


@pytest.mark.parametrize("command", leaves()[1:], ids=lambda command: command.name)
def test_an_overview_of_commands_shows_a_whole_sentence_of_each(command: click.Command) -> None:
    """In 80 columns, as of a pipe; click cuts a longer first sentence."""
    assert not command.get_short_help_str(63).endswith("...")


def test_help_tells_every_exit_code() -> None:
    shown = CliRunner().invoke(main, ["--help"]).output
    assert re.search(r"0 done, 1 failed, 2 bad input.*`dnc retrain` also uses 3 .*and 4", shown.replace("\n ", ""))
    told = CliRunner().invoke(main, ["retrain", "--help"]).output
    assert all(re.search(rf"^ +{code} ", told, re.MULTILINE) for code in {2, *EXIT_CODES.values()})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def anchor(heading: str) -> str:
    """As GitHub makes it: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_named_file_exists(page: Path) -> None:
    named = [path for span in FILE.findall(page.read_text(encoding="utf-8")) for path in alternatives(span)]
    assert [path for path in named if not (ROOT / path).exists()] == []


def alternatives(span: str) -> list[str]:
    """Of a.{b,c}: a.b and a.c."""
    head, brace, rest = span.partition("{")
    words, _, tail = rest.partition("}")
    return [head + word + tail for word in words.split(",")] if brace else [span]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_anchors_are_headings(page: Path) -> None:
    for target, name in ANCHOR.findall(page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", BLOCKS.sub("", text), re.MULTILINE)
        assert name in map(anchor, headings), f"{page.name} leads to {target}#{name}"


def test_the_readme_shows_commands() -> None:
    assert len([words for name, words in SHOWN if name == "README.md"]) >= 8
