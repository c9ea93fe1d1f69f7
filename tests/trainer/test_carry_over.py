"""A model on another catalogue without training, as `dnc index` does it."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from contracts.layout import Workdir
from contracts.names import ItemColumn, Split
from tests.trainer.test_warm_start import (
    COLOURS,
    ITEM_SPEC,
    NUM_GROUPS,
    NUM_ITEMS,
    config_of,
    make_run,
    random_model,
    scores,
    table_of,
)
from trainer import evaluate
from trainer.carry_over import carry_over
from trainer.catalogue import Catalogue
from trainer.evaluation.baselines import baseline_config
from trainer.evaluation.exploration_share import EXPLORATION_SHARE
from trainer.input.evaluation_users import EvaluationUsers
from trainer.layers.feature_embedding import feature_weight
from trainer.models.build import build_model
from trainer.models.model_files import load_model
from trainer.models.two_tower_model import TwoTowerModel
from trainer.training.warm_start import warm_start


def test_without_training_known_items_keep_their_vectors(tmp_path: Path) -> None:
    """Today's co-occurrence of an item is another than yesterday's; an index refresh must not move the item."""
    rng = np.random.default_rng(4)
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of, COLOURS)
    config = config_of("mmoe")
    earlier = random_model(config, before)
    after = make_run(tmp_path / "after", np.arange(NUM_ITEMS), group_of, COLOURS)
    np.save(after.item_groups.embeddings, rng.normal(size=(NUM_ITEMS, 4)).astype(np.float32))
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    carry_over(warm, after, "fingerprint")
    trained = build_model(warm, Catalogue.load(after))
    warm_start(trained, warm, after, "dnc")
    known, carried, start = (
        model.candidate_embeddings(tf.range(NUM_ITEMS + 1)).numpy()
        for model in (earlier, load_model(warm, after, "dnc"), trained)
    )
    np.testing.assert_allclose(carried, known, atol=1e-6)
    assert np.abs(start - known)[1:].max() > 0.1
    np.save(after.item_groups.embeddings, rng.normal(size=(NUM_ITEMS, 3)).astype(np.float32))
    report = warm_start(build_model(warm, Catalogue.load(after)), warm, after, "dnc")
    assert report.fresh == ["candidate_tower/cooccurrence_projection"]  # which reads as many numbers as there are


def cold(workdir: Workdir, items: slice) -> None:
    table = pq.read_table(workdir.item_statistics.items)
    at = table.schema.get_field_index(ItemColumn.TRAIN_COUNT)
    counts = np.arange(1, table.num_rows + 1)
    counts[items] = 0
    pq.write_table(table.set_column(at, ItemColumn.TRAIN_COUNT, pa.array(counts)), workdir.item_statistics.items)


def test_a_new_item_starts_among_what_the_model_learnt_and_not_among_its_cold_items(tmp_path: Path) -> None:
    """Of a group, today's log has items that the model knew as nobody's, and new ones. These are not to begin there."""
    number = NUM_ITEMS + 4
    group_of = np.arange(number) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of[:NUM_ITEMS], COLOURS)
    today = make_run(tmp_path / "today", np.arange(number), group_of, COLOURS)
    cold(before, slice(12, None))
    cold(today, slice(0, 12))
    config = config_of("mmoe")
    known = random_model(config, before)._candidate_tower._id_table.numpy()[1:]
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    carry_over(warm, today, "fingerprint")
    carried = load_model(warm, today, "dnc")._candidate_tower._id_table.numpy()[1:]
    np.testing.assert_allclose(carried[:NUM_ITEMS], known)
    for item in range(NUM_ITEMS, number):
        np.testing.assert_allclose(carried[item], known[item % NUM_GROUPS : 12 : NUM_GROUPS].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("buckets", [0, 5])
def test_without_training_what_was_trained_on_is_what_the_model_learnt_from(tmp_path: Path, buckets: int) -> None:
    """A day's log lacks most items. They are not cold for that, and histories read their rows, not their buckets'."""
    number = NUM_ITEMS + 4
    group_of = np.arange(number) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of[:NUM_ITEMS], COLOURS)
    today, tomorrow = (make_run(tmp_path / day, np.arange(number), group_of, COLOURS) for day in ("today", "tomorrow"))
    cold(before, slice(20, None))
    cold(today, slice(3, 18))
    cold(tomorrow, slice(0, 2))
    config = config_of("mmoe", f"model.oov_buckets={buckets}")
    model = random_model(config, before)
    history = [0, 2, 5, 9, 17, 21]
    known = scores(model, before, history)
    source = before
    for workdir in (today, tomorrow):
        warm = config_of("mmoe", f"model.oov_buckets={buckets}", f"training.warm_start={source.path}")
        carry_over(warm, workdir, "fingerprint")
        carried = scores(load_model(warm, workdir, "dnc"), workdir, history)
        for item, values in known.items():
            np.testing.assert_allclose(carried[item], values, atol=1e-5)
        is_trained = Catalogue.load(workdir).known_to(workdir.model("dnc")).is_trained
        assert is_trained.tolist() == [False, *[True] * 20, *[False] * 8]
        source = workdir


def test_what_is_carried_over_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of 28 items, 24 are known. All of the last group's are new, so nothing is known of that group."""
    number = NUM_ITEMS + 4
    of_group = np.append(np.arange(NUM_ITEMS) % (NUM_GROUPS - 1), [NUM_GROUPS - 1] * 4)
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), of_group[:NUM_ITEMS], COLOURS)
    today = make_run(tmp_path / "today", np.arange(number), of_group, COLOURS)
    random_model(config_of("mmoe"), before)
    # What is served follows the model, whose share random_model sets to .25, unless its own config says otherwise.
    warm = config_of("mmoe", f"training.warm_start={before.path}", "serving.exploration_share=0.5")
    manifest = carry_over(warm, today, "fingerprint")
    assert manifest.counts.items() >= {"kept_items": 24, "new_items": 4}.items()
    assert manifest.details[EXPLORATION_SHARE] == 0.25
    assert manifest.details["warm_start"]["new_groups"] == 1
    assert today.model("dnc").trained_items.name in manifest.files
    assert "knows no item of 1 of the 3 groups" in caplog.text


def test_what_nobody_knows_is_random_by_the_seed(tmp_path: Path) -> None:
    """Two refreshes of the same day are the same model, whatever ran in the process before."""
    of_group = np.append(np.arange(NUM_ITEMS) % (NUM_GROUPS - 1), [NUM_GROUPS - 1] * 4)
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), of_group[:NUM_ITEMS], COLOURS)
    today = make_run(tmp_path / "today", np.arange(NUM_ITEMS + 4), of_group, COLOURS)
    random_model(config_of("mmoe"), before)
    found = []
    for seed in (7, 7, 8):
        warm = config_of("mmoe", f"training.warm_start={before.path}", f"seed={seed}")
        carry_over(warm, today, f"fingerprint of {len(found)}")
        found.append(load_model(warm, today, "dnc").get_weights())
    first, again, other = found
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any((one != two).any() for one, two in zip(first, other, strict=True))


def test_an_index_refresh_says_which_settings_the_weights_need(tmp_path: Path) -> None:
    """Those that are no model's and no loss's: these are compared before anything runs."""
    before, after = (
        make_run(tmp_path / name, np.arange(NUM_ITEMS), np.arange(NUM_ITEMS) % NUM_GROUPS, COLOURS)
        for name in ("before", "after")
    )
    random_model(config_of("mmoe"), before)
    np.save(after.item_groups.embeddings, np.zeros((NUM_ITEMS, 3), np.float32))
    config = config_of("mmoe", "windows.length=15", f"training.warm_start={before.path}")
    with pytest.raises(ValueError, match=r"query_tower/positions,.* windows.length and groups.embedding_dim"):
        carry_over(config, after, "fingerprint")


def of_weight(model: TwoTowerModel, name: str) -> np.ndarray:
    return next(weight.numpy() for weight in model.trainable_variables if name in weight.name)


def test_users_keep_their_vectors_in_another_order(tmp_path: Path) -> None:
    group_of = np.arange(NUM_ITEMS) % NUM_GROUPS
    before, after = (make_run(tmp_path / name, np.arange(NUM_ITEMS), group_of, COLOURS) for name in ("old", "new"))
    users = pq.read_table(after.item_statistics.users)
    pq.write_table(users.take(np.arange(len(users))[::-1]), after.item_statistics.users)
    earlier = random_model(baseline_config(config_of("mmoe"), "matrix_factorisation"), before)
    warm = baseline_config(config_of("mmoe", f"training.warm_start={before.path}"), "matrix_factorisation")
    model = build_model(warm, Catalogue.for_config(warm, after))
    warm_start(model, warm, after, "dnc")
    old, new = (of_weight(one, "user_embedding") for one in (earlier, model))
    np.testing.assert_array_equal(new, np.concatenate([old[:1], old[:0:-1]]))


def test_a_users_feature_is_matched_by_value(tmp_path: Path) -> None:
    group_of, runs = np.arange(NUM_ITEMS) % NUM_GROUPS, []
    for name, values in (("old", COLOURS), ("new", COLOURS[::-1])):
        run = make_run(tmp_path / name, np.arange(NUM_ITEMS), group_of, COLOURS)
        spec = json.loads(run.transform.feature_spec.read_text())
        spec["user"] = [{**ITEM_SPEC, "name": "likes", "kind": "categorical"}]
        run.transform.feature_spec.write_text(json.dumps(spec))
        users = pq.read_table(run.transform.users)
        column = pa.array(np.arange(len(users)) % 3 + 1)
        pq.write_table(users.append_column("likes", column), run.transform.users)
        run.transform.user_vocabularies.mkdir(parents=True)
        lines = "".join(f"{value}\n" for value in values)
        (run.transform.user_vocabularies / "likes_vocabulary").write_text(lines)
        runs.append(run)
    before, after = runs
    earlier = random_model(config_of("mmoe"), before)
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    report = warm_start(model, warm, after, "dnc")
    old, new = (of_weight(one, feature_weight("likes")) for one in (earlier, model))
    np.testing.assert_array_equal(new, old[[0, 3, 2, 1]])
    assert report.kept_values == 2 * len(COLOURS)


def test_a_new_item_without_events_keeps_its_initial_row(tmp_path: Path) -> None:
    number = NUM_ITEMS + 5
    before, after = (
        make_run(tmp_path / str(size), np.arange(size), np.arange(size) % NUM_GROUPS, COLOURS)
        for size in (NUM_ITEMS, number)
    )
    random_model(config_of("none"), before)
    warm = config_of("none", f"training.warm_start={before.path}")
    model = build_model(warm, Catalogue.load(after))
    initial = table_of(model)
    warm_start(model, warm, after, "dnc")
    np.testing.assert_array_equal(table_of(model)[NUM_ITEMS + 1 :], initial[NUM_ITEMS + 1 :])


def test_what_the_model_was_not_trained_on_is_cold_to_its_evaluation_as_it_is_to_its_servable(tmp_path: Path) -> None:
    """Today's log has trained on the four new items, and the model has not: a quarter of each list is theirs."""
    number = NUM_ITEMS + 4
    group_of = np.arange(number) % NUM_GROUPS
    before = make_run(tmp_path / "before", np.arange(NUM_ITEMS), group_of[:NUM_ITEMS], COLOURS)
    today = make_run(tmp_path / "today", np.arange(number), group_of, COLOURS)
    cold(today, slice(0))  # none
    random_model(config_of("mmoe"), before)  # whose exploration share is .25
    warm = config_of("mmoe", f"training.warm_start={before.path}")
    carry_over(warm, today, "fingerprint")
    users = EvaluationUsers.load(today, Split.TEST)
    lists = evaluate._ranking(warm, today, "dnc", Catalogue.load(today), users).lists("score", 1.0, 8)
    assert len(users) and ((lists > NUM_ITEMS).sum(axis=1) == 2).all()
