"""Warm start: the same items and users get the same scores, wherever catalogue and groups have moved them."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from contracts.artifact import MANIFEST_NAME, read_manifest, writing
from contracts.config import Config, ModelConfig
from contracts.config_io import load_config
from contracts.layout import Model, Workdir
from tests.trainer.artifacts import Log, write_artifacts
from trainer.carry_over import carry_over
from trainer.catalogue import Catalogue
from trainer.evaluation.baselines import baseline_config
from trainer.evaluation.exploration_share import EXPLORATION_SHARE, exploration_share
from trainer.models.build import build_model
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import train
from trainer.training.group_match import continued_groups
from trainer.training.training_state import TrainingState
from trainer.training.warm_start import GROUP_AXIS, _item_table, warm_start

NUM_ITEMS, NUM_GROUPS = 24, 3
COLOURS = ["red", "green", "blue"]
ITEM_SPEC = {"vocabulary_size": 3, "width": 1}


def config_of(conditioning: str, *more: str) -> Config:
    small = ["embedding_dim=8", "num_layers=1", "num_heads=1", "expert_hidden_dim=8", f"conditioning={conditioning}"]
    return load_config(
        None,
        [*(f"model.{key}" for key in small), f"groups.num_groups={NUM_GROUPS}", "windows.length=10",
         "training.epochs=2", *more],
    )  # fmt: skip


def make_run(
    root: Path,
    item_order: np.ndarray,
    group_of: np.ndarray,
    colour_order: list[str],
    axes: np.ndarray | None = None,
    feature: str = "colour",
    kind: str = "categorical",
) -> Workdir:
    """A run whose item_index r + 1 is item `item_order[r]`; group, colour and co-occurrence follow the item.

    `axes`: orthogonal [4, 4], what this run's SVD turned the co-occurrence embeddings by; `feature`, `kind`: the
    colour's name and kind.
    """
    rng = np.random.default_rng(0)
    place = np.empty(len(item_order), np.int64)
    place[item_order] = np.arange(len(item_order))
    sequences = [place[rng.integers(0, NUM_ITEMS, 12)] + 1 for _ in range(40)]
    colours = np.array([colour_order.index(COLOURS[item % 3]) + 1 for item in item_order])
    colours = colours[:, None] if kind == "tokens" else colours
    cooccurrence = np.random.default_rng(3).normal(size=(2 * NUM_ITEMS, 4)).astype(np.float32)[item_order]
    log = Log(
        sequences,
        group_of[item_order],
        item_features={feature: ({**ITEM_SPEC, "name": feature, "kind": kind}, colours)},
        cooccurrence=cooccurrence @ (np.eye(4, dtype=np.float32) if axes is None else axes),
    )
    workdir = write_artifacts(log, root)
    ids = [f"item-{item}" for item in item_order]
    for path in (workdir.item_statistics.items, workdir.item_groups.groups):
        columns = pq.read_table(path)
        pq.write_table(columns.set_column(0, "item_id", pa.array(ids)), path)
    folder = workdir.transform.item_vocabularies
    folder.mkdir(parents=True)
    (folder / f"{feature}_vocabulary").write_text("".join(f"{colour}\n" for colour in colour_order))
    return workdir


def random_model(config: Config, workdir: Workdir) -> TwoTowerModel:
    """A model with all weights random, saved as a finished one."""
    model = build_model(config, Catalogue.load(workdir))
    rng = np.random.default_rng(1)
    for weight in model.trainable_variables:
        weight.assign(rng.normal(0, 0.3, weight.shape))
    with writing(workdir.model("dnc").path, Model.KIND, "test") as artifact:
        artifact.details[EXPLORATION_SHARE] = 0.25
        model.save_weights(str(Model(artifact.path).weights))
        Model(artifact.path).config.write_text(config.model_dump_json())
    return model


def scores(model: TwoTowerModel, workdir: Workdir, history: list[int]) -> dict[str, np.ndarray]:
    """item id -> [e_{u,g(i)} . v_i, log p(g(i) | u)]."""
    catalogue = Catalogue.load(workdir)
    place = {identity: index for index, identity in enumerate(catalogue.item_ids, start=1)}
    index = tf.constant([[place[f"item-{item}"] for item in history]], tf.int64)
    queries, intent = model.query_embeddings(index, model.features_of_users(tf.constant([1], tf.int64)))
    items = model.candidate_embeddings(tf.range(1, catalogue.num_items + 1, dtype=tf.int64)).numpy()
    group = catalogue.group_id[1:]
    values = np.stack([(queries.numpy()[0, group] * items).sum(axis=1), intent.numpy()[0, group]], axis=1)
    return dict(zip(catalogue.item_ids, values, strict=True))


CONDITIONINGS = get_args(ModelConfig.model_fields["conditioning"].annotation)
CARRIED_OVER = [
    *(([conditioning], "colour") for conditioning in CONDITIONINGS),
    *((["mmoe", f"model.user_tower={tower}"], "colour") for tower in ("gru", "mean")),
    # A feature may have the name of a weight.
    *((["mmoe"], feature) for feature in ("id_embedding", "cooccurrence_projection", "cooccurrence")),
]


@pytest.mark.parametrize(("settings", "feature"), CARRIED_OVER)
def test_scores_survive_a_new_order_of_everything(tmp_path: Path, settings: list[str], feature: str) -> None:
    """Items, groups, the colours' vocabulary and the axes of the SVD are others, and two items are new."""
    config, rng = config_of(*settings), np.random.default_rng(2)
    group_of = np.arange(NUM_ITEMS + 2) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of, COLOURS, feature=feature)
    earlier = random_model(config, before)
    renamed = np.array([2, 0, 1])[group_of]
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0].astype(np.float32)
    order, colours = rng.permutation(NUM_ITEMS + 2), ["blue", "red", "green"]
    after = make_run(tmp_path / "after", order, renamed, colours, axes, feature)
    warm = config_of(*settings, f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    report = warm_start(model, warm, after, "dnc")
    old, new = (scores(*pair, [3, 7, 11, 2]) for pair in ((earlier, before), (model, after)))
    for item, value in old.items():
        np.testing.assert_allclose(new[item], value, atol=1e-5, err_msg=item)
    assert (report.kept_items, report.new_items, report.kept_groups, report.fresh) == (NUM_ITEMS, 2, NUM_GROUPS, [])
    assert report.kept_values == len(COLOURS)


def test_values_are_matched_where_a_category_becomes_a_list_of_them(tmp_path: Path) -> None:
    """As many values, in another order: the table has the same shape, and its rows mean others."""
    group_of, config = np.arange(NUM_ITEMS) % NUM_GROUPS, config_of("mmoe")
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of, COLOURS)
    earlier = random_model(config, before)
    after = make_run(tmp_path / "after", np.arange(NUM_ITEMS), group_of, ["blue", "red", "green"], kind="tokens")
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    report = warm_start(model, warm, after, "dnc")
    old, new = (scores(*pair, [3, 7, 11, 2]) for pair in ((earlier, before), (model, after)))
    np.testing.assert_allclose([new[item] for item in old], list(old.values()), atol=1e-5)
    assert (report.kept_values, report.fresh) == (len(COLOURS), [])


@pytest.mark.parametrize("compiled", [(False, True), (True, False)], ids=["then compiled", "compiled before"])
def test_an_encoder_is_the_same_whether_it_is_compiled_or_not(tmp_path: Path, compiled: tuple[bool, bool]) -> None:
    run = make_run(tmp_path / "run", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    before, now = (f"training.jit_compile={is_compiled}" for is_compiled in compiled)
    earlier = random_model(config_of("mmoe", before), run)
    warm = config_of("mmoe", now, f"training.warm_start={run.path}")
    model = build_model(warm, Catalogue.load(run))
    report = warm_start(model, warm, run, "dnc")
    assert report.fresh == []
    old, new = (scores(of, run, [3, 7, 11, 2]) for of in (earlier, model))
    np.testing.assert_allclose([new[item] for item in old], list(old.values()), atol=1e-4)


@pytest.mark.parametrize("setting", ["seed=1", "windows.length=12"])
def test_minds_interests_of_a_history_are_those_of_the_run_before(setting: str, tmp_path: Path) -> None:
    """What routing starts from is not trained, so nothing carries it over."""
    workdir = make_run(tmp_path / "run", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    before = baseline_config(config_of("mmoe"), "mind")
    tf.keras.utils.set_random_seed(before.seed)
    earlier = random_model(before, workdir)
    warm = baseline_config(config_of("mmoe", setting, f"training.warm_start={workdir.path}"), "mind")
    tf.keras.utils.set_random_seed(warm.seed)
    model = build_model(warm, Catalogue.for_config(warm, workdir))
    warm_start(model, warm, workdir, "dnc")
    history, user = tf.constant([[3, 9, 1, 20, 7, 4, 11, 2]], tf.int64), tf.constant([1], tf.int64)
    old, new = (each.query_embeddings(history, each.features_of_users(user))[0] for each in (earlier, model))
    np.testing.assert_allclose(new, old, atol=1e-5)


def test_buckets_are_carried_over_where_their_number_stays(tmp_path: Path) -> None:
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    after = make_run(tmp_path / "after", np.arange(NUM_ITEMS + 5), np.arange(NUM_ITEMS + 5) % NUM_GROUPS, COLOURS)
    earlier = table_of(random_model(config_of("none", "model.oov_buckets=3"), before))
    for buckets in (3, 2):
        warm = config_of("none", f"model.oov_buckets={buckets}", f"training.warm_start={before.path}")
        model = build_model(warm, Catalogue.load(after))
        initial = table_of(model)
        warm_start(model, warm, after, "dnc")
        table = table_of(model)
        np.testing.assert_array_equal(table[1 : NUM_ITEMS + 1], earlier[1 : NUM_ITEMS + 1])
        expected = earlier if buckets == 3 else initial
        np.testing.assert_array_equal(table[-buckets:], expected[-buckets:])


def table_of(model: TwoTowerModel) -> np.ndarray:
    return next(weight.numpy() for weight in model.trainable_variables if "id_embedding" in weight.name)


@pytest.mark.parametrize("length", [6, 15])
def test_positions_mean_the_same_in_windows_of_another_length(tmp_path: Path, length: int) -> None:
    """A history that both windows hold is read as before, but only shorter windows know all of their positions."""
    run = make_run(tmp_path / "run", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    earlier = random_model(config_of("mmoe"), run)
    warm = config_of("mmoe", f"windows.length={length}", f"training.warm_start={run.path}")
    model = build_model(warm, Catalogue.load(run))
    report = warm_start(model, warm, run, "dnc")
    old, new = (scores(of, run, [3, 7, 11, 2, 5]) for of in (earlier, model))
    np.testing.assert_allclose([new[item] for item in old], list(old.values()), atol=1e-5)
    assert report.fresh == (["query_tower/positions"] if length > 10 else [])


def test_a_vocabulary_that_doubles_and_a_group_that_vanishes(tmp_path: Path) -> None:
    """Half of the items are new, and what was group 2 is now in group 1; scores of the others stay."""
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    config = config_of("mmoe")
    earlier = random_model(config, before)
    merged = np.minimum(np.arange(2 * NUM_ITEMS) % NUM_GROUPS, 1)
    merged[-1] = 2
    after = make_run(tmp_path / "after", np.arange(2 * NUM_ITEMS), merged, COLOURS)
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    report = warm_start(model, warm, after, "dnc")
    assert (report.kept_items, report.new_items, report.kept_groups, report.new_groups) == (NUM_ITEMS, NUM_ITEMS, 2, 1)
    old, new = (scores(*pair, [3, 7, 11, 2]) for pair in ((earlier, before), (model, after)))
    for item in range(0, NUM_ITEMS, NUM_GROUPS):  # group 0, whose head goes on as it was
        np.testing.assert_allclose(new[f"item-{item}"][0], old[f"item-{item}"][0], atol=1e-5)
    assert np.isfinite(list(new.values())).all()


@pytest.mark.parametrize(("method", "previous", "kept"), [
    ("category", "old", NUM_GROUPS), ("category", "another", 0), ("kmeans", "old", 0)
])  # fmt: skip
def test_groups_of_categories_go_on_where_all_items_are_new(
    tmp_path: Path, method: str, previous: str, kept: int
) -> None:
    """As a day of news: the groups stage names them after the earlier ones, and what is known of a user stays."""
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    before, after = (make_run(tmp_path / name, np.arange(NUM_ITEMS), group_of, COLOURS) for name in ("old", "new"))
    for path in (after.item_statistics.items, after.item_groups.groups):
        ids = pa.array([f"news-{item}" for item in range(NUM_ITEMS)])
        pq.write_table(pq.read_table(path).set_column(0, "item_id", ids), path)
    config = config_of("mmoe", f"training.warm_start={before.path}")
    earlier = random_model(config_of("mmoe"), before)
    named_after = {"method": method, "category": "colour"}
    named_after["previous"] = str(Workdir(tmp_path / previous).item_groups.path)
    config = config.model_copy(update={"groups": config.groups.model_copy(update=named_after)})
    model = build_model(config, Catalogue.load(after))
    report = warm_start(model, config, after, "dnc", frozen=True)
    assert (report.kept_items, report.kept_groups, report.new_groups) == (0, kept, NUM_GROUPS - kept)
    users = model.features_of_users(tf.constant([1], tf.int64))
    old, new = (one.query_embeddings(tf.zeros([1, 1], tf.int64), users) for one in (earlier, model))
    for mine, theirs in zip(new, old, strict=True):
        assert np.allclose(mine, theirs, atol=1e-5) == (kept > 0)


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fitted anew"])
def test_a_kept_group_goes_on_where_all_its_items_are_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kept: bool
) -> None:
    """New items joined group 2 while its own went. After another fit, its id says nothing, and the log says so."""
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    before, after = (make_run(tmp_path / name, np.arange(NUM_ITEMS), group_of, COLOURS) for name in ("old", "new"))
    ids = pa.array([f"new-{item}" if group == 2 else f"item-{item}" for item, group in enumerate(group_of)])
    for path in (after.item_statistics.items, after.item_groups.groups):
        pq.write_table(pq.read_table(path).set_column(0, "item_id", ids), path)
    manifest = json.loads((after.item_groups.path / MANIFEST_NAME).read_text())
    manifest["details"]["drift"] = {"kept": kept}
    (after.item_groups.path / MANIFEST_NAME).write_text(json.dumps(manifest))
    earlier = random_model(config_of("mmoe"), before)
    config = config_of("mmoe", f"training.warm_start={before.path}", f"groups.previous={before.item_groups.path}")
    carried = carry_over(config, after, "fingerprint")
    assert exploration_share(config, carried) == 0.25, "the share that was measured of the model"
    model = load_model(config, after, "dnc")
    users = model.features_of_users(tf.constant([1], tf.int64))
    (old, _), (new, _) = (one.query_embeddings(tf.zeros([1, 1], tf.int64), users) for one in (earlier, model))
    same = np.isclose(new.numpy(), old.numpy(), atol=1e-5).all(axis=(0, 2))
    assert same.tolist() == [True, True, kept]
    assert ("knows no item of" in caplog.text) == (not kept)


def test_a_split_group_shares_its_probability() -> None:
    """Group 0 of six items became 0 (four of them) and 2 (two); group 3 is new, and there was none of its id."""
    earlier = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    now = np.array([0, 0, 0, 0, 2, 2, 1, 1, 3])
    for same_ids in (False, True):
        match = continued_groups(now, earlier, np.array([0, 1, 2, 3, 4, 5, 6, 7, -1]), 4, 2, same_ids)
        assert match.earlier.tolist() == [0, 1, 0, -1]
        np.testing.assert_allclose(np.exp(match.log_share), [4 / 6, 1, 2 / 6, 1], rtol=1e-6)


def test_a_split_groups_parts_begin_with_their_shares_of_its_logit(tmp_path: Path) -> None:
    """Of group 0's items (0, 3, 6, ...), every other one goes to the new group 3."""
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of, COLOURS)
    earlier = random_model(config_of("mmoe"), before)
    split = np.where(np.arange(NUM_ITEMS) % (2 * NUM_GROUPS) == NUM_GROUPS, NUM_GROUPS, group_of)
    after = make_run(tmp_path / "after", np.arange(NUM_ITEMS), split, COLOURS)
    warm = config_of("mmoe", f"groups.num_groups={NUM_GROUPS + 1}", f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    warm_start(model, warm, after, "dnc")
    old, new = (
        next(weight.numpy() for weight in one.trainable_variables if weight.name.startswith("intent_logits/bias"))
        for one in (earlier, model)
    )
    share = np.mean(split[group_of == 0] == 0)
    assert 0 < share < 1
    np.testing.assert_allclose(new[[0, NUM_GROUPS]], old[0] + np.log([share, 1 - share]), rtol=1e-5)
    np.testing.assert_allclose(new[1:NUM_GROUPS], old[1:], rtol=1e-6)


def test_an_item_that_is_trained_from_now_on_starts_among_those_that_are() -> None:
    """Of one group, items 1-5 are known; the earlier model learnt 1 and 2, and today's log has 1 and 3 of them.

    Items 6 (trained) and 7 (cold) are new. Of item 8's group nothing is known.
    """
    group_id, train_count = np.array([-1, 0, 0, 0, 0, 0, 0, 0, 1]), np.array([0, 9, 0, 5, 0, 0, 2, 0, 3])
    catalogue = SimpleNamespace(group_id=group_id, num_groups=2)
    initial = np.full((9, 2), 9.0, np.float32)
    source = np.array([[0, 0], [1, 2], [3, 2], [-5, 1], [-7, 1], [-6, 4]], np.float32)
    learnt = np.arange(8) < 2
    matches = SimpleNamespace(
        items=np.array([0, 1, 2, 3, 4, -1, -1, -1]),
        learnt=learnt,
        starts=~learnt & (train_count[1:] > 0),
        catalogue=catalogue,
        num_earlier=5,
    )
    table = _item_table(initial, source, matches)
    # The means are (2, 2) of the learnt, and (-6, 2) of the cold ones: item 3 moves by (8, 0).
    assert table.tolist() == [[0, 0], [1, 2], [3, 2], [3, 1], [-7, 1], [-6, 4], [2, 2], [9, 9], [9, 9]]


def test_every_weight_with_a_row_a_group_has_a_rule(tmp_path: Path) -> None:
    """Seven groups, a number that no other dimension has: a weight with an axis of 7 must be matched by group."""
    group_of = np.arange(NUM_ITEMS) % 7
    workdir = make_run(tmp_path / "run", np.arange(NUM_ITEMS), group_of, COLOURS)
    for conditioning in CONDITIONINGS:
        model = build_model(config_of(conditioning, "groups.num_groups=7"), Catalogue.load(workdir))
        for weight in model.trainable_variables:
            name = weight.name.removesuffix(":0")
            if 7 in weight.shape:
                assert name == "intent_logits/bias" or weight.shape[GROUP_AXIS[name]] == 7


def test_training_never_ends_worse_than_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that ruins the model: epoch 0, the start, is the best, and its weights are kept, after a kill as well."""
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    workdir = make_run(tmp_path / "run", np.arange(NUM_ITEMS), group_of, COLOURS)
    config = config_of("mmoe", "training.monitor_k=3", "training.epochs=30", "training.early_stopping_patience=30")
    train(config, workdir, "dnc", "first")
    kept = [weight.numpy() for weight in load_model(config, workdir, "dnc").trainable_variables]
    ruinous = {"learning_rate": 50.0, "epochs": 2, "warm_start": str(workdir.path)}
    warm = config.model_copy(update={"training": config.training.model_copy(update=ruinous)})
    after = make_run(tmp_path / "after", np.arange(NUM_ITEMS), group_of, COLOURS)
    save = TrainingState.epoch_done

    def killed(self: TrainingState, entry: dict, patience: int) -> None:
        save(self, entry, patience)
        if entry["epoch"] == 1:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(TrainingState, "epoch_done", killed)
        train(warm, after, "dnc", "second")
    train(warm, after, "dnc", "second")
    history = json.loads(after.model("dnc").history.read_text())
    assert [entry["epoch"] for entry in history] == [0, 1, 2]
    best = max(history, key=lambda entry: entry["validation_recall"])  # the first of equals
    assert read_manifest(after.model("dnc").path).details["best"]["epoch"] == best["epoch"]
    start = load_model(warm, after, "dnc").trainable_variables
    same = [np.allclose(weight.numpy(), value, atol=1e-6) for weight, value in zip(start, kept, strict=True)]
    # On so small a log a ruined model may do better by luck; the start is kept exactly where none did.
    assert all(same) == (best["epoch"] == 0)
    other = make_run(tmp_path / "other", np.arange(NUM_ITEMS), group_of, COLOURS)
    train(
        warm.model_copy(update={"training": warm.training.model_copy(update={"keep_start": False})}), other, "dnc", "f"
    )
    assert [entry["epoch"] for entry in json.loads(other.model("dnc").history.read_text())] == [1, 2]


def test_a_first_epoch_below_the_start_does_not_end_the_training(tmp_path: Path) -> None:
    """Patience counts from the best epoch of the training's own; the weights kept are the best of all."""
    workdir = make_run(tmp_path / "run", np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
    model = build_model(config_of("mmoe"), Catalogue.load(workdir))
    state = TrainingState(tmp_path / "state", "fingerprint", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)
    plateaus, best = [], []
    for epoch, recall in enumerate([0.33, 0.32, 0.35, 0.34]):
        state.epoch_done({"epoch": epoch, "validation_recall": recall, "validation_ndcg": recall}, patience=1)
        plateaus.append(state.plateaus)
        best.append(state.best_epoch["epoch"])
    assert plateaus == [0, 0, 0, 1]
    assert best == [0, 0, 2, 2]
