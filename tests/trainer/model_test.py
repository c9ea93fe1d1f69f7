"""What every model must pass, whatever its config."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from contracts.config import Config
from contracts.layout import Workdir
from contracts.names import Split
from trainer.catalogue import Catalogue
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.training_windows import TrainingWindows
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import train

# A history, one of a single event, none at all; of two known users and an unknown one.
HISTORY = tf.constant([[3, 4, 5, 0], [7, 0, 0, 0], [0, 0, 0, 0]], tf.int64)
USERS = tf.constant([1, 2, 0], tf.int64)


def model_test(config: Config, workdir: Workdir) -> None:
    """Fit, save, reload, same scores; any batch in one graph; a full ranking; training on."""
    manifest = train(config, workdir, "model", "first")
    assert set(manifest.files) == {"model.weights.h5", "history.json", "config.json"}
    model = load_model(config, workdir, "model")
    for left, right in zip(embeddings(model), embeddings(load_model(config, workdir, "model")), strict=True):
        np.testing.assert_array_equal(left, right)
    accepts_any_batch(model)
    ranks_every_unseen_item(config, model, workdir)
    trains_on(model, workdir)
    fixed_candidates_change_nothing(model)


def fixed_candidates_change_nothing(model: TwoTowerModel) -> None:
    before = embeddings(model)
    model.fix_candidates()
    for left, right in zip(before, embeddings(model), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)
    held = [weight for layer in model.layers if layer.name == "candidate_tower" for weight in layer.weights]
    assert len(held) == 1 or model._oov_buckets is not None


def embeddings(model: TwoTowerModel) -> list[np.ndarray]:
    queries, log_intent = model.query_embeddings(HISTORY, model.features_of_users(USERS))
    return [queries.numpy(), log_intent.numpy(), model.candidate_embeddings(tf.range(5)).numpy()]


def accepts_any_batch(model: TwoTowerModel) -> None:
    graph = tf.function(model.query_embeddings, reduce_retracing=True)
    for history in (HISTORY, HISTORY[:1, :2], HISTORY[:, :0]):
        queries, log_intent = graph(history, model.features_of_users(tf.zeros([len(history)], tf.int64)))
        assert queries.shape == (len(history), model.num_vectors, model.embedding_dim)
        assert np.isfinite(queries).all()
        if model.ranked_by == "group":
            np.testing.assert_allclose(np.exp(log_intent).sum(axis=1), 1, rtol=1e-5)
        else:
            assert np.isfinite(log_intent).any(axis=1).all()


def ranks_every_unseen_item(config: Config, model: TwoTowerModel, workdir: Workdir) -> None:
    """Items without training events, and whole groups of them, are in the list."""
    catalogue = Catalogue.for_config(config, workdir)
    users = EvaluationUsers.load(workdir, Split.TEST)
    lists = ExactRanking(model, catalogue, users).lists("score", 1.0, catalogue.num_items)
    everything = set(range(1, catalogue.num_items + 1))
    for row in range(3):
        seen = users.seen.take(np.array([row])).values
        assert sorted(lists[row][lists[row] > 0]) == sorted(everything - set(seen))


def trains_on(model: TwoTowerModel, workdir: Workdir) -> None:
    """Five more steps lower the loss, also of a batch of one window."""
    batches = TrainingWindows(workdir, 100, 0).epoch(0)
    many = next(batches)
    one = next(TrainingWindows(workdir, 1, 0).epoch(0))
    assert len(one.user_index) == 1
    for batch in (one, many):
        before = loss_of(model, batch)
        optimizer = tf.keras.optimizers.Adam(0.01)
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = model.compute_loss(batch, training=True)
            variables = model.trainable_variables
            pairs = zip(tape.gradient(loss, variables), variables, strict=True)
            optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])
        # One user's batch has no in-batch negatives: its loss is 0 and stays so.
        assert loss_of(model, batch) < before or before == 0


def loss_of(model: TwoTowerModel, batch: object) -> float:
    """Where negatives are drawn, the same ones every time."""
    state = model.generator.state.numpy()
    model.generator.reset_from_seed(5)
    loss = float(np.mean([float(model.compute_loss(batch)) for _ in range(3)]))
    model.generator.reset(state)
    return loss
