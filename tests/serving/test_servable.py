"""The exported servable, through the session loader, against brute force in NumPy."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from contracts.names import MERGES, Request, Response, Signature, Split
from serving.export import MANIFEST_FILE
from serving.servable_session import Recommendations, ServableSession
from serving.user_requests import user_requests
from serving.validation.loaders import CServable
from serving.validation.servable_evaluation import evaluate_servable
from serving.versions import last_version, next_version
from serving.warmup import read_warmup
from tests.serving.asking import check, corpus_of, random_controls
from tests.serving.conftest import GROUP_SIZES, MODEL, NUM_USERS, Trained, make_log
from trainer.evaluate import evaluate
from trainer.evaluation.ranking import encode_users
from trainer.input.evaluation_users import EvaluationUsers
from trainer.models.model_files import load_model


@pytest.fixture(scope="module", params=["scann", "exact"])
def session(servables: dict[str, Path], request: pytest.FixtureRequest):
    with ServableSession(servables[request.param], num_threads=1) as loaded:
        yield loaded


def assert_exact_merge(
    session: ServableSession, trained: Trained, histories: list[list[str]], recall_target: float = 0.95, **controls: Any
) -> Recommendations:
    corpus = corpus_of(session, trained.catalogue)
    verdict, lists = check(
        session, corpus, trained.catalogue, trained.config.serving, histories, controls, recall_target
    )
    assert verdict.failures == []
    return lists


def test_what_has_no_model_is_no_last_version_and_its_number_is_taken(tmp_path: Path):
    assert (last_version(tmp_path), next_version(tmp_path)) == (None, 1)
    for name in ("9", "10", "²", "11.old"):  # ² is a digit to `str.isdigit`, and no number to `int`
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").touch()
    (tmp_path / "11").mkdir()
    assert (last_version(tmp_path), next_version(tmp_path)) == (tmp_path / "10", 12)


def test_signatures_are_the_contract(session):
    query = {
        "history": tf.string,
        "user_id": tf.string,
        "page": tf.string,
        "device": tf.string,
        "gender": tf.string,
        "tags": tf.string,
        "age": tf.float32,
    }
    merge = {
        "num_candidates": tf.int32,
        "alpha": tf.float32,
        "merge": tf.string,
        "group_boost": tf.float32,
        "groups": tf.int32,
        "max_groups": tf.int32,
        "exclude_item_ids": tf.string,
        "num_exploration": tf.int32,
    }
    expected = {
        Signature.SERVING_DEFAULT: (
            {**query, **merge},
            {"item_ids": tf.string, "scores": tf.float32, "group_ids": tf.int32},
        ),
        Signature.QUERY_EMBEDDING: (query, {"embeddings": tf.float32, "intent": tf.float32}),
        Signature.CANDIDATE_EMBEDDING: ({"item_ids": tf.string}, {"embeddings": tf.float32, "group_ids": tf.int32}),
    }
    for name, (inputs, outputs) in expected.items():
        definition = session.signatures[name]
        assert {n: tf.as_dtype(info.dtype) for n, info in definition.inputs.items()} == inputs
        assert {n: tf.as_dtype(info.dtype) for n, info in definition.outputs.items()} == outputs
        defaults = {} if name == Signature.CANDIDATE_EMBEDDING else inputs
        assert set(definition.defaults) == set(defaults)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_candidates", [1, 10, 300, sum(GROUP_SIZES)])
def test_lists_are_the_exact_merge(session, trained, num_candidates, alpha):
    rng = np.random.default_rng(num_candidates)
    ids = trained.catalogue.item_ids
    histories = [rng.choice(ids, size, replace=False).tolist() for size in (0, 1, 9, 40, 400)]
    assert_exact_merge(session, trained, histories, num_candidates=num_candidates, alpha=alpha)


@pytest.mark.parametrize("seed", range(12))
def test_random_requests_are_the_exact_merge(session, trained, seed, request):
    """Every control, each row its own, against brute force over the whole catalogue."""
    rng = np.random.default_rng(seed)
    ids = trained.catalogue.item_ids
    histories = [rng.choice(ids, size, replace=False).tolist() for size in rng.choice([0, 1, 9, 40, 400], 6)]
    # A few rows of an approximate index are a small sample. The other finds all, so that each share must be right.
    recall_target = {"scann": 0.9, "exact": 1.0}[request.node.callspec.params["session"]]
    lists = assert_exact_merge(session, trained, histories, recall_target, **random_controls(rng, 6, trained.catalogue))
    assert lists.item_ids.shape[0] == 6


def test_left_out_inputs_take_the_configs_defaults(session, trained):
    serving = trained.config.serving
    default = session.recommend([["i5"]])
    named = session.recommend([["i5"]], num_candidates=serving.num_candidates, alpha=serving.alpha)
    sentinel = session.recommend([["i5"]], num_candidates=-1, alpha=float("nan"))
    assert default.item_ids.shape == (1, serving.num_candidates)
    assert default.item_ids.tolist() == named.item_ids.tolist() == sentinel.item_ids.tolist()


def test_unknown_ids_and_padding_are_as_if_absent(session):
    clean = session.recommend([["i1", "i2", "i3"]])
    noisy = session.recommend([["", "i1", "nobody", "", "i2", "émile", "i3", ""]])
    assert clean.item_ids.tolist() == noisy.item_ids.tolist()
    empty = session.recommend([[]])
    unknown = session.recommend([["nobody", ""]])
    assert empty.item_ids.tolist() == unknown.item_ids.tolist()
    assert (empty.item_ids != "").all()


def test_only_the_last_events_move_the_tower_but_all_are_excluded(session, trained):
    recent = [f"i{index}" for index in range(100, 100 + trained.config.windows.length)]
    older = [f"i{index}" for index in range(1, 60)]
    queries, _ = session.query_embedding([recent, older + recent])
    np.testing.assert_allclose(queries[0], queries[1], rtol=1e-5, atol=1e-5)
    found = session.recommend([older + recent], num_candidates=10_000)
    assert not set(found.item_ids[0]) & set(older + recent)
    assert (found.item_ids != "").sum() == sum(GROUP_SIZES) - len(older + recent)


def test_an_item_had_again_does_not_move_the_tower(session, trained):
    length = trained.config.windows.length
    recent = [f"i{index}" for index in range(1, length + 1)]
    histories = [recent[:3], ["i1", "i2", "", "i1", "i2", "i2", "nobody", "i3", "i1"], recent, recent + recent[:-1]]
    queries, intent = session.query_embedding(histories)
    np.testing.assert_allclose(queries[::2], queries[1::2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(intent[::2], intent[1::2], rtol=1e-4, atol=1e-6)


def test_history_of_ten_thousand_events(session, trained):
    ids = trained.catalogue.item_ids
    history = ids[np.random.default_rng(0).integers(0, len(ids) - 100, 10_000)].tolist()
    lists = assert_exact_merge(session, trained, [history, ["i1"]], num_candidates=50)
    assert (lists.item_ids[0] != "").all()


def test_everything_seen_gives_an_empty_list(session, trained):
    lists = session.recommend([trained.catalogue.item_ids.tolist()], num_candidates=5)
    assert lists.item_ids.tolist() == [[""] * 5]
    assert np.isneginf(lists.scores).all()
    assert (lists.group_ids == -1).all()


@pytest.mark.parametrize("length", [0, 3])
def test_empty_batch(session, length):
    inputs = {Request.HISTORY: np.full([0, length], b"", object)}
    outputs = session.predict(Signature.SERVING_DEFAULT, inputs)
    assert {name: value.shape[0] for name, value in outputs.items()} == dict.fromkeys(outputs, 0)
    embedded = session.predict(Signature.QUERY_EMBEDDING, inputs)
    assert embedded[Response.INTENT].shape == (0, len(GROUP_SIZES))
    embeddings, groups = session.candidate_embedding([])
    assert len(embeddings) == len(groups) == 0


def test_candidate_embedding_of_unknown_ids(session, trained):
    embeddings, groups = session.candidate_embedding(["nobody", "i7", ""])
    assert groups.tolist() == [-1, trained.catalogue.group_id[7], -1]
    assert not embeddings[[0, 2]].any()
    assert embeddings[1].any()


def test_query_embeddings_are_the_trainers(session, trained):
    """Stored features of a known user, the same tower, the same history: what evaluation measured."""
    users = EvaluationUsers.load(trained.workdir, Split.TEST)
    queries, log_intent = encode_users(load_model(trained.config, trained.workdir, MODEL), users)
    requests = user_requests(trained.workdir, trained.catalogue, users)
    served, intent = session.query_embedding(requests.histories, user_id=requests.user_ids, **requests.told)
    np.testing.assert_allclose(served, queries, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(intent, np.exp(log_intent), rtol=1e-4, atol=1e-6)


def test_a_request_holds_all_that_its_user_had_in_order_of_time(trained):
    """More than the tower reads: the one that is served may read more than the next one will."""
    users = EvaluationUsers.load(trained.workdir, Split.TEST)
    requests, sequences = user_requests(trained.workdir, trained.catalogue, users), make_log().sequences
    assert users.history.lengths.max() == 10 < users.seen.lengths.max()
    had = [sequences[user - 1][:-1] for user in users.user_index]
    assert requests.histories == [[f"i{item}" for item in items] for items in had]


def test_features_given_override_the_stored_ones(session):
    # User u1 is stored as gender 2 ("m"), tags 2, 3 ("green", "blue"), and an age scaled by 1/100.
    age = float(np.linspace(0.1, 0.9, NUM_USERS).astype(np.float32)[1] * 100)
    features = {"gender": ["m"], "tags": ["green|blue"], "age": [age]}
    stored, _ = session.query_embedding([["i1"]], user_id="u1")
    same, _ = session.query_embedding([["i1"]], user_id="nobody", **features)
    nothing, _ = session.query_embedding([["i1"]], user_id="u1", gender="", tags="", age=None)
    np.testing.assert_allclose(same, stored, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(nothing, stored, rtol=1e-5, atol=1e-6)
    for name, value in {"gender": "f", "tags": "green|red", "age": 1.0}.items():
        other, _ = session.query_embedding([["i1"]], user_id="u1", **{name: value})
        assert np.abs(other - stored).max() > 1e-4, name


def test_what_a_request_tells_changes_its_vectors_and_what_is_not_listed_is_nothing(session):
    def asked(**told: str) -> np.ndarray:
        return session.query_embedding([["i1"]], **told)[0]

    nothing = asked()
    for same in (asked(page="", device=""), asked(page="cellar"), asked(page="Home", device=" web")):
        np.testing.assert_array_equal(same, nothing)
    ways = [asked(page=page, device=device) for page in ("", "home", "item") for device in ("", "phone", "web")]
    for one, other in itertools.combinations(ways, 2):
        assert np.abs(one - other).max() > 1e-3


def test_no_request_is_too_large_for_the_catalogue(session):
    lists = session.recommend([["i1"], []], num_candidates=[2**31 - 1, 1])
    assert lists.item_ids.shape == (2, sum(GROUP_SIZES))
    assert (lists.item_ids != "").sum(axis=1).tolist() == [sum(GROUP_SIZES) - 1, 1]


def test_exact_holds_plain_ops_only_and_scann_agrees_with_it(servables, trained):
    """A server without ScaNN's ops loads the one; the other finds what it finds."""
    ops = {index: operations(path) for index, path in servables.items()}
    assert {index: sum(op.startswith("Scann>") for op in found) for index, found in ops.items()} == {
        "scann": 2,
        "exact": 0,
    }
    requests = user_requests(trained.workdir, trained.catalogue, EvaluationUsers.load(trained.workdir, Split.TEST))
    lists = []
    for path in servables.values():
        with ServableSession(path, num_threads=1) as session:
            lists.append(requests.ask(session, slice(None)).item_ids)
    shared = [len(set(ours) & set(theirs)) / len(theirs) for ours, theirs in zip(*lists, strict=True)]
    assert np.mean(shared) >= trained.config.serving.recall_target


def operations(path: Path) -> set[str]:
    graph = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes()).meta_graphs[0].graph_def
    bodies = [node for function in graph.library.function for node in function.node_def]
    return {node.op for node in [*graph.node, *bodies]}


def test_manifests(servables):
    details = {index: json.loads((path / MANIFEST_FILE).read_text())["details"] for index, path in servables.items()}
    assert [details[index]["index"] for index in servables] == ["scann", "exact"] == list(servables)
    groups = details["scann"]["groups"]
    assert [group["structure"] for group in groups] == [*["brute_force"] * 3, *["tree_hashing"] * 2]
    assert all(point["recall"] >= 0.95 for group in groups for point in group["points"])
    assert [group["size"] for group in details["exact"]["groups"]] == [group["size"] for group in groups]


def test_warmup(servable, session, trained):
    requests = list(read_warmup(servable))
    assert len(requests) == trained.config.serving.warmup_requests
    for signature, inputs in requests:
        outputs = session.predict(signature, inputs)
        assert len(outputs[Response.SCORES]) == len(inputs[Request.HISTORY])


def test_the_servables_metrics_are_the_exact_ones(servable, trained):
    served = evaluate_servable(trained.config, trained.workdir, servable)
    exact = evaluate(trained.config, trained.workdir, Split.TEST, [MODEL]).metrics[MODEL]
    for k in (50, 100, 500):
        assert served[f"recall_at_{k}"]["value"] == pytest.approx(exact[f"recall_at_{k}"]["value"], abs=0.05)


@pytest.mark.parametrize(
    ("controls", "like"),
    [
        pytest.param({"num_candidates": -5}, {}, id="negative M"),
        pytest.param({"alpha": float("nan")}, {}, id="alpha NaN"),
        pytest.param({"alpha": float("inf")}, {"alpha": 1000.0}, id="alpha without bound"),
        pytest.param({"merge": ""}, {}, id="no merge"),
        pytest.param({"max_groups": -1}, {}, id="negative max_groups"),
        pytest.param({"max_groups": 99}, {}, id="more groups than there are"),
        pytest.param({"num_exploration": -1}, {}, id="negative exploration"),
        pytest.param({"num_exploration": 10**6}, {"num_exploration": 30}, id="more exploration than M"),
        pytest.param({"groups": [[-1, -7]]}, {}, id="groups of padding"),
        pytest.param({"groups": [[2, 2, 77]]}, {"groups": [[2]]}, id="a group that there is not is as if absent"),
        pytest.param({"groups": [[77]]}, None, id="only groups that there are not"),
        pytest.param({"group_boost": [[0.0] * 5]}, None, id="all groups excluded"),
        pytest.param({"group_boost": [[-1.0, 1, 1, 1, 1]]}, {"group_boost": [[0, 1, 1, 1, 1]]}, id="negative boost"),
        pytest.param({"group_boost": [[float("nan")] * 5]}, {}, id="boost NaN"),
        pytest.param(
            {"group_boost": [[1.0, 1, 1, float("inf"), 1]]},
            {"group_boost": [[1, 1, 1, 1e38, 1]]},
            id="boost without bound",
        ),
        pytest.param({"exclude_item_ids": [["", "nobody"]]}, {}, id="excluding nothing known"),
    ],
)
def test_values_out_of_range_follow_a_rule(session, trained, controls, like):
    """None is an empty list; the neighbour in the batch does not notice."""
    both = {name: [value] if not isinstance(value, list) else value for name, value in controls.items()}
    neighbour = {"merge": "", "groups": [], "group_boost": [1.0] * 5, "exclude_item_ids": [], "alpha": 1.0}
    both = {name: [*value, neighbour.get(name, 0)] for name, value in both.items()}
    lists = session.recommend([["i5"], ["i6"]], **both)
    expected = session.recommend(
        [["i5"], ["i6"]],
        **{
            n: [v, neighbour.get(n, 0)] if not isinstance(v, list) else [*v, neighbour.get(n, 0)]
            for n, v in (like or {}).items()
        },
    )
    if like is None:
        assert not (lists.item_ids[0] != "").any()
    else:
        assert lists.item_ids[0].tolist() == expected.item_ids[0].tolist()
    assert (lists.item_ids[1] != "").sum() == trained.config.serving.num_candidates


def test_places_that_exploration_cannot_fill_are_the_merges(session, trained):
    """Of the cold items, all but three are excluded: a row has those, and is as long as asked for."""
    cold = trained.catalogue.item_ids[trained.catalogue.train_count[1:] == 0]
    lists = assert_exact_merge(
        session,
        trained,
        [["i5"]] * len(MERGES),
        merge=list(MERGES),
        num_candidates=30,
        num_exploration=9,
        exclude_item_ids=[cold[3:].tolist()] * len(MERGES),
    )
    assert (lists.item_ids != "").sum(axis=1).tolist() == [30] * len(MERGES)
    assert np.isin(lists.item_ids, cold[:3]).sum(axis=1).tolist() == [3] * len(MERGES)


def test_negative_alpha_prefers_unlikely_groups(session, trained):
    _, intent = session.query_embedding([["i5"]])
    lists = assert_exact_merge(session, trained, [["i5"]], merge="quota", alpha=-1000.0, num_candidates=20)
    unlikeliest = np.argmin(intent[0])
    size = np.bincount(trained.catalogue.group_id[1:])[unlikeliest]
    assert (lists.group_ids[0] == unlikeliest).sum() == min(size, 20)


def test_any_input_may_be_left_out(session):
    nothing = session.predict(Signature.SERVING_DEFAULT, {})
    empty = session.predict(Signature.SERVING_DEFAULT, {Request.HISTORY: np.array([[b""]], object)})
    assert nothing[Response.ITEM_IDS].tolist() == empty[Response.ITEM_IDS].tolist()
    users = session.predict(Signature.SERVING_DEFAULT, {Request.USER_ID: np.array([b"u1", b"u2"], object)})
    assert users[Response.SCORES].shape == nothing[Response.SCORES].repeat(2, axis=0).shape


@pytest.mark.parametrize("name", ["age", "gender"])
def test_a_feature_that_all_rows_lack_is_as_if_left_out(session, name):
    lacking = session.recommend([["i1"], ["i2"]], **{name: [None, None]})
    assert lacking.item_ids.tolist() == session.recommend([["i1"], ["i2"]]).item_ids.tolist()


def test_a_feature_out_of_range_does_not_hurt_the_neighbours(session):
    lists = session.recommend([["i1"]] * 4, age=[float("nan"), float("inf"), 3e38, None])
    alone = session.recommend([["i1"]])
    assert np.isfinite(lists.scores).all()
    assert lists.item_ids[0].tolist() == lists.item_ids[1].tolist() == lists.item_ids[3].tolist()
    assert set(lists.item_ids[0]) >= set(alone.item_ids[0][:20].tolist())


@pytest.mark.parametrize("index", ["scann", "exact"])
def test_wrong_shapes_are_errors_of_the_request(servables, index):
    """Under the C API, which checks no shape before the graph does."""
    servable = CServable(servables[index])
    wrong = {
        "history of rank 1": {Request.HISTORY: np.array([b"i1"], object)},
        "boosts of another number of groups": {Request.GROUP_BOOST: np.ones([1, 3], np.float32)},
        "batch sizes that differ": {
            Request.USER_ID: np.array([b"u1"] * 3, object),
            Request.ALPHA: np.ones(2, np.float32),
        },
    }
    for what, inputs in wrong.items():
        with pytest.raises(ValueError, match=r"ncompatible|not compatible"):
            servable.predict(Signature.SERVING_DEFAULT, inputs)
            pytest.fail(what)


def test_unknown_signatures_inputs_and_paths_are_named(session, tmp_path):
    with pytest.raises(ValueError, match="no signature 'nope'"):
        session.predict("nope", {})
    with pytest.raises(ValueError, match="no input 'nope'"):
        session.predict(Signature.SERVING_DEFAULT, {"nope": 1})
    with pytest.raises(ValueError, match="no servable at"):
        ServableSession(tmp_path)
