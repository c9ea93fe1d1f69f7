from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

from trainer.layers.comirec_encoder import ComiRecEncoder
from trainer.layers.concat_conditioning import ConcatConditioning
from trainer.layers.concat_tokens import ConcatTokens
from trainer.layers.feature_embedding import FeatureEmbedding
from trainer.layers.gelu import gelu
from trainer.layers.group_conditioning import GroupConditioning
from trainer.layers.gru_encoder import GRUEncoder
from trainer.layers.layer_norm import LayerNorm
from trainer.layers.mean_encoder import MeanEncoder
from trainer.layers.mind_encoder import MINDEncoder
from trainer.layers.mmoe_conditioning import MMoEConditioning
from trainer.layers.multiply_conditioning import MultiplyConditioning
from trainer.layers.multiply_tokens import MultiplyTokens
from trainer.layers.random_dropout import RandomDropout
from trainer.layers.shared_conditioning import SharedConditioning
from trainer.layers.transformer_encoder import TransformerEncoder

GROUPS, DIM, EXPERTS, HIDDEN = 5, 8, 3, 6


def randomized(layer: tf.keras.layers.Layer) -> tf.keras.layers.Layer:
    """Weights away from their (partly zero) starting values."""
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return layer


def conditioning(kind: str) -> GroupConditioning:
    generator = tf.random.Generator.from_seed(0)
    return {
        "mmoe": lambda: MMoEConditioning(GROUPS, DIM, EXPERTS, HIDDEN, 0.0, generator),
        "concat": lambda: ConcatConditioning(GROUPS, DIM, HIDDEN, 0.0, generator),
        "multiply": lambda: MultiplyConditioning(GROUPS, DIM),
        "none": lambda: SharedConditioning(GROUPS, DIM, name="shared"),
    }[kind]()


KINDS = pytest.mark.parametrize("kind", ["mmoe", "concat", "multiply", "none"])


@KINDS
def test_a_groups_own_vector_is_one_of_all_vectors(kind: str) -> None:
    layer = randomized(conditioning(kind))
    query = tf.random.stateless_normal([GROUPS, 4, DIM], seed=[1, 2])
    everything = tf.reshape(layer.all_groups(tf.reshape(query, [-1, DIM])), [GROUPS, 4, GROUPS, DIM])
    for group in range(GROUPS):
        own = layer.own_group(query[group], tf.fill([4], group))
        np.testing.assert_allclose(own, everything[group, :, group], atol=1e-5)


@KINDS
def test_training_starts_from_the_single_vector(kind: str) -> None:
    query = tf.random.stateless_normal([7, DIM], seed=[1, 2])
    vectors = conditioning(kind).all_groups(query)
    np.testing.assert_allclose(vectors, np.repeat(query[:, None], GROUPS, axis=1), atol=1e-6)


@KINDS
def test_own_vectors_are_those_of_all_groups(kind: str) -> None:
    layer = randomized(conditioning(kind))
    query = tf.random.stateless_normal([6, DIM], seed=[1, 2])
    own = layer.own_group(query, tf.constant([4, 0, 0, 3, 2, 1]))
    np.testing.assert_allclose(own, layer.all_groups(query).numpy()[range(6), [4, 0, 0, 3, 2, 1]], rtol=1e-4, atol=1e-4)


def test_mmoe_against_a_loop_over_experts() -> None:
    layer = randomized(conditioning("mmoe"))
    weights = {weight.name.split("/")[-1].split(":")[0]: weight.numpy() for weight in layer.weights}
    query = np.random.default_rng(3).normal(size=DIM).astype(np.float32)
    vectors = layer.all_groups(tf.constant(query[None])).numpy()[0]
    for group in range(GROUPS):
        logits = query @ weights["gate_kernel"][group] + weights["gate_bias"][group]
        gate = np.exp(logits - logits.max())
        expected = query.copy()
        for expert in range(EXPERTS):
            part = slice(expert * HIDDEN, (expert + 1) * HIDDEN)
            hidden = tf.nn.gelu(query @ weights["expert_kernel"][:, part] + weights["expert_bias"][part]).numpy()
            expected += gate[expert] / gate.sum() * (hidden @ weights["expert_output"][expert])
        np.testing.assert_allclose(vectors[group], expected, rtol=1e-4, atol=1e-4)


def test_tokens_are_conditioned_by_hand() -> None:
    tokens = tf.constant([[[1.0, 2.0], [3.0, 4.0]]] * 3)
    multiply, concat = MultiplyTokens(2, 2), ConcatTokens(2, 2)
    for layer in (multiply, concat):
        np.testing.assert_array_equal(layer(tokens, tf.constant([0, 1, 2])), tokens)
        layer.set_weights([np.array([[10.0, 20.0], [5.0, 6.0]])])
    # Of groups 1, 0 and none.
    group = tf.constant([1, 0, 2])
    scaled = [[[5, 12], [15, 24]], [[10, 40], [30, 80]], [[1, 2], [3, 4]]]
    np.testing.assert_array_equal(multiply(tokens, group), scaled)
    joined = [[[6, 8], [3, 4]], [[11, 22], [3, 4]], [[1, 2], [3, 4]]]
    np.testing.assert_array_equal(concat(tokens, group), joined)


def encoder() -> TransformerEncoder:
    layer = TransformerEncoder(2, 2, 9, DIM, 2 * DIM, 0.0, tf.random.Generator.from_seed(0))
    layer(tf.zeros([1, 2, DIM]))
    return randomized(layer)


def test_the_future_does_not_leak() -> None:
    layer, inputs = encoder(), tf.random.stateless_normal([2, 6, DIM], seed=[1, 2])
    changed = tf.concat([inputs[:, :4], inputs[:, 4:] ** 2], axis=1)
    before, after = layer(inputs).numpy(), layer(changed).numpy()
    np.testing.assert_allclose(before[:, :4], after[:, :4], atol=1e-5)
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-2


def test_padding_on_the_right_changes_nothing() -> None:
    layer, inputs = encoder(), tf.random.stateless_normal([2, 4, DIM], seed=[1, 2])
    longer = tf.pad(inputs, [[0, 0], [0, 5], [0, 0]])
    np.testing.assert_allclose(layer(inputs), layer(longer)[:, :4], atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "comirec", "mind"])
def test_one_position_is_that_position_of_all(kind: str) -> None:
    generator = tf.random.Generator.from_seed(0)
    layer = {
        "transformer": encoder,
        "gru": lambda: GRUEncoder(1, DIM, 0.0, generator),
        "mean": lambda: MeanEncoder(1, DIM, 2 * DIM, 0.0, generator),
        "comirec": lambda: ComiRecEncoder(3, DIM, 0.0, generator),
        "mind": lambda: MINDEncoder(3, 6, DIM, 2 * DIM, 0.0, generator),
    }[kind]()
    inputs, position = tf.random.stateless_normal([3, 6, DIM], seed=[1, 2]), tf.constant([0, 5, 3])
    everywhere = layer(inputs).numpy()
    np.testing.assert_allclose(layer(inputs, position=position), everywhere[[0, 1, 2], [0, 5, 3]], atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_gelu_and_its_gradient_are_tensorflows(training: bool) -> None:
    assert_same_with_gradients(lambda inputs: gelu(inputs, training), tf.nn.gelu, lambda function: [])


@pytest.mark.parametrize("training", [False, True])
def test_layer_norm_and_its_gradients_are_those_of_keras(training: bool) -> None:
    layers = [LayerNorm(), tf.keras.layers.LayerNormalization(epsilon=1e-6)]
    for layer in layers:
        layer.build(tf.TensorShape([None, None, DIM]))
        randomized(layer)
    ours, reference = layers
    assert_same_with_gradients(
        lambda inputs: ours(inputs, training=training),
        reference,
        lambda function: [layers[function is reference].gamma, layers[function is reference].beta],
    )


def assert_same_with_gradients(ours: Callable, reference: Callable, weights: Callable) -> None:
    inputs = tf.constant(np.random.default_rng(0).normal(1, 3, (5, 7, DIM)), tf.float32)
    upstream = tf.random.stateless_normal(inputs.shape, seed=[1, 2])
    results = []
    for function in (ours, reference):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(inputs)
        results.append([value, *tape.gradient(value, [inputs, *weights(function)], upstream)])
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_dropout_keeps_the_mean_and_repeats_from_a_restored_generator() -> None:
    generator = tf.random.Generator.from_seed(3)
    layer, ones = RandomDropout(0.3, generator), tf.ones([100, 100])
    state = generator.state.numpy()
    first = layer(ones, training=True)
    assert float(tf.reduce_mean(first)) == pytest.approx(1, abs=0.03)
    assert float(tf.reduce_mean(tf.cast(first == 0, tf.float32))) == pytest.approx(0.3, abs=0.03)
    generator.reset(state)
    np.testing.assert_array_equal(first, layer(ones, training=True))
    np.testing.assert_array_equal(ones, layer(ones, training=False))


def test_a_dropout_near_one_keeps_a_256th() -> None:
    layer = RandomDropout(0.999, tf.random.Generator.from_seed(3))
    # Each element is 256 at a probability of 1/256, else 0: four standard errors of the mean of a million are 0.064.
    assert float(tf.reduce_mean(layer(tf.ones([1000, 1000]), training=True))) == pytest.approx(1, abs=0.064)


def test_feature_embedding_by_hand() -> None:
    specs = [
        {"name": "genres", "kind": "tokens", "vocabulary_size": 3},
        {"name": "age", "kind": "numeric"},
        {"name": "country", "kind": "categorical", "vocabulary_size": 2},
        {"name": "cover", "kind": "vector", "width": 3},
    ]
    layer = FeatureEmbedding(specs, 2, "features")
    layer.set_weights(
        [
            np.array([[9, 9], [1, 0], [0, 1], [5, 5]]),
            np.array([[10, 20]]),
            np.array([[9, 9], [100, 100], [200, 200]]),
            np.array([[1, 0], [0, 1], [1000, 2000]]),
        ]
    )
    features = {
        "genres": tf.constant([[1, 2, 0], [0, 0, 0]], tf.int64),
        "age": tf.constant([0.5, 0.0]),
        "country": tf.constant([2, 0], tf.int64),
        "cover": tf.constant([[7.0, 8.0, 1.0], [0.0, 0.0, 0.0]]),
    }
    # Row 0: mean of genres 1 and 2 (.5, .5) + age (5, 10) + country (200, 200) + cover (1007, 2008). Row 1: nothing.
    np.testing.assert_allclose(layer(features), [[1212.5, 2218.5], [0, 0]])
    with pytest.raises(ValueError, match="country"):
        layer({"genres": features["genres"], "age": features["age"]})
