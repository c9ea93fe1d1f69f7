"""What callers in Python hand in, as the arrays of a request: the one way in for client and session.

What they easily get wrong is refused, because TensorFlow would answer: letters as ids, one user's list as many users'.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from contracts.names import Request
from serving.signature_spec import Arrays, Input, SignatureSpec


def given_inputs(histories: Sequence[Sequence[str]], inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """All inputs by name, as values that can be read repeatedly, for the checks and for every try.

    Raises:
        ValueError: histories are given twice, or not as lists, or their marks do not fit them.
    """
    if Request.HISTORY in inputs:
        raise ValueError(
            f"the histories are the first argument: leave out {Request.HISTORY}={inputs[Request.HISTORY]!r}"
        )
    given = {name: _kept(value) for name, value in {Request.HISTORY: histories, **inputs}.items()}
    _require_a_list_a_user(given[Request.HISTORY])
    _require_a_mark_an_event(given[Request.HISTORY], given.get(Request.HISTORY_IS_CONTEXT))
    return given


def request_arrays(spec: SignatureSpec, given: Mapping[str, Any], rows: int) -> Arrays:
    """The given inputs, in the servable's dtypes, with a row for each of `rows` users or items.

    Every input of variable width begins with a place of padding, because TF Serving repeats the first value when it
    pads a batch. Events marked as context are left out for a model that reads none, as after a rollback to such a
    model. None is the same as leaving an input out.

    Raises:
        ValueError: the servable has no such input, or the value does not fit it, or there is no such merge.
    """
    read = {name: value for name, value in _as_read(spec, given).items() if value is not None}
    spec.require_known(read)
    return spec.checked({name: _array(spec.inputs[name], value, rows) for name, value in read.items()})


def require_ids(item_ids: Sequence[str]) -> None:
    """Raises ValueError if it is a single string, whose letters would each be an id."""
    if isinstance(item_ids, str | bytes):
        raise ValueError(f"item_ids must be a list; for one item, write [{item_ids!r}]")


def without_context(histories: Sequence[Sequence[str]], is_context: Sequence[Sequence[bool | None]]) -> list[list[str]]:
    """The histories without the marked events, for a model that reads no context."""
    return [
        [item for item, marked in zip(*row, strict=True) if not marked]
        for row in zip(histories, is_context, strict=True)
    ]


def _kept(value: Any) -> Any:
    """The value, with iterators replaced by lists, also within it: an iterator can be read only once."""
    if not _is_list(value):
        return value
    return [list(one) if isinstance(one, Iterator) else one for one in value]


def _is_list(value: Any) -> bool:
    """Whether it holds values; text and NumPy arrays of no dimension are single values."""
    is_single = isinstance(value, str | bytes) or getattr(value, "ndim", None) == 0
    return isinstance(value, Iterable) and not is_single


def _require_a_list_a_user(histories: Sequence[Sequence[str]]) -> None:
    """Refuses a flat list, which would be one history for as many users as it has items, and text, one of letters."""
    for history in [histories] if isinstance(histories, str | bytes) else histories:
        if isinstance(history, str | bytes):
            raise ValueError(
                f"histories must hold a list of item ids per user; for one user, write [[{history!r}, ...]]"
            )


def _require_a_mark_an_event(histories: Sequence[Sequence[str]], marks: Any) -> None:
    """Requires a mark per event: padding goes before each list, so fewer marks would apply to the last events."""
    if marks is None:
        return
    if not _is_list(marks):
        raise ValueError(f"input {Request.HISTORY_IS_CONTEXT!r} must hold a list per user; got {marks!r}")
    lengths = [[len(one) for one in lists if _is_list(one)] for lists in (list(histories), list(marks))]
    if lengths[0] != lengths[1]:
        raise ValueError(
            f"input {Request.HISTORY_IS_CONTEXT!r} must hold a list per user, with a value per event of the history: "
            f"the histories have {lengths[0]} events, the lists {lengths[1]} values"
        )
    if broken := [mark for one in filter(_is_list, marks) for mark in one if mark not in (True, False, None)]:
        raise ValueError(f"input {Request.HISTORY_IS_CONTEXT!r} must hold true or false; got {broken[0]!r}")


def _as_read(spec: SignatureSpec, given: Mapping[str, Any]) -> Mapping[str, Any]:
    marks = given.get(Request.HISTORY_IS_CONTEXT)
    if marks is None or Request.HISTORY_IS_CONTEXT in spec.inputs:
        return given
    read = {**given, Request.HISTORY: without_context(given[Request.HISTORY], marks)}
    del read[Request.HISTORY_IS_CONTEXT]
    return read


def _array(spec: Input, value: Any, rows: int) -> np.ndarray:
    """A row per user; an input of variable width is padded on the left, by at least one place."""
    if len(spec.shape) == 1 or spec.shape[1] is not None:
        value = list(value) if _is_list(value) else value
        if _is_list(value) and (any(map(_is_list, value)) or _is_none_of_each(spec, value, rows)):
            value = [[None] * (spec.shape[-1] or 1) if one is None else one for one in value]  # a list per user
        array = _cast(spec, np.asarray(value, object))
        if array.ndim > len(spec.shape):
            raise ValueError(f"input {spec.name!r} is nested too deeply: give one value for all, or one per user")
        if array.ndim == len(spec.shape) and len(array) not in (1, rows):
            raise ValueError(f"input {spec.name!r} must have one value, or one per user ({rows}); got {len(array)}")
        return np.broadcast_to(array, [rows, *array.shape[max(array.ndim - len(spec.shape) + 1, 0) :]])
    lists = [tuple(one) for one in _per_user(spec.name, value, rows)]
    padded = np.full([rows, 1 + max(map(len, lists), default=0)], spec.padding, object)
    for row, one in enumerate(lists):
        padded[row, padded.shape[1] - len(one) :] = one
    return _cast(spec, padded)


def _per_user(name: str, value: Any, rows: int) -> list[Any]:
    """A list for each of `rows` users, from that or from one list for all; None is an empty one."""
    if not _is_list(value):
        raise ValueError(f"input {name!r} must be a list, or one list per user; got {value!r}")
    lists = list(value)
    if not any(map(_is_list, lists)):
        lists = [lists] * rows
    if len(lists) != rows:
        raise ValueError(f"input {name!r} must hold a list per user ({rows}); got {len(lists)}")
    if broken := [one for one in lists if one is not None and not _is_list(one)]:
        raise ValueError(f"input {name!r} must hold a list per user; got {broken[0]!r} for one")
    return [() if one is None else one for one in lists]


def _is_none_of_each(spec: Input, value: Any, rows: int) -> bool:
    """Whether the list is left out for every user, as it may be for some."""
    return len(spec.shape) > 1 and len(value) == rows and all(one is None for one in value)


def _cast(spec: Input, values: np.ndarray) -> np.ndarray:
    """Casts to the input's dtype; None becomes what the servable takes for a missing value.

    Values that float32 cannot hold become infinite, for which the servable has rules.
    """
    flat = [spec.padding if value is None else value for value in values.ravel().tolist()]
    try:
        if spec.dtype == tf.string:
            cast = np.empty(len(flat), object)
            cast[:] = [_as_bytes(value) for value in flat]
        else:
            broken = [value for value in flat if spec.dtype.is_integer and value != int(value)]
            if broken:
                raise ValueError(f"{broken[0]!r} is not a whole number")
            with np.errstate(over="ignore"):
                cast = np.array(flat, spec.dtype.as_numpy_dtype)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"input {spec.name!r} must hold {spec.dtype.name}: {error}") from None
    return cast.reshape(values.shape)


def _as_bytes(value: Any) -> bytes:
    """Does not use bytes(value) for other types: for a number, that is as many zeros."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes):
        return value
    raise TypeError(f"{value!r} is not a string; ids are strings, so write str({value!r})")
