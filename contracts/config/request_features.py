"""Request features: what is known when a user asks, such as the page or the device."""

from __future__ import annotations

import keyword
import math
from collections.abc import Sequence

from pydantic import Field, model_validator

from contracts.config.section import Section, Strings
from contracts.names import REQUEST_INPUTS, RESERVED_FEATURE_NAMES

_MOST_CODES = 2**31 - 1
"""A request's values are coded as one int32, see `code_sizes`."""


class RequestFeature(Section):
    """A categorical column of the log whose value a request can give as well."""

    name: str = Field(description="name of the servable's input, and of the log's column unless `column` is set")
    column: str | None = Field(None, description="the log's column; default: the name")
    values: Strings = Field(min_length=1, description="the known values; any other value counts as none")

    @property
    def column_name(self) -> str:
        """The log's column."""
        return self.column or self.name

    @model_validator(mode="after")
    def _can_be_told(self) -> RequestFeature:
        if self.name in RESERVED_FEATURE_NAMES:
            raise ValueError(
                f"a request feature may not be called {self.name!r}, a name that the servable or its client uses: give "
                f"it another name, and set column: {self.name}"
            )
        require_parameter(self.name, "request feature")
        if len(set(self.values)) != len(self.values) or "" in self.values:
            raise ValueError(
                f"the values of the request feature {self.name!r} must be distinct and not empty (an empty value means "
                f"none); got {list(self.values)}"
            )
        return self


def require_parameter(name: str, what: str) -> None:
    """Raises ValueError if `name` cannot be an input of a servable, which is a parameter of a Python function."""
    # TensorFlow names a placeholder after the parameter, and its names may not begin with _.
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name == "self" or name[0] == "_":
        raise ValueError(
            f"the {what} {name!r} becomes an input of the servable, so it needs a name that is valid for a Python "
            "parameter, contains only letters, digits and _, and begins with a letter: rename the column"
        )


def require_distinct(features: Sequence[RequestFeature], others: Sequence[str]) -> None:
    """Raises ValueError if a name occurs twice or in `others`, or if there are too many combinations of values.

    TensorFlow cannot distinguish inputs whose names differ only in case, the servable's own inputs included.
    """
    names = [*(feature.name for feature in features), *others]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"data.request_features and data.user_features name {', '.join(repeated)} twice: each input needs its own "
            "name"
        )
    known = {name.lower(): name for name in REQUEST_INPUTS}
    for name in names:
        if (other := known.setdefault(name.lower(), name)) != name:
            raise ValueError(
                f"data.request_features or data.user_features name {name!r}, which differs only in case from the "
                f"input {other!r}: rename the column"
            )
    if (combinations := math.prod(code_sizes(features))) > _MOST_CODES:
        raise ValueError(
            f"the values of data.request_features have {combinations:,} combinations, more than {_MOST_CODES:,}: list "
            "only the most frequent values"
        )


def code_sizes(features: Sequence[RequestFeature]) -> tuple[int, ...]:
    """The number of values of each feature, plus one for none.

    `np.ravel_multi_index` makes one code of an event's values: each counts from 1, and 0 stands for none.
    """
    return tuple(len(feature.values) + 1 for feature in features)
