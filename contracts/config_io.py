"""Reading, overriding and printing the config tree."""

from __future__ import annotations

import functools
import json
import logging
import operator
import re
from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from contracts import storage
from contracts.config import Config
from contracts.config.effects import settings_without_effect

log = logging.getLogger(__name__)

_SECRET = ("retrain.webhook", "beam.options")
"""Keys whose values no message shows; dumps leave out the webhook, too."""
SECRET_OPTION = re.compile(r"\w*(?:secret|password|session_token|access_key|connection_string)\w*")
"""Matches names of pipeline options that hold keys to an object store."""
_LONGEST_VALUE = 500
"""Characters of a refused value that are shown: it may be a whole section, or the list of a year's files."""
_SHOWN_CHARACTERS = 40


class ConfigError(ValueError):
    """A config that cannot be used; the message names file, key, value and remedy."""


class _Loader(yaml.SafeLoader):
    """Refuses duplicate keys: of two sections with the same name, PyYAML silently keeps the last.

    A value that does not fit its explicit tag, as in `!!int ''`, is a YAML error, too: PyYAML assumes that it fits, and
    fails somewhere inside.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # else PyYAML itself refuses it
            if not isinstance(key, yaml.ScalarNode):  # PyYAML itself refuses a list or a mapping as a key
                continue
            if key.value in lines:
                problem = f"{key.value!r} appears twice, first in line {lines[key.value]}: merge the two"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            lines[key.value] = key.start_mark.line + 1
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # for an impossible date, PyYAML does not say which
            problem = f"{str(node.value)[:_SHOWN_CHARACTERS]!r}: {error}"
        except (AttributeError, IndexError, KeyError, TypeError):
            kind = node.tag.rpartition(":")[2]
            problem = f"{str(node.value)[:_SHOWN_CHARACTERS]!r} is not of type {kind}: leave the tag !!{kind} out"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _parsed(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def load_config(path: Path | None, overrides: Iterable[str] = (), *, is_runs: bool = False) -> Config:
    """Reads a YAML file and applies `a.b=c` overrides, values being YAML.

    From then on, object stores are reached with the config's `beam.options`, whatever the process does with it.

    Args:
        path: the file; None for the defaults.
        overrides: later ones win.
        is_runs: whether a run has written the file, perhaps of earlier code, with settings that no longer exist. These
            are left out.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value does not fit, or the user tower is one
            of a baseline, whose config `trainer/evaluation/baselines.py` derives.
    """
    tree = read_yaml(path) if path else {}
    if is_runs:
        _leave_out_retired(tree)
    overrides = list(overrides)
    for override in overrides:
        _apply(tree, override)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(_source(path, overrides), error)) from None
    if config.model.user_tower in {"mind", "comirec", "user_id"}:
        raise ConfigError(
            f"{_source(path, overrides)} is not valid:\n  model.user_tower: {config.model.user_tower} is only for "
            "baselines, which are measured beside a model and cannot be served: choose transformer, gru or mean here, "
            "and list mind, comirec or matrix_factorisation in evaluation.baselines"
        )
    for idle in settings_without_effect(config):
        log.warning("%s: %s", _source(path, overrides), idle)
    storage.connect(config.beam.options)
    return config


def read_stored_config(path: Path) -> Config:
    """Reads the config that a run left beside its model, as JSON.

    Settings that no longer exist are left out, but for those of the model, which may have given its weights a meaning
    that they do not have now.

    Raises:
        ConfigError: another version of the code wrote it, in a form that this one does not know, or it is damaged.
    """
    damaged = "Another version of the code wrote it, or it is damaged: train that model again"
    try:
        tree = json.loads(path.read_bytes())
        _leave_out_retired(tree, but_of="model")
        return Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise ConfigError(f"{explain(path, error)}\n{damaged}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON ({error})\n{damaged}") from None


def _leave_out_retired(tree: Any, but_of: str | None = None) -> None:
    """Removes from a tree that a run has written the keys that are no settings any more, but for those of a section."""
    try:
        Config.model_validate(tree)
    except ValidationError as error:
        for problem in error.errors():
            place = problem["loc"]
            if problem["type"] == "extra_forbidden" and place[0] != but_of:
                del functools.reduce(operator.getitem, place[:-1], tree)[place[-1]]


def dump_config(config: Config) -> str:
    """The resolved tree as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def dump_changes(config: Config) -> str:
    """The settings that differ from the defaults, as YAML for display."""
    tree = without_keys(config).model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def without_keys(config: Config) -> Config:
    """The config for display, with "..." in place of keys to an object store, since logs are kept.

    Such a key follows its option's name after "=", or is the next word.
    """
    shown: list[str] = []
    hides_next = False
    for option in config.beam.options:
        name, equals, _ = option.partition("=")
        is_secret = SECRET_OPTION.fullmatch(name.removeprefix("--")) is not None
        shown.append("..." if hides_next else f"{name}=..." if is_secret and equals else option)
        hides_next = is_secret and not equals
    beam = config.beam.model_copy(update={"options": tuple(shown)})
    return config.model_copy(update={"beam": beam})


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; empty for an empty file.

    Raises:
        ConfigError: the file is missing, not YAML, names a key twice, or does not hold a mapping.
    """
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}; name a readable YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of sections at the top; got a {type(tree).__name__}")
    return tree


def parse_assignments(overrides: Iterable[str]) -> dict[str, Any]:
    """`a.b=c` texts as {"a.b": c}, the values being YAML.

    Raises:
        ConfigError: one does not have this form.
    """
    return dict(_parse(override) for override in overrides)


def _parse(override: str) -> tuple[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(f"--set {override!r} must have the form section.key=value, e.g. --set training.epochs=5")
    try:
        return key.strip(), _parsed(text)
    except yaml.YAMLError as error:
        quoted = re.sub(r'[$`"\\]', r"\\\g<0>", text.replace("'", "''"))
        raise ConfigError(
            f"--set {override!r}: the value is not YAML ({getattr(error, 'problem', error)}). If it is text, quote it "
            f"twice, for the shell and for YAML: --set \"{key.strip()}='{quoted}'\""
        ) from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, value = _parse(override)
    *sections, leaf = key.split(".")
    node = tree
    for section in sections:
        if node.get(section) is None:  # as YAML reads it if all of its keys are commented out
            node[section] = {}
        node = node[section]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override!r}: {section!r} is a value, not a section")
    node[leaf] = value


def _source(path: Path | None, overrides: list[str]) -> str:
    """Where a config is from."""
    return f"{path} with --set" if path and overrides else str(path or "the config")


def explain(source: Path | str, error: ValidationError, listed_by: str = "see `dnc settings`") -> str:
    """Describes what is wrong with each key read from `source`.

    Args:
        listed_by: says where the known keys are listed.
    """
    lines = [f"{source} is not valid:"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        lines.append("  " + f"{key}: " * bool(key) + _said(problem, key, listed_by))
    return "\n".join(lines)


def _said(problem: ErrorDetails, key: str, listed_by: str) -> str:
    kind, value, message = problem["type"], problem["input"], problem["msg"]
    if kind == "extra_forbidden":
        return f"unknown key; remove it, or {listed_by}"  # without its value, which a mistyped secret's would show
    if kind == "missing":
        return f"it must be given; {listed_by}"
    if kind == "value_error":  # ours, which names the value if that helps
        return message.removeprefix("Value error, ")
    if value is None:
        return "it is empty, as if from an unset shell variable: give a value, or leave the key out"
    if kind == "model_type":
        message = f"it must be a section with keys of its own; {listed_by}"
    elif kind == "string_type" and isinstance(value, bool | int | float | date):
        message = "must be text: put it in quotes, since YAML does not read a bare yes, 1 or 2024-01-31 as text"
    is_secret = any(key.startswith(secret) or secret.startswith(f"{key}.") for secret in _SECRET)
    if is_secret or kind == "json_invalid":  # in which case the value is the whole file
        return message
    shown = repr(value)
    return f"{message}; got {shown if len(shown) <= _LONGEST_VALUE else shown[:_LONGEST_VALUE] + '...'}"
