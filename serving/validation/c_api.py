"""A servable under TensorFlow's C API: the loader of TF Serving and of every other language.

`python -m serving.validation.c_api PLAN ANSWER` runs a plan in a separate process, which must not import
TensorFlow's Python package: both would load the library. `loaders.CServable` writes the plan.

A plan is JSON: {"framework", "library": paths of TensorFlow's shared objects, "op_libraries": paths,
"servable": version directory, "inputs": {tensor name: {"dtype", "shape", "values"}}, "outputs":
[tensor names]}; the answer is {tensor name: {"dtype", "shape", "values"}}.
"""

from __future__ import annotations

import ctypes
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

_Pointer = ctypes.c_void_p
_Values = dict[str, Any]

_DTYPES: dict[str, tuple[int, Any]] = {
    "float32": (1, ctypes.c_float),
    "int32": (3, ctypes.c_int32),
    "string": (7, None),
    "int64": (9, ctypes.c_int64),
    "bool": (10, ctypes.c_bool),
}
"""name -> TF_DataType and C type."""
_STRING_BYTES = 24
"""sizeof(TF_TString)."""


class _Output(ctypes.Structure):
    """TF_Output: a tensor of the graph."""

    _fields_ = (("operation", _Pointer), ("index", ctypes.c_int))


_Text, _Int, _Int64, _Size = ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
_Array = ctypes.POINTER

_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "TF_NewStatus": (_Pointer, ()),
    "TF_GetCode": (_Int, (_Pointer,)),
    "TF_Message": (_Text, (_Pointer,)),
    "TF_LoadLibrary": (_Pointer, (_Text, _Pointer)),
    "TF_NewGraph": (_Pointer, ()),
    "TF_NewSessionOptions": (_Pointer, ()),
    "TF_LoadSessionFromSavedModel": (
        _Pointer,
        (_Pointer, _Pointer, _Text, _Array(_Text), _Int, _Pointer, _Pointer, _Pointer),
    ),
    "TF_GraphOperationByName": (_Pointer, (_Pointer, _Text)),
    "TF_AllocateTensor": (_Pointer, (_Int, _Array(_Int64), _Int, _Size)),
    "TF_DeleteTensor": (None, (_Pointer,)),
    "TF_TensorData": (_Pointer, (_Pointer,)),
    "TF_TensorType": (_Int, (_Pointer,)),
    "TF_NumDims": (_Int, (_Pointer,)),
    "TF_Dim": (_Int64, (_Pointer, _Int)),
    "TF_StringInit": (None, (_Pointer,)),
    "TF_StringCopy": (None, (_Pointer, _Text, _Size)),
    "TF_StringGetDataPointer": (_Pointer, (_Pointer,)),
    "TF_StringGetSize": (_Size, (_Pointer,)),
    "TF_SessionRun": (
        None,
        # session, options; inputs, their values and number; outputs, theirs; targets and number; metadata; status
        (_Pointer, _Pointer, *(_Array(_Output), _Array(_Pointer), _Int) * 2, _Pointer, _Int, _Pointer, _Pointer),
    ),
}
"""The functions used: result and arguments, as in tensorflow/c/c_api.h and tf_tstring.h."""


class CSession:
    """One servable, loaded once. Its memory is freed when the process ends."""

    def __init__(self, library: Path, framework: Path, op_libraries: Sequence[Path], servable: Path):
        """Loads the libraries, then the servable.

        Raises:
            ValueError: TensorFlow refuses the servable; the message is TensorFlow's.
        """
        # The framework comes first, its symbols global: the op libraries look theirs up in it.
        ctypes.CDLL(str(framework), mode=ctypes.RTLD_GLOBAL)
        loaded = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        self._call: dict[str, Callable[..., Any]] = {}
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, name)
            function.restype, function.argtypes = result, arguments
            self._call[name] = function
        self._status = self._call["TF_NewStatus"]()
        for path in op_libraries:
            self._call["TF_LoadLibrary"](str(path).encode(), self._status)
            self._check(f"cannot load the ops of {path}")
        self._graph = self._call["TF_NewGraph"]()
        options, tags = self._call["TF_NewSessionOptions"](), (ctypes.c_char_p * 1)(b"serve")
        self._session = self._call["TF_LoadSessionFromSavedModel"](
            options, None, str(servable).encode(), tags, 1, self._graph, None, self._status
        )
        self._check(f"cannot load {servable}")

    def run(self, inputs: Mapping[str, _Values], outputs: Sequence[str]) -> dict[str, _Values]:
        """Feeds `inputs` and fetches `outputs`; values have the form that the module docstring gives."""
        fed = (_Output * len(inputs))(*(self._tensor(name) for name in inputs))
        values = (_Pointer * len(inputs))(*(self._encode(**value) for value in inputs.values()))
        fetched = (_Output * len(outputs))(*(self._tensor(name) for name in outputs))
        results = (_Pointer * len(outputs))()
        self._call["TF_SessionRun"](
            self._session, None, fed, values, len(inputs), fetched, results, len(outputs), None, 0, None, self._status
        )
        for value in values:
            self._call["TF_DeleteTensor"](value)
        self._check("the request failed")
        answer = {name: self._decode(result) for name, result in zip(outputs, results, strict=True)}
        for result in results:
            self._call["TF_DeleteTensor"](result)
        return answer

    def _check(self, what: str) -> None:
        if self._call["TF_GetCode"](self._status):
            raise ValueError(f"{what}: {self._call['TF_Message'](self._status).decode(errors='replace')}")

    def _tensor(self, name: str) -> _Output:
        operation, _, index = name.partition(":")
        found = self._call["TF_GraphOperationByName"](self._graph, operation.encode())
        if not found:
            raise ValueError(f"the servable's graph has no operation {operation!r}")
        return _Output(found, int(index or 0))

    def _encode(self, dtype: str, shape: Sequence[int], values: Sequence[Any]) -> int:
        code, element = _DTYPES[dtype]
        width = ctypes.sizeof(element) if element else _STRING_BYTES
        dims = (ctypes.c_int64 * len(shape))(*shape)
        tensor = self._call["TF_AllocateTensor"](code, dims, len(shape), width * len(values))
        data = self._call["TF_TensorData"](tensor)
        if element and values:
            ctypes.memmove(data, (element * len(values))(*values), width * len(values))
        for place, value in enumerate(values if not element else ()):
            text = value.encode()
            self._call["TF_StringInit"](data + place * width)
            self._call["TF_StringCopy"](data + place * width, text, len(text))
        return tensor

    def _decode(self, tensor: int) -> _Values:
        code = self._call["TF_TensorType"](tensor)
        dtype, element = next((name, element) for name, (known, element) in _DTYPES.items() if known == code)
        shape = [self._call["TF_Dim"](tensor, axis) for axis in range(self._call["TF_NumDims"](tensor))]
        size, data = math.prod(shape), self._call["TF_TensorData"](tensor)
        values: list[Any]
        if size == 0:
            values = []
        elif element:
            values = list((element * size).from_address(data))
        else:
            values = [self._text(data + place * _STRING_BYTES) for place in range(size)]
        return {"dtype": dtype, "shape": shape, "values": values}

    def _text(self, string: int) -> str:
        pointer, length = self._call["TF_StringGetDataPointer"](string), self._call["TF_StringGetSize"](string)
        return ctypes.string_at(pointer, length).decode()


def main() -> None:
    """Runs a plan; if it cannot be run, exits with one line on stderr and status 1."""
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        libraries = [Path(path) for path in plan["op_libraries"]]
        session = CSession(Path(plan["library"]), Path(plan["framework"]), libraries, Path(plan["servable"]))
        answer = session.run(plan["inputs"], plan["outputs"])
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    Path(sys.argv[2]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
