"""The base class of the config tree's sections, and types of their fields."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator


def _as_tuple(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""One string or a list of strings."""


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, date | int | float) else value


Instant = Annotated[str, BeforeValidator(_as_text)]
"""A point in time: ISO 8601 (YAML reads a bare date as one) or seconds, ms, us or ns since 1970-01-01 UTC."""


class Section(BaseModel):
    """A node of the tree: frozen; unknown keys are errors, and so are infinite numbers and NaN.

    A loss with infinite weight, or a threshold of NaN, would show only after the earlier stages have run, and JSON, the
    format of artifacts and records, has no such numbers.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_section_is_none(cls, tree: Any) -> Any:
        """Drops sections without a value: YAML reads a section whose keys are all commented out as null."""
        if not isinstance(tree, dict):
            return tree
        sections = {name for name, field in cls.model_fields.items() if _is_section(field.annotation)}
        return {key: value for key, value in tree.items() if value is not None or key not in sections}


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
