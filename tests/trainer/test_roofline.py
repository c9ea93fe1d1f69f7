"""The operations that the training benchmark counts, against those of the graph that TensorFlow builds."""

import math

import tensorflow as tf

from benchmarks.training import LENGTH, catalogue, step_costs
from contracts.config import Config
from trainer.models.build import build_model


def test_the_encoders_operations_are_those_of_its_graph() -> None:
    """Each product of [.., rows, inner] with [.., inner, columns] takes inner multiply-adds for each of its numbers."""
    model, positions = build_model(Config(), catalogue(1_000, 10)), LENGTH + 1
    encode = tf.function(model._query_tower.encoder)
    graph = encode.get_concrete_function(tf.TensorSpec([1, positions, Config().model.embedding_dim])).graph
    products = [op for op in graph.get_operations() if op.type in ("MatMul", "BatchMatMulV2")]
    assert not any("Call" in op.type or op.type == "Einsum" for op in graph.get_operations())  # might hide others
    counted = 0
    for product in products:
        is_transposed = product.get_attr("transpose_a" if product.type == "MatMul" else "adj_x")
        inner = product.inputs[0].shape[-2 if is_transposed else -1]
        counted += math.prod(product.outputs[0].shape) * inner
    assert {costs.multiply_adds()["encoder"] for costs in step_costs().values()} == {counted / positions}
