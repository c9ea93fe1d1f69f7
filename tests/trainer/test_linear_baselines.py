"""Item-kNN and EASE against their definitions, one item at a time."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from contracts.artifact import read_manifest
from contracts.layout import Workdir
from contracts.names import Split
from tests.trainer.artifacts import Log, of_rows, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.evaluation import linear_baselines
from trainer.evaluation.linear_baselines import LinearModel, ease_models, knn_models, linear_lists
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.taken_items import taken_items
from trainer.input.training_windows import TrainingEvents

NUM_USERS, NUM_ITEMS = 60, 12


@pytest.fixture
def dense() -> np.ndarray:
    """Who took what; nobody took the last item."""
    taken = (np.random.default_rng(0).random((NUM_USERS, NUM_ITEMS)) < 0.3).astype(np.float32)
    taken[:, -1] = 0
    return taken


@pytest.mark.parametrize("bound", [{"_NEIGHBORS": 3}, {"_MOST_SIMILARITIES": 4 * NUM_ITEMS - 1}])
def test_knn_weighs_the_nearest_others_by_the_users_in_common(
    bound: dict[str, int], dense: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With three neighbours, of each item or as the large catalogue's memory allows."""
    for name, value in bound.items():
        monkeypatch.setattr(linear_baselines, name, value)
    monkeypatch.setattr(linear_baselines, "_VALUES_AT_ONCE", 5 * NUM_ITEMS)  # parts of 5, 5 and 2 items
    count = dense.sum(axis=0)
    expected = {
        (0.5, 0.0): lambda item: cosine_similarity(dense.T)[item],
        (0.5, 100.0): lambda item: dense[:, item] @ dense / (np.sqrt(count[item] * count) + 100),
        (1.0, 100.0): lambda item: dense[:, item] @ dense / (count[item] + 100),
    }
    models = list(knn_models(sp.csr_matrix(dense)))
    assert [tuple(model.settings.values()) for model in models] == [key for key in expected for _ in range(4)]
    assert [model.half_life for model in models] == [None, 8, 4, 2] * 3
    for model, item in itertools.product(models, range(NUM_ITEMS)):
        found, similarity = model.weights.toarray()[item], expected[tuple(model.settings.values())](item)
        similarity[item] = 0
        assert np.count_nonzero(found) == (3 if item < NUM_ITEMS - 1 else 0)
        nearest = np.flatnonzero(found)
        np.testing.assert_allclose(found[nearest], similarity[nearest], rtol=1e-5)
        np.testing.assert_allclose(np.sort(found)[-3:], np.sort(similarity)[-3:], rtol=1e-5)  # others may be as near


def test_the_cosine_of_very_many_users_is_that_of_their_counts() -> None:
    """Of a million users, one in 14 did not take the second item: in float32, equal addends err to one side."""
    taken = np.ones((1_000_000, 2), np.float32)
    taken[::14, 1] = 0
    found = next(knn_models(sp.csr_matrix(taken))).weights.toarray()
    both = taken[:, 1].sum(dtype=np.float64)
    np.testing.assert_allclose(found, (1 - np.eye(2)) * both / np.sqrt(1e6 * both), rtol=1e-6)


def test_ease_predicts_each_item_from_the_others_by_ridge_regression(dense: np.ndarray) -> None:
    """Its closed form is one regression an item, each without the item itself (Steck, WWW 2019)."""
    by_penalty = {model.settings["penalty"]: model.weights for model in ease_models(sp.csr_matrix(dense))}
    assert list(by_penalty) == [10, 100, 1000]
    for (penalty, weights), item in itertools.product(by_penalty.items(), range(NUM_ITEMS)):
        others = np.arange(NUM_ITEMS) != item
        fit = Ridge(alpha=penalty, fit_intercept=False).fit(dense[:, others], dense[:, item])
        np.testing.assert_allclose(weights[others, item], fit.coef_, atol=1e-4)
        assert weights[item, item] == 0


def test_a_penalty_counts_beside_the_counts_of_very_many_users() -> None:
    """Two items with the same n = 2^28 users, of which each predicts the other by n / (n + penalty).

    In float32, 10 more on the diagonal of n is nothing, so that the matrix has no inverse.
    """
    users = 2.0**28
    models = list(ease_models(sp.csr_matrix(np.full((1, 2), users**0.5, np.float32))))
    assert {model.settings["penalty"] for model in models} == {10, 100, 1000}
    for model in models:
        assert model.weights.dtype == np.float32
        np.testing.assert_allclose(
            model.weights, (1 - np.eye(2)) * users / (users + model.settings["penalty"]), rtol=1e-6
        )


def test_ease_counts_beyond_what_float32_does() -> None:
    """An entry of 2^12 stands for 2^24 users: those that are counted after them count, too."""
    rows, more = np.array([[2**12, 1]]), np.tile([[1, 0]], (1000, 1))
    for model in ease_models(sp.csr_matrix(np.concatenate([rows, more]).astype(np.float32))):
        assert model.weights[0, 1] == pytest.approx(2**12 / (2**24 + 1000 + model.settings["penalty"]), rel=1e-6)


def test_ease_knows_the_most_popular_items_of_a_large_catalogue(
    dense: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_baselines, "_EASE_MOST_ITEMS", 4)
    few = next(ease_models(sp.csr_matrix(dense)))
    np.testing.assert_allclose(few.weights, next(ease_models(sp.csr_matrix(dense[:, :4]))).weights)
    users = EvaluationUsers(np.arange(1), of_rows([[2]]), of_rows([[2]]), of_rows([[1]]), np.zeros(1))
    (found,) = few.lists(users, NUM_ITEMS, NUM_ITEMS).tolist()
    assert set(found[:3]) == {1, 3, 4}
    # What it does not know comes by popularity; what was seen, never.
    assert found[3:] == [5, 6, 7, 8, 9, 10, 11, 12, 0]


def test_older_items_count_less_and_context_nothing() -> None:
    """A history of items 1, 2 and 3, of which 2 is below the target level; weights tell each item's own score."""
    users = EvaluationUsers(np.arange(1), of_rows([[1, -2, 3]]), of_rows([[1, 3, 4]]), of_rows([[5]]), np.zeros(1))
    weights = sp.csr_matrix(np.eye(5, dtype=np.float32))
    seen = LinearModel(weights, None, {})._taken(users, 5).toarray()
    assert seen.tolist() == [[1, 0, 1, 1, 0]]
    recent = LinearModel(weights, 2.0, {})._taken(users, 5).toarray()
    assert recent.tolist() == [[0.5, 0, 1, 0, 0]]


def test_equal_scores_are_by_popularity() -> None:
    users = EvaluationUsers(np.arange(2), of_rows([[2], []]), of_rows([[2], []]), of_rows([[1], [1]]), np.zeros(2))
    weights = np.zeros((4, 4), np.float32)
    weights[1, 3] = 1
    lists = LinearModel(weights, None, {}).lists(users, 5, 9)
    assert lists.tolist() == [[4, 1, 3, 5, 0], [1, 2, 3, 4, 5]]


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """600 users who walk one step after the other on a ring of 20 items, after some time on another ring."""
    rng = np.random.default_rng(0)
    walks = []
    for rings in rng.permuted(np.tile([0, 1, 2], (600, 1)), axis=1)[:, :2]:
        walks.append(
            np.concatenate([20 * ring + (rng.integers(0, 20) + np.arange(rng.integers(5, 8))) % 20 for ring in rings])
        )
    return write_artifacts(Log([walk + 1 for walk in walks], np.arange(60) % 2), tmp_path_factory.mktemp("in_turn"))


def test_what_is_taken_twice_counts_once_and_what_was_only_shown_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    users, items = np.array([7, 7, 7, 3]), np.array([1, 2, 1, 2])
    first = TrainingEvents(users, items, np.arange(4), np.array([True, False, True, True]))
    again = TrainingEvents(np.array([7]), np.array([1]), np.arange(1), np.array([True]))
    monkeypatch.setattr("trainer.input.taken_items.training_events", lambda _: [first, again])
    assert taken_items(Workdir(Path("any")), 3).toarray().tolist() == [[0, 1, 0], [1, 0, 0]]


def test_each_item_of_the_windows_is_taken_once_a_user(in_turn: Workdir) -> None:
    taken = taken_items(in_turn, 60)
    manifest = read_manifest(in_turn.windows.path)
    assert set(taken.data) == {1}
    assert taken.sum() == manifest.details["items_per_user"] * 600
    np.testing.assert_array_equal(taken.getnnz(axis=0), Catalogue.load(in_turn).train_count[1:])


@pytest.mark.parametrize("name", ["item_knn", "ease"])
def test_the_validation_users_choose_how_fast_a_history_fades(name: str, in_turn: Workdir, caplog) -> None:
    """What comes next is on the last ring, which only the latest events tell from the one before."""
    config = small_config(training={"monitor_k": 2})
    catalogue, users = Catalogue.load(in_turn), EvaluationUsers.load(in_turn, Split.TEST)
    caplog.set_level("INFO")
    lists = linear_lists(config, in_turn, name, catalogue, users, 2)
    assert lists.shape == (600, 2)
    assert "half-life" in caplog.text
    assert np.mean(lists == users.targets.values[:, None]) * 2 > 0.9


def test_the_settings_depend_on_no_test_user(in_turn: Workdir, monkeypatch) -> None:
    loads, load = [], EvaluationUsers.load
    monkeypatch.setattr(EvaluationUsers, "load", lambda _, split, limit: loads.append(split) or load(_, split, limit))
    users = load(in_turn, Split.TEST)
    linear_lists(small_config(), in_turn, "item_knn", Catalogue.load(in_turn), users, 3)
    assert loads == [Split.VALIDATION]
