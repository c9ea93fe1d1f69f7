import math

import numpy as np
import pytest
import tensorflow as tf

from trainer.layers.comirec_encoder import ComiRecEncoder
from trainer.layers.gru_encoder import GRUEncoder
from trainer.layers.history_means import HistoryMeans
from trainer.layers.mean_encoder import MeanEncoder
from trainer.layers.mind_encoder import MINDEncoder
from trainer.layers.sequence_encoder import SequenceEncoder
from trainer.layers.transformer_encoder import TransformerEncoder

DIM, LENGTH, INTERESTS = 6, 9, 3


def encoder(kind: str) -> SequenceEncoder:
    generator = tf.random.Generator.from_seed(0)
    layer: SequenceEncoder = {
        "transformer": lambda: TransformerEncoder(1, 2, LENGTH, DIM, 2 * DIM, 0.0, generator),
        "gru": lambda: GRUEncoder(1, DIM, 0.0, generator),
        "mean": lambda: MeanEncoder(1, DIM, 2 * DIM, 0.0, generator),
        "mind": lambda: MINDEncoder(INTERESTS, LENGTH, DIM, 2 * DIM, 0.0, generator),
        "comirec": lambda: ComiRecEncoder(INTERESTS, DIM, 0.0, generator),
    }[kind]()
    layer(tf.zeros([1, 2, DIM]))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=weight.shape) for weight in layer.weights])
    return layer


@pytest.mark.parametrize("kind", ["transformer", "gru", "mean", "mind", "comirec"])
def test_a_position_sees_what_came_before_it_and_nothing_else(kind: str) -> None:
    layer = encoder(kind)
    inputs = tf.random.stateless_normal([2, LENGTH, DIM], seed=[1, 2])
    everything = layer(inputs).numpy()
    for length in (1, 4, LENGTH):
        np.testing.assert_allclose(layer(inputs[:, :length]), everything[:, :length], rtol=1e-3, atol=1e-4)
    changed = layer(tf.concat([inputs[:, :4], inputs[:, 4:] ** 2], axis=1)).numpy()
    assert np.abs(changed[:, 4:] - everything[:, 4:]).max() > 1e-2


def test_mean_pooling_by_hand() -> None:
    layer = MeanEncoder(1, 2, 2, 0.0, tf.random.Generator.from_seed(0))
    inputs = tf.constant([[[2.0, 0.0], [0.0, 4.0]]])
    layer(inputs)
    layer.set_weights([np.ones_like(w) if "norm_1/gamma" in n else np.zeros_like(w) for n, w in named(layer)])
    # Means (2, 0) and (1, 2); the blocks add 0; the last norm of a pair is (1, -1) or (-1, 1).
    np.testing.assert_allclose(layer(inputs)[0], [[1, -1], [-1, 1]], atol=1e-4)


def named(layer: tf.keras.layers.Layer) -> list[tuple[str, np.ndarray]]:
    return [(weight.name, weight.numpy()) for weight in layer.weights]


# max(1, min(K, log2 n)), rounded down, with K = 3.
@pytest.mark.parametrize(("events", "interests"), [(0, 1), (1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (8, 3), (999, 3)])
def test_mind_has_more_interests_for_longer_histories(events: int, interests: int) -> None:
    active = encoder("mind").active(tf.constant([events]))
    assert active.numpy().tolist() == [[place < interests for place in range(INTERESTS)]]


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=0)


def normed(rows: np.ndarray, norm: tf.keras.layers.Layer) -> np.ndarray:
    centered = rows - rows.mean(axis=1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(axis=1, keepdims=True) + 1e-6)
    return scaled * norm.gamma.numpy() + norm.beta.numpy()


def test_half_of_the_dimensions_mean_all_of_a_history_and_half_its_last_events() -> None:
    """Of 32 dimensions, 16 take the mean with weights from .5 to 8; two each have windows of 2 to 32 events."""
    tokens = np.random.default_rng(2).normal(size=(2, LENGTH, 32)).astype(np.float32)
    means = HistoryMeans(LENGTH + 3, 32)(tf.constant(tokens)).numpy() - tokens
    for place in range(LENGTH):
        seen, ages = tokens[:, : place + 1], np.arange(place, -1, -1)
        of_all = 0.5 * 16 ** (np.arange(16) / 15) * seen[:, :, :16].mean(axis=1)
        np.testing.assert_allclose(means[:, place, :16], of_all, rtol=1e-4, atol=1e-5)
        for dim in range(16, 32):
            window = 2 * 16 ** ((dim - 16) // 2 / 7)
            recent = np.average(seen[:, :, dim], axis=1, weights=(1 - 1 / window) ** ages)
            np.testing.assert_allclose(means[:, place, dim], 3 * recent, rtol=1e-4, atol=1e-5)


def test_the_transformer_attends_as_the_paper_says() -> None:
    """SASRec (arXiv 1808.09781), norms before each part: loops over blocks, heads and positions.

    What it reads is each token and means of those up to it. Of six dimensions, three take the mean of all, half of it,
    2 (the root of .5 * 8) and 8 times, the others 3 times that of a window of 2 events: weights of 1, 1/2, 1/4 and so
    on, back from the last.
    """
    layer, head_dim = encoder("transformer"), DIM // 2
    inputs = np.random.default_rng(1).normal(size=(LENGTH, DIM)).astype(np.float32)
    hidden = inputs.copy()
    for place in range(LENGTH):
        hidden[place, :3] += np.array([0.5, 2, 8]) * inputs[: place + 1, :3].mean(axis=0)
        hidden[place, 3:] += 3 * np.average(inputs[: place + 1, 3:], axis=0, weights=0.5 ** np.arange(place, -1, -1))
    for block in layer._blocks:
        query, key, value = np.split(normed(hidden, block._attention_norm) @ block._query_key_value.kernel, 3, axis=1)
        attended = np.zeros_like(hidden)
        for place in range(LENGTH):
            for head in (slice(0, head_dim), slice(head_dim, DIM)):
                weights = softmax(key[: place + 1, head] @ query[place, head] / np.sqrt(head_dim))
                attended[place, head] = weights @ value[: place + 1, head]
        hidden = hidden + attended @ block._attention_output.kernel.numpy()
        expanded = block._expand(tf.constant(normed(hidden, block._feed_forward_norm))).numpy()
        activated = expanded * (0.5 + 0.5 * np.vectorize(math.erf)(expanded / np.sqrt(2)))
        hidden = hidden + block._contract(tf.constant(activated, tf.float32)).numpy()
    np.testing.assert_allclose(layer(inputs[None])[0], normed(hidden, layer._norm), rtol=1e-3, atol=1e-3)


def test_the_gru_is_gated_as_the_paper_says() -> None:
    """Of Keras's weights (update, reset, candidate), the reset gate after the product, as cuDNN has it."""
    layer = encoder("gru")
    inputs = np.random.default_rng(1).normal(size=(LENGTH, DIM)).astype(np.float32)
    kernel, recurrent, (bias, recurrent_bias) = (weight.numpy() for weight in layer._layers[0].cell.weights)
    outputs, state = [], np.zeros(DIM)
    for event in normed(inputs, layer._norms[0]):
        of_event = np.split(event @ kernel + bias, 3)
        of_state = np.split(state @ recurrent + recurrent_bias, 3)
        update, reset = sigmoid(of_event[0] + of_state[0]), sigmoid(of_event[1] + of_state[1])
        state = update * state + (1 - update) * np.tanh(of_event[2] + reset * of_state[2])
        outputs.append(state)
    np.testing.assert_allclose(layer(inputs[None])[0], normed(inputs + outputs, layer._norms[1]), rtol=1e-3, atol=1e-3)


def test_mind_routes_as_the_paper_says() -> None:
    """The last position's interests against loops over interests and behaviours; routing itself is not trained."""
    layer = encoder("mind")
    weights = {name.split("/")[-1].split(":")[0]: value for name, value in named(layer)}
    start, bilinear = weights["routing_start"], weights["bilinear"]
    inputs = np.random.default_rng(1).normal(size=(LENGTH, DIM)).astype(np.float32)
    routing = start.copy()
    for _ in range(3):
        share = softmax(routing)
        capsules = []
        for interest in range(INTERESTS):
            total = sum(share[interest, place] * inputs[place] @ bilinear for place in range(LENGTH))
            square = total @ total
            capsules.append(square / (1 + square) * total / np.sqrt(square))
        routing = routing + np.array(
            [[capsule @ (inputs[place] @ bilinear) for place in range(LENGTH)] for capsule in capsules]
        )
    with tf.GradientTape(persistent=True) as tape:
        found = layer(inputs[None])[0, -1]
        total = tf.constant(share, tf.float32) @ inputs @ layer._bilinear
        square = tf.reduce_sum(total**2, axis=1, keepdims=True)
        stacked = square / (1 + square) * total / tf.sqrt(square)
        expected = stacked + layer._contract(layer._expand(stacked))
    np.testing.assert_allclose(stacked, capsules, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    # As in the authors' code: a gradient goes through the last sums alone, not through what was routed where.
    np.testing.assert_allclose(
        *(tape.gradient(value, layer._bilinear) for value in (found, expected)), rtol=1e-2, atol=1e-2
    )


def test_comirec_attends_as_the_paper_says() -> None:
    layer = encoder("comirec")
    inputs = np.random.default_rng(1).normal(size=(LENGTH, DIM)).astype(np.float32)
    logits = layer._heads(layer._hidden(inputs)).numpy()[:4]
    expected = layer._norm(tf.constant((softmax(logits).T @ inputs[:4])[None, None]))[0, 0]
    np.testing.assert_allclose(layer(inputs[None])[0, 3], expected, rtol=1e-3, atol=1e-4)


def test_label_aware_attention_by_hand() -> None:
    interests = tf.constant([[[3.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    active, target = tf.constant([[True, True, False]]), tf.constant([[1.0, 1.0]])
    np.testing.assert_allclose(encoder("comirec").attend(interests, active, target), [[3, 0]])
    # Affinities 3 and 1, squared: softmax(9, 1) = (1, e^-8) / (1 + e^-8).
    other = np.exp(-8) / (1 + np.exp(-8))
    np.testing.assert_allclose(encoder("mind").attend(interests, active, target), [[3 * (1 - other), other]], rtol=1e-5)
