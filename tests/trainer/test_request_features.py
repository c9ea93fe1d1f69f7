"""What a request tells, and what a model makes of it."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.config.request_features import RequestFeature, code_sizes
from contracts.layout import Workdir
from contracts.names import Split
from tests.trainer.artifacts import Log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.evaluate import evaluate
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.training_windows import TrainingWindows, WindowBatch
from trainer.layers.request_features import RequestFeatures
from trainer.models.build import build_model
from trainer.models.model_files import load_model
from trainer.train import train
from trainer.training.warm_start import warm_start

PAGE = RequestFeature(name="page", values=("home", "search", "item"))
DEVICE = RequestFeature(name="device", values=("phone", "web"))
TOLD = {"page": ["home", "search"]}
DATA = {"request_features": [{"name": name, "values": values} for name, values in TOLD.items()]}


def layer_of(dim: int, features: Sequence[RequestFeature]) -> RequestFeatures:
    """Weights that are not zero."""
    layer = RequestFeatures(features, dim, tf.random.Generator.from_seed(1))
    for seed, weight in enumerate(layer.trainable_weights):
        weight.assign(tf.random.stateless_normal(weight.shape, [1, seed]))
    return layer


def test_a_query_changes_by_each_value_that_is_told() -> None:
    """By NumPy, from the layer's tables; the code is `np.ravel_multi_index` of the values' places."""
    layer, query = layer_of(5, (PAGE, DEVICE)), np.random.default_rng(0).normal(size=[12, 5]).astype(np.float32)
    pages, devices = (table.numpy() for table in layer.trainable_weights)
    places = np.array(list(itertools.product(range(4), range(3))))
    codes = np.ravel_multi_index(tuple(places.T), code_sizes((PAGE, DEVICE)))
    change = (places[:, :1] > 0) * pages[places[:, 0]] + (places[:, 1:] > 0) * devices[places[:, 1]]
    expected = query * (1 + change[:, :5]) + change[:, 5:]
    np.testing.assert_allclose(layer(query, tf.constant(codes, tf.int64)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(expected[0], query[0])  # nothing is told


def test_interests_and_positions_change_alike() -> None:
    layer, codes = layer_of(5, (PAGE,)), tf.constant([[0, 1, 2], [3, 2, 1]], tf.int64)
    queries = tf.random.stateless_normal([2, 3, 4, 5], [3, 4])
    changed = layer(queries, codes)
    for place in np.ndindex(2, 3, 4):
        np.testing.assert_allclose(changed[place], layer(queries[place][None], codes[place[:2]][None])[0], rtol=1e-6)


def test_in_training_some_windows_tell_nothing_or_not_all() -> None:
    layer, codes = layer_of(2, (PAGE, DEVICE)), tf.fill([8000, 3], tf.constant(2 * 3 + 1, tf.int64))
    changed = layer(tf.zeros([8000, 3, 2]), codes, training=True).numpy()
    assert (changed == changed[:, :1]).all(), "all positions of a window alike"
    pages, devices = (table.numpy() for table in layer.trainable_weights)
    # Neither: .1 tell nothing, and of the others .1 * .1.
    for has_page, has_device, share in ((0, 0, 0.109), (1, 0, 0.081), (0, 1, 0.081), (1, 1, 0.729)):
        expected = has_page * pages[2, 2:] + has_device * devices[1, 2:]
        assert np.isclose(changed[:, 0], expected, atol=1e-6).all(axis=1).mean() == pytest.approx(share, abs=0.015)


def paged_log() -> Log:
    """From the page 1 users take items of the first half, in any order, and from the page 2 of the second."""
    rng = np.random.default_rng(3)
    requests = [rng.integers(1, 3, 12) for _ in range(300)]
    sequences = []
    for pages in requests:
        half = [rng.permutation(20) + 1, rng.permutation(20) + 21]
        sequences.append(np.array([half[page - 1][place] for place, page in enumerate(pages)]))
    return Log(sequences, np.arange(40) % 4, requests=requests, request_features=TOLD)


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    return write_artifacts(paged_log(), tmp_path_factory.mktemp("paged"))


@pytest.mark.parametrize("settings", [{}, {"conditioning": "multiply_tokens"}, {"user_tower": "gru"}], ids=str)
def test_training_reads_what_events_tell_as_an_answer_reads_the_request(paged: Workdir, settings: dict) -> None:
    config = small_config(model=settings, data=DATA)
    model = build_model(config, Catalogue.for_config(config, paged))
    for weight in model._query_tower._request.trainable_weights:
        weight.assign(tf.random.stateless_normal(weight.shape, [1, 2]))
    batch = WindowBatch(*map(tf.constant, next(TrainingWindows(paged, 100, 0).epoch(0))))
    place = tf.where(batch.is_target)[-1:]
    row, position = place[0].numpy()
    history, asked = batch.item_index[row : row + 1, :position], batch.request[row, position][None]
    user = batch.user_index[row : row + 1]
    answered, _ = model.query_embeddings(history, model.features_of_users(user, asked))
    unasked, _ = model.query_embeddings(history, model.features_of_users(user))
    vectors = model._vectors(batch, model.candidate_embeddings(batch.item_index), place, training=False)
    assert np.abs(answered - unasked).max() > 1e-3
    if not config.model.reads_groups_first:  # of those, a step of training makes one group's vector alone
        np.testing.assert_allclose(vectors.all_groups(), answered, rtol=1e-4, atol=1e-5)


def test_a_user_asks_as_the_first_target_was_asked_for(paged: Workdir) -> None:
    users = EvaluationUsers.load(paged, Split.TEST)
    last = np.array([pages[-1] for pages in paged_log().requests])
    np.testing.assert_array_equal(users.request, last[users.user_index - 1])
    np.testing.assert_array_equal(users.take(np.array([2, 0])).request, users.request[[2, 0]])


def test_what_people_want_where_is_learnt(paged: Workdir) -> None:
    """A list of 10 of the right half's 14 or so that are new holds .7 of the targets; of any half, half as many."""
    recall = {}
    for name, data in (("told", DATA), ("untold", {})):
        config = small_config(training={"epochs": 12}, model={"dropout": 0.0}, data=data)
        train(config, paged, name, "a")
        recall[name] = evaluate(config, paged, Split.TEST, [name]).metrics[name]["recall_at_10"]["value"]
    assert recall["told"] > 0.55, recall
    assert recall["untold"] < 0.45, recall


def test_a_value_keeps_its_vector_wherever_the_list_has_it(paged: Workdir, tmp_path: Path) -> None:
    """The next run lists the pages in another order, and one more."""
    config = small_config(training={"epochs": 1}, data=DATA)
    train(config, paged, "dnc", "a")
    earlier = load_model(config, paged, "dnc")._query_tower._request.trainable_weights[0].numpy()
    assert np.abs(earlier[1:]).min(axis=1).max() > 0
    pages = {"page": ["search", "cellar", "home"]}
    features = [{"name": name, "values": values} for name, values in pages.items()]
    today = write_artifacts(replace(paged_log(), request_features=pages), tmp_path)
    now = small_config(training={"warm_start": str(paged.path)}, data={"request_features": features})
    model = build_model(now, Catalogue.for_config(now, today))
    result = warm_start(model, now, today, "dnc")
    found = model._query_tower._request.trainable_weights[0].numpy()
    np.testing.assert_array_equal(found, [earlier[0], earlier[2], np.zeros(len(found[0])), earlier[1]])
    assert (result.fresh, result.kept_values) == ([], 2)
