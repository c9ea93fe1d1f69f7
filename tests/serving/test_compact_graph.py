"""A compact SavedModel answers as TensorFlow's own does, and holds less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scann  # noqa: F401  (registers the ops that the servable holds)
import tensorflow as tf
from tensorflow.core.framework import function_pb2
from tensorflow.core.protobuf import saved_model_pb2

from contracts.layout import SAVED_MODEL
from serving.graph.compact_graph import make_compact, save_compact


class _Module(tf.Module):
    """Functions with equal constants: in the body, in both branches of a condition, returned, and under control."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def answer(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        rows = tf.reshape(tf.constant([1.0, 2.0, 3.0]) * x[:, None], [-1])
        rows = tf.reshape(rows, [-1]) + tf.reduce_sum(tf.constant([1.0, 2.0, 3.0]))
        with tf.control_dependencies([tf.constant(7), tf.debugging.assert_all_finite(x, "x")]):
            seven, again = tf.constant(7), tf.constant(7)
        branch = tf.cond(x[0] > 0, lambda: tf.constant(2) + tf.constant(2), lambda: tf.constant(3) * tf.constant(3))
        returned, returned_again = tf.constant(5), tf.constant(5)
        return {"rows": rows, "sum": seven + again + branch, "five": returned, "also": returned_again}


def _functions(path: Path) -> list[function_pb2.FunctionDef]:
    saved = saved_model_pb2.SavedModel.FromString((path / SAVED_MODEL).read_bytes())
    return list(saved.meta_graphs[0].graph_def.library.function)


def _repeated_constants(functions: list[function_pb2.FunctionDef]) -> int:
    repeated = 0
    for function in functions:
        values = [
            node.attr["value"].SerializeToString(deterministic=True)
            for node in function.node_def
            if node.op == "Const" and not node.input and not node.device
        ]
        repeated += len(values) - len(set(values))
    return repeated


@pytest.mark.parametrize("x", [[2.0, 3.0], [-2.0]])
def test_the_answers_are_those_of_the_module(tmp_path: Path, x: list[float]) -> None:
    module = _Module()
    save_compact(module, tmp_path / "compact", module.answer)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures=module.answer)
    # 1, 2, 3 times each x, plus 1 + 2 + 3; 7 + 7 plus 2 + 2 or 3 * 3
    rows = [factor * one + 6 for one in x for factor in (1, 2, 3)]
    for name in ("compact", "plain"):
        answer = tf.saved_model.load(str(tmp_path / name)).signatures["serving_default"](tf.constant(x))
        np.testing.assert_allclose(answer["rows"], rows)
        assert int(answer["sum"]) == 14 + (4 if x[0] > 0 else 9)
        assert int(answer["five"]) == int(answer["also"]) == 5
    with pytest.raises(tf.errors.InvalidArgumentError, match="x"):
        tf.saved_model.load(str(tmp_path / "compact")).signatures["serving_default"](tf.constant([np.nan]))


def test_no_constant_is_repeated_and_no_shape_is_stored(tmp_path: Path) -> None:
    module = _Module()
    save_compact(module, tmp_path / "compact", module.answer)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures=module.answer)
    plain, compact = _functions(tmp_path / "plain"), _functions(tmp_path / "compact")
    assert _repeated_constants(plain) > 5
    assert _repeated_constants(compact) == 0
    assert any("_output_shapes" in node.attr for function in plain for node in function.node_def)
    assert not any("_output_shapes" in node.attr for function in compact for node in function.node_def)


def test_the_servables_are_compact(servable: Path) -> None:
    assert _repeated_constants(_functions(servable)) == 0


def test_the_fingerprint_is_that_of_the_compact_graph(tmp_path: Path) -> None:
    module = _Module()
    save_compact(module, tmp_path / "compact", module.answer)
    tf.saved_model.save(module, str(tmp_path / "plain"), signatures=module.answer)
    compact, plain = (
        tf.saved_model.experimental.read_fingerprint(str(tmp_path / name)) for name in ("compact", "plain")
    )
    assert compact.saved_model_checksum != plain.saved_model_checksum
    assert compact.signature_def_hash == plain.signature_def_hash


def test_constants_of_other_types_or_with_inputs_are_kept_apart() -> None:
    function = function_pb2.FunctionDef()
    for name, value, inputs in (
        ("a", np.int32(1), []),
        ("b", np.int64(1), []),
        ("c", np.int32(1), ["^x"]),
        ("d", np.int32(1), []),
        ("e", np.float32(-0.0), []),
        ("f", np.float32(0.0), []),
    ):
        node = function.node_def.add(name=name, op="Const", input=inputs)
        node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    function.node_def.add(name="x", op="NoOp", input=["^d"])
    function.node_def.add(name="y", op="AddV2", input=["d:output:0", "given", "^c"])
    function.ret["result"], function.control_ret["done"] = "d:output:0", "d"
    make_compact(function)
    assert [node.name for node in function.node_def] == ["a", "b", "c", "e", "f", "x", "y"]
    assert list(function.node_def[5].input) == ["^a"]
    assert list(function.node_def[6].input) == ["a:output:0", "given", "^c"]
    assert function.ret["result"] == "a:output:0"
    assert function.control_ret["done"] == "a"
