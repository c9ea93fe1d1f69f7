"""The model's objective against NumPy: plain loops over positives, from what serving would compute for each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from trainer.catalogue import Catalogue
from trainer.input.training_windows import TrainingWindows, WindowBatch
from trainer.losses.negative_pools import NegativePools
from trainer.losses.negative_samplers import uniform_unseen
from trainer.models.build import build_model
from trainer.models.group_first_model import GroupFirstModel
from trainer.models.two_tower_model import TwoTowerModel

LEVELS = {"levels": ["shown", "taken"], "target_level": "taken", "history_level": "taken"}
SHOWN_AND_TAKEN = {"feedback": LEVELS, "columns": {"event": "event"}}
DRAWN = {"global_weight": 1.0, "exact_softmax_max_items": 0, "in_group_pool": 16, "easy_pool": 32, "fresh_pool": 8}


def perturbed(model: TwoTowerModel) -> TwoTowerModel:
    """Away from the start, where every group's vector is the shared one."""
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(weight + rng.normal(size=weight.shape, scale=0.1))
    return model


@dataclass(frozen=True)
class Encoded:
    """What a model makes of each positive's history, as serving asks it: of events before it, padded.

    `places` and `targets` are of a batch's positives; `own` [n, num_groups, dim], `shared` [n, dim], `log_intent`.
    """

    places: np.ndarray
    targets: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    log_intent: np.ndarray

    @classmethod
    def of(cls, model: TwoTowerModel, batch: WindowBatch) -> Encoded:
        places = np.argwhere(batch.is_target)
        before = np.arange(batch.item_index.shape[1] - 1) < places[:, 1:]
        histories = np.where(before, batch.item_index[places[:, 0], :-1], 0)
        own, log_intent = model.query_embeddings(tf.constant(histories), {})
        shared = model._queries_of(batch, model.candidate_embeddings(batch.item_index), tf.constant(places), False)
        targets = batch.item_index[places[:, 0], places[:, 1]]
        return cls(places, targets, own.numpy(), shared.numpy(), log_intent.numpy())


def of_users_with_more(batch: WindowBatch, num_items: int) -> WindowBatch:
    """The windows in a log of `SHOWN_AND_TAKEN`, whose users took some of their items before, and others."""
    rng = np.random.default_rng(1)
    level = rng.integers(0, 2, batch.item_index.shape) * (batch.item_index > 0)
    earlier = rng.integers(0, num_items + 1, (len(level), 5))  # 0 is padding
    earlier = np.concatenate([batch.item_index[:, 1:4:2], earlier], axis=1)
    for row in earlier:  # each item once
        row[np.setdiff1d(np.arange(len(row)), np.unique(row, return_index=True)[1])] = 0
    return batch._replace(earlier_items=earlier, feedback_level=level, is_target=batch.is_target & (level > 0))


def log_weight(batch: WindowBatch, place: np.ndarray, num_items: int, seen_weight: float) -> np.ndarray:
    """What seen items' scores gain, [num_items + 1]: those taken before a place of a window, but for the item at it."""
    window, position = place
    taken = batch.feedback_level[window, :position] > 0
    before = np.append(batch.earlier_items[window], batch.item_index[window, :position][taken])
    seen = np.setdiff1d(before, batch.item_index[window, position])
    return np.where(np.isin(np.arange(num_items + 1), seen), np.log(seen_weight), 0)


def global_term(by: str | None) -> dict[str, object]:
    """Settings of a loss with a global term by that vector, or without one."""
    return {"global_weight": 1.0, "global_by": by} if by else {"global_weight": 0.0}


def log_partition(scores: np.ndarray) -> float:
    return float(np.log(np.exp(scores.astype(np.float64)).sum()))


@pytest.mark.parametrize("seen_weight", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("global_by", ["shared", "group", None])
@pytest.mark.parametrize("conditioning", ["multiply", "mmoe"])
def test_the_models_loss_is_the_softmax_of_numpy(
    seen_weight: float, global_by: str | None, conditioning: str, workdir: Workdir
) -> None:
    """The softmax terms and the distance of partitions, by a plain loop over positives, on a small catalogue."""
    config = small_config(
        data=SHOWN_AND_TAKEN,
        training={"loss": {**global_term(global_by), "seen_weight": seen_weight}},
        model={"conditioning": conditioning, "dropout": 0.0},
    )
    catalogue = Catalogue.load(workdir)
    tf.keras.utils.set_random_seed(3)
    model = perturbed(TwoTowerModel(config, catalogue))
    batch = of_users_with_more(next(TrainingWindows(workdir, 100, 0).epoch(0)), catalogue.num_items)
    terms = model.loss_terms(batch, training=False)
    items = model.candidate_embeddings(tf.range(1, catalogue.num_items + 1)).numpy()
    in_group, overall, partitions, centers = [], [], [], []
    encoded = Encoded.of(model, batch)
    positives = zip(encoded.places, encoded.targets, encoded.own, encoded.shared, strict=True)
    for place, target, queries, shared in positives:
        same = catalogue.group_id[1:] == catalogue.group_id[target]
        gain = log_weight(batch, place, catalogue.num_items, seen_weight)[1:]
        scores = (queries[catalogue.group_id[1:]] * items).sum(axis=1) + gain
        of_all = items @ shared + gain if global_by == "shared" else scores
        partitions.append(log_partition(scores[same]))
        centers.append(log_partition(of_all[same]))
        in_group.append(partitions[-1] - scores[target - 1])
        overall.append(log_partition(of_all) - of_all[target - 1])
    center = centers if global_by == "shared" else np.mean(partitions)
    expected = {"in_group": in_group, "z": np.square(np.subtract(partitions, center))}
    expected |= {"global": overall} if global_by else {}
    for name, values in expected.items():
        assert float(terms[name]) == pytest.approx(np.mean(values), rel=1e-4), name
    assert np.mean(expected["z"]) > 1e-4, "the vectors do not differ enough to tell"


@pytest.mark.parametrize("loss", [{}, DRAWN, {"seen_weight": 4.0}], ids=["exact", "drawn", "seen"])
def test_of_one_group_the_objective_is_the_single_vector_softmax(loss: dict, workdir: Workdir) -> None:
    config = small_config(groups={"num_groups": 1}, model={"conditioning": "none"}, training={"loss": loss})
    model = perturbed(TwoTowerModel(config, Catalogue.for_config(config, workdir)))
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    terms = {name: float(term) for name, term in model.loss_terms(batch, training=False).items()}
    assert terms["in_group"] == terms["global"] > 0
    # The default weights: 0.2 in-group, 1 global.
    assert terms["loss"] == pytest.approx(1.2 * terms["global"])


@pytest.mark.parametrize("seen_weight", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("global_by", ["shared", "group", None])
def test_the_models_loss_on_draws_is_that_of_numpy(global_by: str | None, seen_weight: float, workdir: Workdir) -> None:
    """Draws of the own group count n_g q / Q_g + n_easy q times, others n_easy q times.

    A window's own items and earlier ones count once, those taken before the positive `seen_weight` times.
    """
    loss = {**DRAWN, **global_term(global_by), "seen_weight": seen_weight}
    model_settings = {"conditioning": "mmoe", "dropout": 0.0}
    config = small_config(data=SHOWN_AND_TAKEN, training={"loss": loss}, model=model_settings)
    catalogue = Catalogue.load(workdir)
    model = perturbed(TwoTowerModel(config, catalogue))
    batch = of_users_with_more(next(TrainingWindows(workdir, 100, 0).epoch(0)), catalogue.num_items)
    state = model.generator.state.numpy()
    draws = NegativePools(catalogue, config.training.loss)(
        batch.in_group_negatives, batch.easy_negatives, tf.zeros([0], tf.int64), model.generator
    )
    model.generator.reset(state)
    terms = model.loss_terms(batch, training=False)
    item, num_hard = draws.item_index.numpy(), int(draws.global_from)
    group, q = catalogue.group_id[item], catalogue.sampling_probability
    mass = np.bincount(catalogue.group_id[1:], weights=q[1:], minlength=catalogue.num_groups)
    items = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy()
    in_group, overall = [], []
    encoded = Encoded.of(model, batch)
    positives = zip(encoded.places, encoded.targets, encoded.own, encoded.shared, strict=True)
    for place, target, queries, shared in positives:
        row, gain = place[0], log_weight(batch, place, catalogue.num_items, seen_weight)
        of_all = np.tile(shared, (catalogue.num_groups, 1)) if global_by == "shared" else queries
        own = catalogue.group_id[target]
        window = np.setdiff1d(np.append(batch.item_index[row], batch.earlier_items[row]), [0])
        allowed = ~np.isin(item, window)
        same, other = allowed & (group == own), allowed & (group != own) & (np.arange(len(item)) >= num_hard)
        hard_of_own, easy = (group[:num_hard] == own).sum(), len(item) - num_hard
        weight = np.where(group == own, hard_of_own / mass[own] + easy, easy) * q[item]
        parts = {}
        for name, vectors in {"own": queries, "all": of_all}.items():
            scores = (vectors[group] * items[item]).sum(axis=1) - np.log(weight)
            positive = vectors[own] @ items[target]
            of_window = (vectors[catalogue.group_id[window]] * items[window]).sum(axis=1) + gain[window]
            both = (same, catalogue.group_id[window] == own), (same | other, window > 0)
            parts[name] = [
                log_partition(np.append(scores[drawn], of_window[own_items])) - positive for drawn, own_items in both
            ]
        in_group.append(parts["own"][0])
        overall.append(parts["all"][1])
    assert float(terms["in_group"]) == pytest.approx(np.mean(in_group), rel=1e-4)
    assert ("global" in terms) == bool(global_by)
    assert not global_by or float(terms["global"]) == pytest.approx(np.mean(overall), rel=1e-4)


@pytest.mark.parametrize("windows", [20, 0], ids=["users who own the catalogue", "a replica without windows"])
@pytest.mark.parametrize("negatives", ["windows", "in_batch"])
@pytest.mark.parametrize("global_by", ["shared", "group"])
@pytest.mark.parametrize("num_groups", [1, 4])
def test_a_step_without_any_draws_compares_with_the_windows_own_items_alone(
    num_groups: int, global_by: str, negatives: str, windows: int, workdir: Workdir
) -> None:
    loss = {**DRAWN, "fresh_pool": 0, "global_by": global_by, "negatives": negatives, "seen_weight": 1.0}
    config = small_config(training={"loss": loss}, groups={"num_groups": num_groups}, model={"dropout": 0.0})
    catalogue = Catalogue.for_config(config, workdir)
    model = TwoTowerModel(config, catalogue)
    whole = next(TrainingWindows(workdir, 1000, 0).epoch(0))
    drawn = {"in_group_negatives", "easy_negatives"}
    batch = WindowBatch(
        # 0 is a negative that could not be drawn.
        **{name: value * 0 if name in drawn else value[:windows] for name, value in whole._asdict().items()}
    )
    if windows and negatives == "in_batch":
        batch = batch._replace(is_target=batch.is_target & False)

    @tf.function
    def step() -> tuple[dict[str, tf.Tensor], list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            terms = model.loss_terms(batch, training=True)
        gradients = tape.gradient(terms["loss"], model.trainable_variables)
        return terms, [tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None]

    terms, gradients = step()
    has_positives = windows and negatives == "windows"
    assert (float(terms["global"]) > 0) == (float(terms["in_group"]) > 0) == has_positives
    assert all(np.isfinite(value).all() for value in [*terms.values(), *gradients])
    if not has_positives:
        return
    # At the start, every group's vector is the shared one.
    encoded, group = Encoded.of(model, batch), catalogue.group_id
    items, softmaxes = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy(), []
    for (row, _), target, query in zip(encoded.places, encoded.targets, encoded.shared, strict=True):
        window = np.setdiff1d(np.append(batch.item_index[row], batch.earlier_items[row]), [0])
        parts = window[group[window] == group[target]], window
        softmaxes.append([log_partition(items[part] @ query) - items[target] @ query for part in parts])
    found = [float(terms[name]) for name in ("in_group", "global")]
    np.testing.assert_allclose(found, np.mean(softmaxes, axis=0), rtol=1e-4)


@pytest.mark.parametrize("global_by", ["shared", "group"])
@pytest.mark.parametrize("conditioning", ["multiply_tokens", "concat_tokens"])
def test_the_loss_of_a_group_before_the_encoder_is_that_of_numpy(
    conditioning: str, global_by: str, workdir: Workdir
) -> None:
    """Of each window one group has its own vector, as serving computes it; the others have the shared one."""
    loss = {"global_weight": 1.0, "global_by": global_by, "seen_weight": 1.0}
    config = small_config(training={"loss": loss}, model={"conditioning": conditioning, "dropout": 0.0})
    catalogue = Catalogue.load(workdir)
    model = build_model(config, catalogue)
    assert isinstance(model, GroupFirstModel)
    perturbed(model)
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    state = model.generator.state.numpy()
    sampled = model.sampled_group(batch).numpy()
    model.generator.reset(state)
    terms = model.loss_terms(batch, training=False)
    items = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy()
    in_group, overall, intents = [], [], []
    encoded = Encoded.of(model, batch)
    for place, (row, _) in enumerate(encoded.places):
        target, shared = encoded.targets[place], encoded.shared[place]
        vectors = np.tile(shared, (catalogue.num_groups, 1))
        vectors[sampled[row]] = encoded.own[place, sampled[row]]
        scores = (vectors[catalogue.group_id] * items).sum(axis=1)[1:]
        group = catalogue.group_id[target]
        in_group.append(log_partition(scores[catalogue.group_id[1:] == group]) - scores[target - 1])
        of_all = scores if global_by == "group" else items[1:] @ shared
        overall.append(log_partition(of_all) - of_all[target - 1])
        intents.append(-encoded.log_intent[place, group])
    assert np.abs(encoded.own[0] - encoded.shared[0]).max() > 1e-2, "the groups' vectors are all the shared one"
    for name, values in {"in_group": in_group, "global": overall, "intent": intents}.items():
        assert float(terms[name]) == pytest.approx(np.mean(values), rel=1e-4), name


def test_a_windows_group_is_drawn_in_proportion_to_its_targets(workdir: Workdir) -> None:
    catalogue = Catalogue.load(workdir)
    model = build_model(small_config(model={"conditioning": "multiply_tokens"}), catalogue)
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    of_target = np.where(batch.is_target, catalogue.group_id[batch.item_index], -1)
    expected = (of_target[:, :, None] == np.arange(4)).sum(axis=1) / batch.is_target.sum(axis=1, keepdims=True)
    drawn = np.mean([tf.one_hot(model.sampled_group(batch), 4).numpy() for _ in range(400)], axis=0)
    # Four standard errors of a share of 400 draws.
    np.testing.assert_allclose(drawn, expected, atol=4 * 0.5 / 20)
    assert (drawn[expected == 0] == 0).all()


@pytest.mark.parametrize(("global_weight", "shapes"), [(1.0, False), (0.0, True)])
def test_intent_shapes_the_towers_only_where_the_score_holds_it(
    global_weight: float, shapes: bool, workdir: Workdir
) -> None:
    config = small_config(training={"loss": {"global_weight": global_weight}})
    model = TwoTowerModel(config, Catalogue.load(workdir))
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    with tf.GradientTape() as tape:
        intent = model.loss_terms(batch, training=False)["intent"]
    id_table = next(weight for weight in model.trainable_variables if "id_embedding" in weight.name)
    assert (tape.gradient(intent, id_table) is not None) == shapes == model.intent_in_score


def test_the_models_choice_term_is_that_of_numpy(tmp_path: Path) -> None:
    workdir = write_artifacts(cyclic_log(num_users=40, exposed_negatives=1, mined_negatives=3), tmp_path)
    config = small_config(
        model={"dropout": 0.0, "conditioning": "multiply"},
        windows={"mined_negatives": 3, "mined_from": "unread.npz"},
        training={"loss": {"choice_weight": 1.0}},
    )
    catalogue = Catalogue.load(workdir)
    model = build_model(config, catalogue)
    perturbed(model)
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    items = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy()
    expected = []
    encoded = Encoded.of(model, batch)
    for (row, position), queries in zip(encoded.places, encoded.own, strict=True):
        mined = batch.mined_negatives[row, position]
        if mined.any():
            choice = np.array([batch.item_index[row, position], *mined[mined > 0]])
            scores = (queries[catalogue.group_id[choice]] * items[choice]).sum(axis=1)
            expected.append(np.log(np.exp(scores).sum()) - scores[0])
    # The exposed negatives of this log are the positives themselves: accidental hits, all masked.
    assert float(model.loss_terms(batch, training=False)["choice"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_models_binary_term_is_that_of_numpy(workdir: Workdir) -> None:
    """gBCE of rate a = 3 / 59 and t = .7; uniform negatives that the user has, in the window or before it, are none."""
    loss = {"binary_weight": 1.0, "binary_negatives": 3, "binary_calibration": 0.7}
    config = small_config(model={"dropout": 0.0, "conditioning": "multiply"}, training={"loss": loss})
    catalogue = Catalogue.load(workdir)
    model = perturbed(TwoTowerModel(config, catalogue))
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    batch = batch._replace(earlier_items=np.random.default_rng(0).integers(0, 61, (len(batch.item_index), 20)))
    encoded = Encoded.of(model, batch)
    drawn = drawn_by(model, batch, encoded, 3)
    assert (drawn == 0).any()
    items = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy()
    beta, expected = 3 / 59 * (0.7 * (1 - 59 / 3) + 59 / 3), []
    for target, queries, negatives in zip(encoded.targets, encoded.own, drawn, strict=True):
        scores = (queries[catalogue.group_id] * items).sum(axis=1)
        of_negatives = np.log1p(np.exp(scores[negatives[negatives > 0]])).sum()
        expected.append((beta * np.log1p(np.exp(-scores[target])) + of_negatives) / 4)
    assert float(model.loss_terms(batch, training=False)["binary"]) == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_models_hierarchy_term_is_that_of_numpy(workdir: Workdir) -> None:
    """Anchors are a positive of level 1 or 2 and what was exposed before it (0), above random items (-1).

    The window's first item comes a second time, at a level of its own: the higher of the two counts, so that it is not
    below itself, nor below an item of that level.
    """
    config = small_config(
        model={"dropout": 0.0, "conditioning": "multiply"},
        training={"loss": {"hierarchy_weight": 1.0, "hierarchy_random": 2}},
    )
    catalogue, rng = Catalogue.load(workdir), np.random.default_rng(0)
    model = perturbed(TwoTowerModel(config, catalogue))
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    shape, third = batch.item_index.shape, batch.item_index[:, 2:3]
    item_index = np.where((third > 0) & (np.arange(shape[1]) == 0), third, batch.item_index)
    batch = batch._replace(
        item_index=item_index,
        earlier_items=rng.integers(0, catalogue.num_items + 1, (shape[0], 20)),
        feedback_level=rng.integers(1, 3, shape) * (item_index > 0),
        exposed_negatives=rng.integers(1, catalogue.num_items + 1, (*shape, 2)) * rng.integers(0, 2, (*shape, 2)),
    )
    encoded = Encoded.of(model, batch)
    drawn = drawn_by(model, batch, encoded, 2)
    items = model.candidate_embeddings(tf.range(catalogue.num_items + 1)).numpy()
    expected = []
    for (row, position), target, queries, negatives in zip(
        encoded.places, encoded.targets, encoded.own, drawn, strict=True
    ):
        scores = (queries[catalogue.group_id] * items).sum(axis=1)
        window, highest = batch.item_index[row], dict[int, int]()
        for item, level in zip(window, batch.feedback_level[row], strict=True):
            highest[item] = max(level, highest.get(item, 0))
        anchors = [(target, highest[target])]
        anchors += [(item, 0) for item in batch.exposed_negatives[row, position] if item]
        others = [(item, highest[item]) for item in window if item not in (0, target)]
        others += [(item, -1) for item in negatives if item]
        for anchor, level in anchors:
            below = [scores[item] for item, other in anchors + others if other < level]
            if below:
                expected.append(log_partition(np.array([scores[anchor], *below])) - scores[anchor])
    assert float(model.loss_terms(batch, training=False)["hierarchy"]) == pytest.approx(np.mean(expected), rel=1e-4)


def drawn_by(model: TwoTowerModel, batch: WindowBatch, encoded: Encoded, number: int) -> np.ndarray:
    """The uniform negatives of each positive that the model is about to draw."""
    state = model.generator.state.numpy()
    own, row = np.concatenate([batch.item_index, batch.earlier_items], 1), encoded.places[:, 0]
    drawn = uniform_unseen(model.generator, model._num_items, tf.constant(own), tf.constant(row), number).numpy()
    model.generator.reset(state)
    return drawn
