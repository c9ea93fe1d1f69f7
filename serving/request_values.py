"""The values that callers in Python hand in, as lists that a request takes.

What they easily get wrong is refused, because TensorFlow would answer: letters as ids, one user's list as many users'.
Client and session build on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def is_list(value: Any) -> bool:
    """Whether it holds values; text and NumPy arrays of no dimension are single values."""
    is_single = isinstance(value, str | bytes) or getattr(value, "ndim", None) == 0
    return isinstance(value, Iterable) and not is_single


def require_a_list_a_user(histories: Sequence[Sequence[str]]) -> None:
    """Refuses a flat list, which would be one history for as many users as it has items, and text, one of letters."""
    for history in [histories] if isinstance(histories, str | bytes) else histories:
        if isinstance(history, str | bytes):
            raise ValueError(
                f"histories must hold a list of item ids per user; for one user, write [[{history!r}, ...]]"
            )


def require_ids(item_ids: Sequence[str]) -> None:
    """Raises ValueError if it is a single string, whose letters would each be an id."""
    if isinstance(item_ids, str | bytes):
        raise ValueError(f"item_ids must be a list; for one item, write [{item_ids!r}]")


def per_user(name: str, value: Any, rows: int) -> list[Any]:
    """A list for each of `rows` users, from that or from one list for all; None is an empty one.

    Raises:
        ValueError: it is neither.
    """
    if not is_list(value):
        raise ValueError(f"input {name!r} must be a list, or one list per user; got {value!r}")
    lists = list(value)
    if not any(map(is_list, lists)):
        lists = [lists] * rows
    if len(lists) != rows:
        raise ValueError(f"input {name!r} must hold a list per user ({rows}); got {len(lists)}")
    if broken := [one for one in lists if one is not None and not is_list(one)]:
        raise ValueError(f"input {name!r} must hold a list per user; got {broken[0]!r} for one")
    return [() if one is None else one for one in lists]


def without_context(histories: Sequence[Sequence[str]], is_context: Sequence[Sequence[bool | None]]) -> list[list[str]]:
    """The histories without the marked events, for a model that reads no context."""
    return [
        [item for item, marked in zip(*row, strict=True) if not marked]
        for row in zip(histories, is_context, strict=True)
    ]
