"""Events below the target level in a history: told apart by the model, in training as in an answer."""

import numpy as np
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import WindowBatch
from trainer.models.build import build_model
from trainer.models.two_tower_model import TwoTowerModel

FEEDBACK = {"levels": ["seen", "liked"], "target_level": "liked"}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    return write_artifacts(cyclic_log(), tmp_path_factory.mktemp("context") / "workdir")


def make_model(workdir: Workdir, **model: object) -> TwoTowerModel:
    config = small_config(data={"feedback": FEEDBACK, "columns": {"event": "event"}}, model=model)
    return build_model(config, Catalogue.for_config(config, workdir))


def answer(model: TwoTowerModel, history: list[list[int]]) -> np.ndarray:
    users = model.features_of_users(tf.zeros([len(history)], tf.int64))
    return model.query_embeddings(tf.constant(history, tf.int64), users)[0].numpy()


@pytest.mark.parametrize("model", [{}, {"conditioning": "multiply_tokens"}, {"oov_buckets": 3}], ids=str)
def test_a_mark_tells_context_from_positives(workdir: Workdir, model: dict) -> None:
    built = make_model(workdir, **model)
    liked, seen, another = [[3, 4, 5]], [[3, -4, 5]], [[3, -7, 5]]
    # Before training, what was shown tells nothing.
    np.testing.assert_array_equal(answer(built, seen), answer(built, another))
    assert np.abs(answer(built, liked) - answer(built, seen)).max() > 1e-3
    mark, share = built._context_mark.trainable_weights
    share.assign(1.0)
    np.testing.assert_allclose(answer(built, liked), answer(built, seen), rtol=1e-5, atol=1e-5)
    mark.assign(tf.fill(mark.shape, 0.5))
    assert np.abs(answer(built, liked) - answer(built, seen)).max() > 1e-3
    np.testing.assert_allclose(answer(built, seen), answer(built, [[3, -4, 5, 0, 0]]), rtol=1e-5, atol=1e-5)


def test_training_reads_a_window_as_an_answer_reads_the_history(workdir: Workdir) -> None:
    built = make_model(workdir)
    mark, share = built._context_mark.trainable_weights
    mark.assign(tf.random.stateless_normal(mark.shape, [1, 2]))
    share.assign(0.7)
    items, levels = np.array([[3, 4, 5, 6]]), np.array([[1, 0, 1, 1]])
    nothing = np.zeros([1, 4, 1], np.int64)
    is_target = np.array([[False, False, False, True]])
    batch = WindowBatch(
        np.array([0]), items, items[:, :0], is_target, items[0], items[0], levels, levels, nothing, nothing
    )
    batch = WindowBatch(*map(tf.constant, batch))
    place = tf.where(batch.is_target)
    query = built._queries_of(batch, built.candidate_embeddings(batch.item_index), place, training=False)
    expected = built._conditioning.all_groups(query)
    np.testing.assert_allclose(answer(built, [[3, -4, 5]]), expected, rtol=1e-5, atol=1e-5)
    assert np.abs(answer(built, [[3, 4, 5]]) - expected).max() > 1e-3
