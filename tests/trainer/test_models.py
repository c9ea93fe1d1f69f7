"""Every model variant passes `model_test` on one log that has every oddity."""

import functools
from typing import get_args

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import BaselineName, Config, ModelConfig
from contracts.config_io import ConfigError, load_config
from contracts.layout import Workdir
from tests.trainer.artifacts import cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from tests.trainer.model_test import embeddings, model_test
from trainer.catalogue import Catalogue
from trainer.evaluation.baselines import UNTRAINED, baseline_config
from trainer.models.build import build_model
from trainer.models.model_parts import conditioning
from trainer.towers.query_tower import _token_conditioning
from trainer.train import BATCH_SIGNATURE, train

SAMPLED = {"loss": {"exact_softmax_max_items": 0, "in_group_pool": 16, "easy_pool": 32, "fresh_pool": 0}}


def variant(**sections: dict) -> Config:
    return small_config(**{**sections, "training": {"epochs": 1, **sections.get("training", {})}})


PRODUCTS = {
    "mmoe": variant(),
    "mmoe, in-group only": variant(training={"loss": {"global_weight": 0.0}}),
    "mmoe, drawn pools": variant(training=SAMPLED),
    "mmoe, every group's vector": variant(training={"loss": {"global_by": "group"}}),
    "mmoe, every group's vector, drawn pools": variant(training={"loss": {**SAMPLED["loss"], "global_by": "group"}}),
    "mmoe, gru": variant(model={"user_tower": "gru"}),
    "mmoe, mean pooling": variant(model={"user_tower": "mean"}),
    "mmoe, gBCE": variant(training={"loss": {"binary_weight": 1.0, "binary_negatives": 3, "binary_calibration": 0.7}}),
    "mmoe, hierarchy": variant(training={"loss": {"hierarchy_weight": 1.0}}),
    "mmoe, pairwise hierarchy": variant(training={"loss": {"hierarchy_weight": 1.0, "hierarchy": "pairwise"}}),
    "mmoe, OOV buckets": variant(model={"oov_buckets": 3, "oov_rate": 0.3}),
    "mmoe, bfloat16": variant(training={"mixed_precision": True}),
    "mmoe, XLA": variant(training={"jit_compile": True}),
    "mmoe, exposed and mined negatives": variant(
        windows={"mined_negatives": 2, "mined_from": "unread.npz"}, training={"loss": {"choice_weight": 1.0}}
    ),
    "concat": variant(model={"conditioning": "concat"}),
    "multiply": variant(model={"conditioning": "multiply"}),
    "concat before the encoder": variant(model={"conditioning": "concat_tokens"}),
    "multiply before the encoder": variant(model={"conditioning": "multiply_tokens"}),
    "multiply before the encoder, drawn pools": variant(model={"conditioning": "multiply_tokens"}, training=SAMPLED),
    "concat before the encoder, gru": variant(model={"conditioning": "concat_tokens", "user_tower": "gru"}),
    "none": variant(model={"conditioning": "none"}),
}
BASELINES = [name for name in BaselineName.__args__ if name not in UNTRAINED]
VARIANTS = PRODUCTS | {name: baseline_config(variant(), name) for name in BASELINES}
QUICK = {
    "mmoe",
    "mmoe, drawn pools",
    "mmoe, gru",
    "mmoe, exposed and mined negatives",
    "mmoe, OOV buckets",
    "concat before the encoder",
    "multiply before the encoder, drawn pools",
    "single_vector_one_negative",
    "mind",
    "matrix_factorisation",
}


def test_every_conditioning_is_built_by_its_name_and_is_tried_here() -> None:
    names = set(get_args(ModelConfig.model_fields["conditioning"].annotation))
    assert {config.model.conditioning for config in PRODUCTS.values()} == names
    for name in names - {"none"}:
        config = variant(model={"conditioning": name})
        if config.model.reads_groups_first:
            layer = _token_conditioning(config, 3)
        else:
            layer = conditioning(config, 3, tf.random.Generator.from_seed(0))
        assert layer.name == name


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Workdir:
    """Every kind of side feature; a group and items without training events; a history of one group."""
    rng = np.random.default_rng(0)
    log = cyclic_log(num_users=60, num_items=50, num_groups=3, exposed_negatives=1, mined_negatives=2)
    log.group_id = np.concatenate([log.group_id, np.full(10, 3)])
    log.sequences = [np.flatnonzero(log.group_id == 0)[:8] + 1, *log.sequences[1:]]
    tokens = {"name": "genres", "kind": "tokens", "vocabulary_size": 6, "width": 3}
    category = {"name": "country", "kind": "categorical", "vocabulary_size": 3, "width": 1}
    number = {"name": "age", "kind": "numeric", "vocabulary_size": 0, "width": 1}
    vector = {"name": "picture", "kind": "vector", "vocabulary_size": 0, "width": 5}
    log.item_features = {
        "genres": (tokens, rng.integers(0, 7, (60, 3))),
        "picture": (vector, rng.normal(size=(60, 5)).astype(np.float32)),
    }
    log.user_features = {
        "country": (category, rng.integers(0, 4, 60)),
        "age": (number, rng.normal(size=60).astype(np.float32)),
    }
    return write_artifacts(log, tmp_path_factory.mktemp("odd"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in VARIANTS]
)
def test_model(name: str, odd: Workdir) -> None:
    model_test(VARIANTS[name], odd)


def test_matrix_factorisation_tells_users_apart_and_reads_no_history(odd: Workdir) -> None:
    model = build_model(VARIANTS["matrix_factorisation"], Catalogue.for_config(VARIANTS["matrix_factorisation"], odd))
    features = model.features_of_users(tf.constant([1, 2, 0], tf.int64))
    one, _ = model.query_embeddings(tf.constant([[3], [3], [3]], tf.int64), features)
    other, _ = model.query_embeddings(tf.constant([[9, 8], [9, 8], [9, 8]], tf.int64), features)
    np.testing.assert_array_equal(one, other)
    assert np.abs(one[0] - one[1]).max() > 1e-3
    np.testing.assert_array_equal(one[2], tf.zeros_like(one[2]))
    with pytest.raises(ValueError, match="user_tower=user_id"):
        model.query_embeddings(tf.constant([[3]], tf.int64), {})


@pytest.mark.parametrize("tower", ["mind", "comirec", "user_id"])
@pytest.mark.parametrize("further", [[], ["groups.num_groups=1", "model.conditioning=none"]])
def test_a_baselines_tower_is_refused_as_the_products(tower: str, further: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"model.user_tower: {tower} is only for baselines.* list mind"):
        load_config(None, [f"model.user_tower={tower}", *further])


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_the_terms_of_its_name_alone(name: str) -> None:
    every_term = {f"{term}_weight": 0.5 for term in ("z", "binary", "choice", "hierarchy")}
    product = variant(windows={"mined_negatives": 2, "mined_from": "unread.npz"}, training={"loss": every_term})
    loss = baseline_config(product, name).training.loss
    weights = {key: value for key, value in loss.model_dump().items() if key.endswith("_weight") and value}
    expected = {
        "single_vector_one_negative": {"binary_weight": 1.0},
        "single_vector_mixed": {"in_group_weight": 1.0, "global_weight": 1.0},
    }
    assert weights == expected.get(name, {"global_weight": 1.0})


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_has_as_many_draws_as_the_product(name: str) -> None:
    """Of 123; without groups, those in the place of in-group ones are fresh, or all are of what its name says."""
    pools = {"in_group_pool": 100, "easy_pool": 20, "fresh_pool": 3}
    config = baseline_config(variant(training={"loss": pools}), name)
    loss = config.training.loss
    drawn_by_name = name in {"single_vector_uniform", "single_vector_popularity", "single_vector_in_batch"}
    expected = (3, 20) if name == "single_vector_mixed" else (0, 123) if drawn_by_name else (103, 20)
    assert (loss.fresh_pool, loss.easy_pool) == expected
    assert config.groups.num_groups == (4 if name == "single_vector_mixed" else 1)


def test_the_mixed_baseline_ranks_by_one_vector_alone(odd: Workdir) -> None:
    config = VARIANTS["single_vector_mixed"]
    model = build_model(config, Catalogue.for_config(config, odd))
    queries, log_intent, _ = embeddings(model)
    np.testing.assert_array_equal(queries, np.repeat(queries[:, :1], 4, axis=1))
    np.testing.assert_allclose(log_intent, -np.log(4), rtol=1e-6)


def test_bfloat16_is_for_transformers() -> None:
    with pytest.raises(ConfigError, match=r"works with model.user_tower=transformer only; got gru"):
        load_config(None, ["model.user_tower=gru", "training.mixed_precision=true"])


def test_xla_is_not_for_the_gru() -> None:
    with pytest.raises(ConfigError, match=r"jit_compile=true does not work with model.user_tower=gru: set .*=false"):
        load_config(None, ["model.user_tower=gru", "training.jit_compile=true"])


def test_xla_compiles_what_training_computes_and_no_answer(odd: Workdir) -> None:
    model = build_model(variant(training={"jit_compile": True}), Catalogue.load(odd))
    for training in (True, False):
        loss = functools.partial(model.compute_loss, training=training)
        traced = tf.function(loss, input_signature=[BATCH_SIGNATURE], autograph=False).get_concrete_function()
        functions = traced.graph.as_graph_def().library.function
        assert any(function.attr["_XlaMustCompile"].b for function in functions) == training


def test_bfloat16_changes_the_encoders_arithmetic_not_its_weights(odd: Workdir) -> None:
    exact = build_model(variant(), Catalogue.load(odd))
    rounded = build_model(variant(training={"mixed_precision": True}), Catalogue.load(odd))
    rounded.set_weights(exact.get_weights())
    assert all(weight.dtype != tf.bfloat16 for weight in rounded.weights)
    difference = np.abs(embeddings(exact)[0] - embeddings(rounded)[0]).max()
    assert 0 < difference < 0.1


def test_an_unknown_baseline_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'bpr' is not a baseline .* 'mind'"):
        baseline_config(small_config(), "bpr")


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_of_any_product_is_a_valid_config(name: str) -> None:
    config = baseline_config(variant(training={"mixed_precision": True}), name)
    assert Config.model_validate(config.model_dump()) == config


@pytest.mark.parametrize("negatives", ["uniform", "popularity", "in_batch"])
def test_a_sampled_softmax_without_samples_is_refused(odd: Workdir, negatives: str) -> None:
    config = variant(training={"loss": {**SAMPLED["loss"], "negatives": negatives, "easy_pool": 0}})
    with pytest.raises(ValueError, match=f"negatives={negatives} draws training.loss.easy_pool .* both are 0: .* 1"):
        train(config, odd, "without-samples", "first")


@pytest.mark.parametrize("global_by", ["shared", "group"])
@pytest.mark.parametrize("none", [{"training": {"loss": {"easy_pool": 0}}}, {"windows": {"easy_negatives": 0}}])
def test_a_global_softmax_without_easy_negatives_is_refused(odd: Workdir, none: dict, global_by: str) -> None:
    loss = {**SAMPLED["loss"], "global_by": global_by, **none.get("training", {}).get("loss", {})}
    config = variant(**{**none, "training": {"loss": loss}})
    with pytest.raises(ValueError, match=r"easy negatives, but windows.easy_negatives=(2 and .*=0|0 and .*=32):"):
        train(config, odd, "without-easy", "first")


def test_in_group_softmaxes_alone_need_no_easy_negatives(odd: Workdir) -> None:
    config = variant(training={"loss": {**SAMPLED["loss"], "easy_pool": 0, "global_weight": 0.0}})
    assert train(config, odd, "in-group-alone", "first").counts["epochs"] == 1


def test_an_objective_without_terms_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be positive"):
        load_config(None, ["training.loss.global_weight=0", "training.loss.in_group_weight=0"])


def test_an_objective_that_trains_no_groups_vector_is_refused() -> None:
    only_shared = ["training.loss.in_group_weight=0"]
    with pytest.raises(ConfigError, match=r"trains no group vectors, but model.conditioning=mmoe .* global_by=group"):
        load_config(None, only_shared)
    load_config(None, [*only_shared, "training.loss.global_by=group"])
    load_config(None, [*only_shared, "model.conditioning=none"])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_model(odd: Workdir) -> None:
    results = []
    for name in ("left", "right"):
        train(VARIANTS["mmoe, drawn pools"], odd, name, "x")
        results.append(odd.model(name).history.read_text())
    assert _without_times(results[0]) == pytest.approx(_without_times(results[1]), rel=1e-4)


def _without_times(history: str) -> dict[str, float]:
    import json

    entry = json.loads(history)[-1]
    return {key: value for key, value in entry.items() if not key.startswith(("seconds", "positives_per"))}
