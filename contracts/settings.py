"""Every setting of the config tree: its key, its default, what it means."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic_core import to_jsonable_python

from contracts.config import Config, Section


@dataclass(frozen=True)
class Setting:
    """A leaf of the config tree.

    Attributes:
        key: a.b.c, as `--set` takes it; `a.b[].c` in the elements of a list, which are set together with the list.
        default: a JSON value; None if the setting is required.
        is_required: whether it must be set if its section is present.
        choices: the words that it may be; empty if it is not limited to a few words.
        meaning: one sentence.
    """

    key: str
    default: Any
    is_required: bool
    choices: tuple[str, ...]
    meaning: str

    def value_in(self, config: Config) -> Any:
        """The value in a config; the default if the config lacks the section, or has a list of such sections."""
        node: Any = config.model_dump(mode="json")
        for name in self.key.split("."):
            if not isinstance(node, dict) or name not in node:
                return self.default
            node = node[name]
        return node


def all_settings(kind: type[Section] = Config, prefix: str = "") -> Iterator[Setting]:
    """The settings of a section and of the sections below it, in the order of their definition."""
    for name, field in kind.model_fields.items():
        inner, is_list = _section_of(field.annotation)
        if inner is not None:
            yield from all_settings(inner, f"{prefix}{name}{'[]' if is_list else ''}.")
        else:
            required = field.is_required()
            default = None if required else to_jsonable_python(field.get_default(call_default_factory=True))
            yield Setting(
                f"{prefix}{name}", default, required, tuple(_choices(field.annotation)), field.description or ""
            )


def _section_of(annotation: Any, is_list: bool = False) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, and whether it holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation, is_list
    for part in get_args(annotation):
        found = _section_of(part, is_list or get_origin(annotation) is tuple)
        if found[0] is not None:
            return found
    return None, False


def _choices(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from map(str, get_args(annotation))
    else:
        for part in get_args(annotation):
            yield from _choices(part)
