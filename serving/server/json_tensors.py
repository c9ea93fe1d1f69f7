"""TF Serving's JSON: a request's rows (`instances`) or columns (`inputs`), and the answer in the same form."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from contracts.names import Signature
from serving.server.errors import invalid
from serving.signature_spec import Arrays, Input, SignatureSpec

Format = Literal["instances", "inputs"]
_ANSWER: dict[Format, str] = {"instances": "predictions", "inputs": "outputs"}
_BYTES_SUFFIX = "_bytes"
"""String outputs with this suffix are bytes, written in base64."""
_BYTE_ORDER_MARK = "\ufeff"
"""Some programs begin UTF-8 with it; RFC 8259 lets a reader skip it."""
_LARGEST_EXACT = {tf.float32: 2**24 - 1, tf.float64: 2**53 - 1}
"""Whole numbers up to it are exact in the dtype (`IsLosslessDecimal` in TF Serving's json_tensor.cc)."""

_ALWAYS_VALUES = 2**20
"""A body may have as many values even if no single input may: it has several, and they are parsed in a tenth of a
second. At 12 bytes for an item's id, 16 MB hold no more."""


def parse_body(body: bytes, max_elements: int) -> dict[str, Any]:
    """The JSON object of a predict request; NaN, Infinity and -Infinity are numbers, as in TF Serving.

    Raises:
        RequestError: INVALID_ARGUMENT if it is not a JSON object in UTF-8, or has more than `max_elements` lists and
            objects, or more values than that (and than 2^20): 16 MB can hold millions, which would take the loop
            seconds.
    """
    if (nested := body.count(b"[") + body.count(b"{")) > max_elements:
        raise invalid(f"the body has {nested} lists and objects, more than max_batch_elements={max_elements}")
    most = max(max_elements, _ALWAYS_VALUES)
    if (commas := body.count(b",")) > most:
        raise invalid(f"the body has {commas} commas, more than the {most} allowed: send it as several requests")
    try:
        value = json.loads(body.decode().removeprefix(_BYTE_ORDER_MARK))  # given bytes, it would take UTF-16, too
    except UnicodeDecodeError as error:
        remedy = 'encode it in UTF-8, and write values in another encoding as {"b64": "..."}'
        message = f"the body is not UTF-8 ({error.reason} at byte {error.start}): {remedy}"
        raise invalid(f"JSON Parse error: {message}") from None
    except RecursionError:
        raise invalid("JSON Parse error: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error}") from None
    except ValueError:  # whose message says how to change a Python setting
        raise invalid(
            f"JSON Parse error: a number has too many digits: write one of at most {sys.get_int_max_str_digits()}"
        ) from None
    if not isinstance(value, dict):
        raise invalid(f"the request must be a JSON object with 'instances' or 'inputs', got {_kind(value)}")
    return value


def requested_signature(body: Mapping[str, Any]) -> str:
    """The signature's name, serving_default if there is none.

    Raises:
        RequestError: INVALID_ARGUMENT if it is not a string.
    """
    name = body.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(f"'signature_name' must be a string, got {_kind(name)}")
    return name or Signature.SERVING_DEFAULT


def request_arrays(body: Mapping[str, Any], signature: SignatureSpec, max_elements: int) -> tuple[Arrays, Format]:
    """The inputs of a request, of at most `max_elements` values each, and the form that they are in.

    Raises:
        RequestError: INVALID_ARGUMENT; the message names the input and says what is wrong with it.
    """
    given = [form for form in _ANSWER if form in body]
    if len(given) != 1:
        raise invalid(f"the request must have exactly one of 'instances' and 'inputs', got {given or 'neither'}")
    form = given[0]
    columns = _columns(body["instances"], signature) if form == "instances" else _named(body["inputs"], signature)
    try:
        signature.require_known(columns)
    except ValueError as error:
        raise invalid(str(error)) from None
    arrays = {name: _array(signature.inputs[name], value, max_elements) for name, value in columns.items()}
    if not arrays and form == "instances":
        arrays = _defaults(signature, len(body[form]))
    return arrays, form


def response_body(outputs: Mapping[str, np.ndarray], form: Format) -> bytes:
    """The answer: `predictions`, a list of rows, or `outputs`, by name; a single output has no name."""
    columns = {name: _plain(name, value) for name, value in outputs.items()}
    answer: Any
    if len(columns) == 1:
        (answer,) = columns.values()
    elif form == "inputs":
        answer = columns
    else:
        answer = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({_ANSWER[form]: answer}, ensure_ascii=False).encode("utf-8", "replace")


def _columns(instances: Any, signature: SignatureSpec) -> dict[str, Any]:
    if not isinstance(instances, list) or not instances:
        raise invalid(f"'instances' must be a list with one value per row, got {_kind(instances)}")
    if not any(_is_named(row) for row in instances):
        return {_only_input(signature, "instances"): instances}
    names = list(instances[0]) if _is_named(instances[0]) else []
    for place, row in enumerate(instances):
        if not _is_named(row) or set(row) != set(names):
            raise invalid(f"'instances' must be objects with the same keys; element {place} differs from the first")
    return {name: [row[name] for row in instances] for name in names}


def _defaults(signature: SignatureSpec, rows: int) -> Arrays:
    """One input's default, for `rows` rows that leave out all inputs; empty if no input has a default."""
    found = {name: spec.default for name, spec in signature.inputs.items() if spec.default is not None}
    return {name: np.repeat(default, rows, axis=0) for name, default in list(found.items())[:1]}


def _named(inputs: Any, signature: SignatureSpec) -> dict[str, Any]:
    return inputs if _is_named(inputs) else {_only_input(signature, "inputs"): inputs}


def _only_input(signature: SignatureSpec, key: str) -> str:
    """The input that an unnamed value is for: the only one without a default."""
    needed = [name for name, spec in signature.inputs.items() if spec.default is None] or list(signature.inputs)
    if len(needed) != 1:
        raise invalid(f"'{key}' must give its inputs by name: {signature.name} has {', '.join(signature.inputs)}")
    return needed[0]


def _array(spec: Input, value: Any, max_elements: int) -> np.ndarray:
    rank = len(spec.shape)
    leaves, shape = [value], []
    for depth in range(rank):
        if not all(isinstance(leaf, list) for leaf in leaves):
            raise invalid(f"input {spec.name!r} must be a list nested {rank} deep, but is nested {depth} deep")
        sizes = {len(leaf) for leaf in leaves}
        if len(sizes) > 1:
            padding = repr(spec.padding.decode()) if isinstance(spec.padding, bytes) else spec.padding
            few, many = min(sizes), max(sizes)
            raise invalid(f"input {spec.name!r} has lists of {few} and {many} values; pad the shorter with {padding}")
        shape.append(sizes.pop() if sizes else spec.shape[depth] or 0)  # without rows, the columns are unknown
        if (size := len(leaves) * shape[-1]) > max_elements:
            raise invalid(f"input {spec.name!r} has {size} values, more than max_batch_elements={max_elements}")
        leaves = [item for leaf in leaves for item in leaf]
    if spec.dtype == tf.string:
        flat = np.empty([len(leaves)], object)
        flat[:] = [_text(spec.name, leaf) for leaf in leaves]
        return flat.reshape(shape)
    kinds = {type(leaf) for leaf in leaves}
    allowed = {bool} if spec.dtype == tf.bool else {int, float} if spec.dtype.is_floating else {int}
    if not kinds <= allowed:
        wrong = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise invalid(f"input {spec.name!r} must hold {spec.dtype.name}, got {_kind(wrong)}")
    if int in kinds and spec.dtype in _LARGEST_EXACT:
        _require_exact(spec, leaves)
    try:
        with np.errstate(over="raise"):
            return np.array(leaves, spec.dtype.as_numpy_dtype).reshape(shape)
    except (OverflowError, FloatingPointError):
        raise invalid(f"input {spec.name!r} has a value out of range for {spec.dtype.name}") from None


def _require_exact(spec: Input, leaves: Sequence[int | float]) -> None:
    """Raises RequestError if the dtype may round a number that is written without a decimal point.

    TF Serving does so, too; it reads numbers too large for 64 bits as if they had a decimal point.
    """
    largest = _LARGEST_EXACT[spec.dtype]
    for leaf in leaves:
        if type(leaf) is int and largest < abs(leaf) < 2**64:
            raise invalid(
                f"input {spec.name!r} holds the whole number {leaf}, but {spec.dtype.name} is exact only up to "
                f"{largest}: write it with a decimal point to have it rounded"
            )


def _text(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str):
        try:
            return _from_base64(value["b64"])
        except ValueError as error:
            raise invalid(f"input {name!r} has a value that is not base64: {error}") from None
    raise invalid(f"input {name!r} must hold strings, got {_kind(value)}")


def _from_base64(text: str) -> bytes:
    """Decodes as TF Serving does (absl::Base64Unescape): white space is ignored, and padding may be left out."""
    data = b"".join(text.encode().split())
    return base64.b64decode(data if b"=" in data else data + b"=" * (-len(data) % 4), validate=True)


def _is_named(value: Any) -> bool:
    return isinstance(value, dict) and set(value) != {"b64"}


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return "an empty list" if value == [] else names.get(type(value), "null")


def _plain(name: str, value: np.ndarray) -> Any:
    """As nested lists. A float32 is written with its own shortest digits, not with those of the same double."""
    if value.dtype == object:
        encode = _base64 if name.endswith(_BYTES_SUFFIX) else _decoded
        flat = np.empty(value.size, object)
        flat[:] = [encode(item) for item in value.ravel()]
        return flat.reshape(value.shape).tolist()
    if value.dtype == np.float32:
        return value.astype("U32").astype(np.float64).tolist()
    return value.tolist()


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def _base64(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}
