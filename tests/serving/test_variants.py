"""Models whose towers read a request otherwise, exported and served."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from contracts.config import Config, LossConfig, TrainingConfig
from contracts.config.data import FeedbackConfig
from contracts.layout import SAVED_MODEL
from contracts.names import Request, Response, Signature, Split
from serving.export import export
from serving.servable_session import ServableSession
from serving.user_requests import user_requests
from serving.validation.validate_process import check_servables
from tests.serving.asking import check, corpus_of, history_inputs
from tests.serving.conftest import Trained, make_config, write_model
from trainer.catalogue import Catalogue
from trainer.evaluation.ranking import ExactRanking, encode_users
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.ragged import Ragged
from trainer.models.model_files import load_model
from trainer.towers.oov_buckets import bucket_index

VARIANTS = {
    "group before the encoder": {"conditioning": "multiply_tokens"},
    "group as a token": {"conditioning": "concat_tokens", "user_tower": "gru"},
    "buckets of unknown ids": {"oov_buckets": 7},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_served_as_it_was_evaluated(name: str, trained: Trained) -> None:
    """The trainer's vectors for every group, and lists that are the exact merge."""
    model = name.replace(" ", "_")
    config = make_config(VARIANTS[name], indexes=("exact",), model_name=model)
    write_model(config, trained.workdir, model, seed=3)
    version = export(config, trained.workdir, model, "fingerprint")
    users = EvaluationUsers.load(trained.workdir, Split.TEST)
    queries, log_intent = encode_users(load_model(config, trained.workdir, model), users)
    assert np.abs(queries - queries[:, :1]).max() > 1e-2, "all groups have the same vector"
    requests = user_requests(trained.workdir, trained.catalogue, users)
    with ServableSession(version, num_threads=1) as session:
        served, intent = session.query_embedding(requests.histories, user_id=requests.user_ids, **requests.told)
        np.testing.assert_allclose(served, queries, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(intent, np.exp(log_intent), rtol=1e-4, atol=1e-6)
        corpus = corpus_of(session, trained.catalogue)
        histories = [["i1", "nobody", "i7"], [], ["i2"]]
        verdict, _ = check(session, corpus, trained.catalogue, config.serving, histories, {}, 1.0)
        assert verdict.failures == []


def test_a_servable_needs_no_xla(trained: Trained) -> None:
    """Of which a stock TF Serving refuses functions on a CPU, unless it is told otherwise by a flag."""
    training = TrainingConfig(jit_compile=True)
    config = make_config(indexes=("exact",), model_name="compiled").model_copy(update={"training": training})
    write_model(config, trained.workdir, "compiled", seed=6)
    version = export(config, trained.workdir, "compiled", "fingerprint")
    assert b"_XlaMustCompile" not in (version / SAVED_MODEL).read_bytes()


def test_the_intent_is_in_the_score_where_no_term_compares_groups(trained: Trained) -> None:
    """By hand, from what the servable's other signatures say of user and items."""
    training = TrainingConfig(loss=LossConfig(global_weight=0.0))
    config = make_config(indexes=("exact",), model_name="in_group").model_copy(update={"training": training})
    write_model(config, trained.workdir, "in_group", seed=5)
    history = [["i3", "i7", "i9"]]
    with ServableSession(export(config, trained.workdir, "in_group", "fingerprint"), num_threads=1) as session:
        queries, intent = session.query_embedding(history)
        corpus = corpus_of(session, trained.catalogue)
        lists = session.recommend(history, num_candidates=20, num_exploration=2)
    assert intent.max() > 2 * intent.min()
    group = corpus.group_ids
    scores = (queries[0, group] * corpus.embeddings).sum(axis=1) + np.log(intent[0, group])
    scores[[2, 6, 8]] = -np.inf
    ids = trained.catalogue.item_ids
    cold = [item for item in np.argsort(-scores) if corpus.is_cold[item]][:2]
    others = [item for item in np.argsort(-scores) if item not in cold][:18]
    expected = sorted([*cold, *others], key=lambda item: -scores[item])
    assert lists.item_ids[0].tolist() == ids[expected].tolist()
    np.testing.assert_allclose(lists.scores[0], scores[expected], rtol=1e-4, atol=1e-4)


def test_the_share_of_cold_items_is_served_as_it_was_evaluated(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The share that was measured of the model; a request may ask for another number, and the config for no share."""
    monkeypatch.setattr("serving.graph.exploration._CODE", 0.0)  # by which items that nearly tie may change places
    config = make_config(indexes=("exact",), model_name="exploring")
    write_model(config, trained.workdir, "exploring", seed=7, exploration_share=0.3)
    users = EvaluationUsers.load(trained.workdir, Split.TEST)
    requests = user_requests(trained.workdir, trained.catalogue, users)
    asked = functools.partial(requests.ask, rows=slice(None))
    model, index_of = load_model(config, trained.workdir, "exploring"), index_by_id(trained.catalogue)
    is_cold = trained.catalogue.train_count == 0
    with ServableSession(export(config, trained.workdir, "exploring", "fingerprint"), num_threads=1) as session:
        for merge, length in itertools.product(("score", "quota"), (10, 25)):
            lists = index_of(asked(session, merge=merge, num_candidates=length).item_ids)
            # 3 of 10; 7.5 of 25 are 8. Random weights place cold items as high as others.
            assert is_cold[lists].sum(axis=1).min() >= {10: 3, 25: 8}[length]
            ranking = ExactRanking(model, trained.catalogue, users, 0.3)
            np.testing.assert_array_equal(lists, ranking.lists(merge, config.serving.alpha, length))
        plain = index_of(asked(session, num_candidates=25, num_exploration=0).item_ids)
    np.testing.assert_array_equal(plain, ExactRanking(model, trained.catalogue, users).lists("score", 1.0, 25))
    without = make_config(indexes=("exact",), model_name="not_exploring", exploration_share=0.0)
    with ServableSession(export(without, trained.workdir, "exploring", "fingerprint"), num_threads=1) as session:
        np.testing.assert_array_equal(index_of(asked(session, num_candidates=25).item_ids), plain)


def test_context_is_served_as_it_was_evaluated(trained: Trained) -> None:
    """Vectors and lists of histories of which some events are context: these items may be returned."""
    config = context_config("context")
    write_model(config, trained.workdir, "context", seed=8)
    users = with_context(EvaluationUsers.load(trained.workdir, Split.TEST))
    requests = user_requests(trained.workdir, trained.catalogue, users)
    model, index_of = load_model(config, trained.workdir, "context"), index_by_id(trained.catalogue)
    version = export(config, trained.workdir, "context", "fingerprint")
    with ServableSession(version, num_threads=1) as session:
        queries, _ = encode_users(model, users)
        histories, told = requests.given(session.specs[Signature.QUERY_EMBEDDING], slice(None))
        served, _ = session.query_embedding(histories, **told)
        np.testing.assert_allclose(served, queries, rtol=1e-4, atol=1e-4)
        unmarked, _ = session.query_embedding(histories, **{**told, Request.HISTORY_IS_CONTEXT: None})
        assert np.abs(served - unmarked).max() > 1e-2
        lists = index_of(requests.ask(session, slice(None), num_candidates=25).item_ids)
        np.testing.assert_array_equal(lists, ExactRanking(model, trained.catalogue, users).lists("score", 1.0, 25))
        # Of marks, those that are left out are none, and those beyond the history are nobody's.
        one = history_inputs([["i1", "i2", "i3"]])
        few, many = (
            session.predict(Signature.QUERY_EMBEDDING, {**one, Request.HISTORY_IS_CONTEXT: np.array([marks])})
            for marks in ([True], [True] + [False] * 9)
        )
        np.testing.assert_allclose(few[Response.EMBEDDINGS], many[Response.EMBEDDINGS], rtol=1e-5, atol=1e-5)
        # Shown and then taken, or shown twice: read as training reads it.
        twice = session.query_embedding(
            [["i1", "i2", "i1", "i3", "i3"]], history_is_context=[[True, False, False, True, True]]
        )
        once = session.query_embedding([["i2", "i1", "i3"]], history_is_context=[[False, False, True]])
        np.testing.assert_allclose(twice[0], once[0], rtol=1e-5, atol=1e-5)
    assert check_servables(config, trained.workdir, version)["failures"] == []


def test_where_repeats_are_kept_those_of_context_are_not(trained: Trained) -> None:
    """As `beam_jobs.records.history_events` has it: of context the first event, and none of an item that is taken."""
    config = context_config("repeats", repeats="keep")
    write_model(config, trained.workdir, "repeats", seed=9)
    with ServableSession(export(config, trained.workdir, "repeats", "fingerprint"), num_threads=1) as session:
        history, marks = ["i1", "i2", "i4", "i1", "i3", "i2", "i3"], [True, False, True, False, True, False, True]
        raw, _ = session.query_embedding([history], history_is_context=[marks])
        read, _ = session.query_embedding(
            [["i2", "i4", "i1", "i3", "i2"]], history_is_context=[[False, True] * 2 + [False]]
        )
        once, _ = session.query_embedding([["i2", "i4", "i1", "i3"]], history_is_context=[[False, True] * 2])
    np.testing.assert_allclose(raw, read, rtol=1e-5, atol=1e-5)
    assert np.abs(raw - once).max() > 1e-3


def context_config(model_name: str, **windows: str) -> Config:
    """Of a log whose events below the target level are context."""
    plain = make_config(indexes=("exact",), model_name=model_name)
    data = plain.data.model_copy(update={"feedback": FeedbackConfig(levels=("seen", "liked"), target_level="liked")})
    return plain.model_copy(update={"data": data, "windows": plain.windows.model_copy(update=windows)})


def test_a_model_without_context_is_asked_without_it(servables: dict[str, Path]) -> None:
    """As the gate asks the version that serves, where the next one is the first to read context."""
    with ServableSession(servables["exact"], num_threads=1) as session:
        marked = session.recommend([["i1", "i2", "i3"]], history_is_context=[[False, True, False]], num_candidates=9)
        plain = session.recommend([["i1", "i3"]], num_candidates=9)
    assert marked.item_ids.tolist() == plain.item_ids.tolist()


def with_context(users: EvaluationUsers) -> EvaluationUsers:
    """Every third event of each history as context."""
    history, seen = [], []
    for row in range(len(users)):
        one = users.take(np.array([row]))
        events = one.history.values * np.where(np.arange(len(one.history.values)) % 3 == 1, -1, 1)
        history.append(events)
        seen.append(np.setdiff1d(one.seen.values, -events))
    as_ragged = [Ragged(np.concatenate(rows), np.cumsum([0, *map(len, rows)])) for rows in (history, seen)]
    return replace(users, history=as_ragged[0], seen=as_ragged[1])


def index_by_id(catalogue: Catalogue) -> Callable[[np.ndarray], np.ndarray]:
    index_of = {"": 0} | {item: index for index, item in enumerate(catalogue.item_ids, start=1)}
    return np.vectorize(index_of.__getitem__, otypes=[np.int64])


def test_an_unknown_id_in_a_history_is_its_bucket(trained: Trained) -> None:
    """At its place in the history, padding aside; and it is no item, so that nothing is excluded by it."""
    config = make_config({"oov_buckets": 7}, indexes=("exact",), model_name="unknown_ids")
    write_model(config, trained.workdir, "unknown_ids", seed=4)
    version = export(config, trained.workdir, "unknown_ids", "fingerprint")
    model, num_items = load_model(config, trained.workdir, "unknown_ids"), trained.catalogue.num_items
    users = model.features_of_users(tf.zeros([1], tf.int64))
    with ServableSession(version, num_threads=1) as session:
        for unknown in ("nobody", "another", "neu\u00e9"):
            bucket = int(bucket_index(tf.constant(unknown), num_items, 7))
            expected, _ = model.query_embeddings(tf.constant([[1, bucket, 7]]), users)
            served, _ = session.query_embedding([["", "i1", unknown, "", "i7"]])
            np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-4)
            without, _ = session.query_embedding([["i1", "i7"]])
            assert np.abs(served - without).max() > 1e-3
        # new1 and new4 share a bucket and are two items; what follows of either is a repeat.
        bucket, other = bucket_index(tf.constant(["new1", "new4"]), num_items, 7).numpy().tolist()
        assert bucket == other
        expected, _ = model.query_embeddings(tf.constant([[bucket, 1, bucket]]), users)
        served, _ = session.query_embedding([["new1", "i1", "new4", "new1", "i1", "new4"]])
        np.testing.assert_allclose(served, expected, rtol=1e-4, atol=1e-4)
        lists = session.recommend([["nobody"]], num_candidates=num_items)
        assert (lists.item_ids != "").sum() == num_items
