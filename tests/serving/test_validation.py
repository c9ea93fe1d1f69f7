"""What proves a servable right, proved right: it passes good ones and names what is wrong with bad ones."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contracts.artifact import ArtifactError
from contracts.errors import Unfit
from contracts.layout import Workdir
from contracts.serving_labels import versions_on_disk
from serving.export import export
from serving.search.index_store import read_indexes
from serving.servable_session import Recommendations
from serving.validate import validate
from serving.validation import checks, validate_process
from serving.validation.checks import EmbeddedRequests, ListsVerdict, check_lists, int8_score_error
from serving.validation.exact_merge import Corpus, RowControls, Selection, exact_selection
from serving.validation.loaders import CServable
from serving.validation.validate_process import check_servables
from tests.serving.conftest import MODEL, Trained, make_config, write_model

ROOT = Path(__file__).parents[2]
QUOTA = make_config(merge="quota", indexes=["scann"], int8=False)


@pytest.fixture(scope="module")
def quota_servable(trained: Trained, servable: Path) -> Path:
    """The next version: another model, the other merge, one index."""
    write_model(QUOTA, trained.workdir, "second", seed=2)
    return export(QUOTA, trained.workdir, "second", "fingerprint")


def test_versions_count_up(servables, quota_servable):
    assert [path.name for path in servables.values()] == ["1", "1"]
    assert quota_servable == servables["scann"].with_name("unvalidated-2")
    assert versions_on_disk(quota_servable.parent) == [1]
    # Other tests export models of other names beside these.
    ours = sorted(path.name for path in quota_servable.parent.parent.glob("dnc*"))
    assert ours == [path.parent.name for path in servables.values()]


def test_good_servables_pass_under_three_loaders(trained, servables):
    manifest = validate(trained.config, trained.workdir, servables["scann"], "fingerprint")
    report = json.loads(trained.workdir.validation_report.read_text())
    assert manifest.counts["requests"] == report["requests"] > 0
    assert report["failures"] == []
    assert report["servables"] == manifest.details["servables"]
    assert {index: found["path"] for index, found in report["servables"].items()} == {
        index: str(path.absolute()) for index, path in servables.items()
    }
    for index, least in {"scann": trained.config.serving.recall_target, "exact": 0.995}.items():
        recalls = report["servables"][index]["recalls"]
        assert set(recalls) == {"default", "score", "quota", "round_robin", "two groups", "exploration"}
        assert (
            report["servables"][index]["recall_high"] >= report["servables"][index]["recall"] == min(recalls.values())
        )
        assert report["servables"][index]["recall"] >= least
        assert report["servables"][index]["max_score_error"] <= 1e-4
        assert report["servables"][index]["loaders"] == dict.fromkeys(["tf.saved_model.load", "C API"], "same answers")


def test_a_quota_servable_passes_and_fails_as_a_score_one(trained, quota_servable, monkeypatch):
    monkeypatch.setattr(CServable, "missing", lambda: [Path("libtensorflow_cc.so.2")])
    report = check_servables(QUOTA, trained.workdir, quota_servable)
    assert report["failures"] == []
    skipped = "skipped: libtensorflow_cc.so.2 does not exist"
    assert report["servables"]["scann"]["loaders"]["C API"] == skipped
    report = check_servables(make_config(merge="score", indexes=["scann"]), trained.workdir, quota_servable)
    assert report["failures"]
    # Only what was left to the default is of another merge.
    by_default = tuple(
        f"scann: {name}: recall against the exact merge" for name in ("default", "two groups", "exploration")
    )
    assert all(failure.startswith(by_default) for failure in report["failures"]), report["failures"]


def test_scores_of_8_bit_vectors_are_as_near_as_8_bits_allow(trained, monkeypatch):
    config = make_config(int8=True, indexes=["scann"], model_name="small")
    version = export(config, trained.workdir, MODEL, "fingerprint")
    monkeypatch.setattr(CServable, "missing", lambda: [Path("libtensorflow_cc.so.2")])
    report = check_servables(config, trained.workdir, version)
    assert report["failures"] == []
    # Not as near as floats: what was asked for is what was built.
    assert report["servables"]["scann"]["max_score_error"] > 1e-4
    large = [group for group in read_indexes(version).values() if group.structure == "tree_hashing_int8"]
    assert [group.size for group in large] == [240, 620]
    assert all(group.tensors["int8_dataset"].shape[0] == group.size for group in large)
    assert all(group.tensors["x"].size <= 1 for group in large)
    # A tenth of what 8 bits may change is too strict for them: the bound is no looser than it must be.
    monkeypatch.setattr(checks, "_INT8_STEPS", 1_270)
    failures = check_servables(config, trained.workdir, version)["failures"]
    assert failures
    assert all("a score differs from the formula" in failure for failure in failures), failures


def test_what_cannot_be_loaded_is_named(trained, tmp_path):
    with pytest.raises(Unfit, match="cannot be loaded"):
        validate(trained.config, trained.workdir, tmp_path, "fingerprint")


@pytest.mark.parametrize(
    ("does", "kind", "message"),
    [
        (
            f"echo \"OSError: [Errno 28] {os.strerror(28)}: '/tmp/x'\" >&2\necho bye >&2\nexit 1",
            RuntimeError,
            r"No space left on device: '/tmp/x' .*TMPDIR",
        ),
        (
            "echo 'tensorflow.python.framework.errors_impl.AbortedError: assets/item_vocabulary; Stale file handle' >&2"
            "\necho Traceback >&2\nexit 1",
            RuntimeError,
            r"in a fresh process: .*item_vocabulary; Stale file handle$",
        ),
        ("kill -9 $$", Unfit, r"in a fresh process:\nit was killed, usually for lack of memory"),
        ("echo 'no test users: give more' >&2\nexit 1", ValueError, "no test users: give more"),
        # On a disk that is full, as the workdir's may be, its words would be lost, and so the reason.
        ("readlink /proc/$$/fd/2 >&2\nexit 1", ValueError, r"\n/memfd:"),
    ],
    ids=["no room", "failing disk", "killed", "bad input", "no file on a disk"],
)
def test_the_process_dies_and_it_is_no_fault_of_the_servable(
    trained, servable, tmp_path, monkeypatch, does, kind, message
):
    """In its place a script says what it would say."""
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{does}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(kind, match=message):
        validate(trained.config, trained.workdir, servable, "fingerprint")


def test_without_scanns_ops_tensorflow_refuses_the_scann_servable(servable):
    with pytest.raises(ValueError, match="Scann>"):
        CServable(servable, op_libraries=()).predict("candidate_embedding", {"item_ids": np.array([b"i1"], object)})


def test_two_versions_elsewhere_do_not_answer_for_each_other(trained, servable, quota_servable, tmp_path):
    """A fresh process, the servables moved and the workdir gone: a version holds all that it needs."""
    moved = [Path(shutil.copytree(path, tmp_path / path.name)) for path in (servable, quota_servable)]
    report = tmp_path / "errors.json"
    command = [sys.executable, "-m", "tests.serving.two_versions_process", *moved, report]
    hidden = trained.workdir.path.rename(trained.workdir.path.with_name("hidden"))
    try:
        process = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        hidden.rename(trained.workdir.path)
    assert process.returncode == 0, process.stderr[-2000:]
    errors = json.loads(report.read_text())
    assert len(errors) == 8
    assert max(errors.values()) < 1e-4, errors


def perfect(merge: str) -> tuple[Corpus, list[str], EmbeddedRequests, Recommendations, RowControls]:
    rng = np.random.default_rng(3)
    is_cold = np.arange(30) % 5 == 0
    corpus = Corpus(rng.normal(size=[30, 4]).astype(np.float32), np.repeat([0, 1, 2], 10).astype(np.int32), is_cold)
    intent = np.array([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]], np.float32)
    excluded = np.zeros([2, 30], bool)
    excluded[0, [0, 11]] = True
    requests = EmbeddedRequests(rng.normal(size=[2, 3, 4]).astype(np.float32), intent, excluded)
    asked = replace(RowControls.alike(2, 3, merge, 8, 1.0), num_exploration=np.array([3, 0]))
    exact = exact_selection(corpus, requests.queries, intent, excluded, asked)
    order = list_order(exact, corpus, intent, merge)[:, :8]
    index_of = {f"item {index}": index for index in range(30)}
    lists = Recommendations(
        np.array(list(index_of), object)[order],
        np.take_along_axis(exact.scores, order, axis=1),
        corpus.group_ids[order],
    )
    return corpus, index_of, requests, lists, asked


def list_order(exact: Selection, corpus: Corpus, intent: np.ndarray, merge: str) -> np.ndarray:
    """By score; of round_robin by (explored, rank in group, turn)."""
    chosen = exact.merged | exact.explored
    if merge != "round_robin":
        return np.argsort(-np.where(chosen, exact.scores, -np.inf), axis=1)
    order = []
    for row in range(2):
        key = []
        for item in np.flatnonzero(chosen[row]):
            peers = exact.merged[row] & (corpus.group_ids == corpus.group_ids[item])
            rank = (exact.scores[row, peers] > exact.scores[row, item]).sum()
            key.append((exact.explored[row, item], rank, -intent[row, corpus.group_ids[item]], item))
        order.append([entry[-1] for entry in sorted(key)])
    return np.array(order)


def test_a_score_may_differ_by_what_8_bits_explain_in_their_group_alone():
    corpus, index_of, requests, lists, asked = perfect("score")
    changed = replace(lists, scores=lists.scores + np.where(lists.group_ids == 1, np.float32(1e-3), np.float32(0)))
    assert not (np.diff(changed.scores, axis=1) > 0).any()
    assert len(check_lists(corpus, index_of, requests, changed, asked).failures) == 1
    for group, failures in ((1, 0), (2, 1)):
        # By hand: of the largest |v| in each dimension, 1/127 a step, half of which rounding may add or take.
        largest = np.abs(corpus.embeddings[10 * group : 10 * group + 10]).max(axis=0)
        allowed = int8_score_error(corpus, requests.queries, [group])
        by_hand = [sum(abs(q) * m for q, m in zip(row[group], largest, strict=True)) / 254 for row in requests.queries]
        np.testing.assert_allclose(allowed[:, group], by_hand, rtol=1e-5)
        assert (allowed[:, group] > 1e-3).all()
        assert len(check_lists(corpus, index_of, requests, changed, asked, allowed).failures) == failures


@pytest.mark.parametrize("merge", ["score", "quota", "round_robin"])
def test_perfect_lists_pass(merge):
    corpus, index_of, requests, lists, asked = perfect(merge)
    verdict = check_lists(corpus, index_of, requests, lists, asked)
    assert verdict.failures == []
    assert verdict.recall == 1.0


def broken(lists: Recommendations, damage: str) -> Recommendations:
    ids, scores, groups = lists.item_ids.copy(), lists.scores.copy(), lists.group_ids.copy()
    if damage == "group":
        groups[1, 2] = (groups[1, 2] + 1) % 3
    elif damage == "score":
        scores[0, 0] += 0.01
    elif damage == "history":
        ids[0, 3] = "item 11"
    elif damage == "twice":
        ids[1, 5] = ids[1, 4]
    elif damage == "order":
        for values in (ids, scores, groups):
            values[0] = values[0, ::-1]
    elif damage == "short":
        ids[0, -1], scores[0, -1], groups[0, -1] = "", -np.inf, -1
    elif damage == "catalogue":
        ids[0, 1] = "item 30"
    elif damage == "absent":
        ids[0, -1] = ""
    return replace(lists, item_ids=ids, scores=scores, group_ids=groups)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("group", "not in the group given for it: in 1 places, the first being place 2 of request 1"),
        ("score", "a score differs from the formula"),
        ("history", "an excluded item is returned"),
        ("twice", "an item is returned twice"),
        ("order", "a list is not in the order of its merge"),
        ("short", "a list is shorter or longer than asked for"),
        ("catalogue", "an item is not in the catalogue"),
        ("absent", "an empty place has a score or a group"),
    ],
)
def test_each_damage_is_named(damage, message):
    corpus, index_of, requests, lists, asked = perfect("score")
    verdict = check_lists(corpus, index_of, requests, broken(lists, damage), asked)
    assert any(message in failure for failure in verdict.failures), verdict.failures


def test_what_was_asked_for_is_held_against_the_lists():
    """The same lists, of requests that ask for something else."""
    corpus, index_of, requests, lists, asked = perfect("quota")
    others = {
        "a group that must not answer": replace(asked, boost=np.array([[1, 0, 1]] * 2)),
        "a score differs from the formula": replace(asked, boost=np.array([[1, 2, 1]] * 2)),
        "fewer cold items than asked for": replace(asked, num_exploration=np.array([3, 6])),
        "a list is not in the order of its merge": replace(asked, merge=np.array(["round_robin"] * 2, object)),
    }
    for message, other in others.items():
        failures = check_lists(corpus, index_of, requests, lists, other).failures
        assert any(message in failure for failure in failures), (message, failures)
    assert check_lists(corpus, index_of, requests, lists, replace(asked, max_groups=np.array([1, 1]))).recall < 1


def test_a_log_without_test_users_is_a_message_and_no_traceback(monkeypatch, tmp_path):
    def refuse(config, workdir, servable):
        raise ArtifactError("no test users: give the log more events per user")

    (tmp_path / "config.yaml").write_text("")
    monkeypatch.setattr(validate_process, "check_servables", refuse)
    monkeypatch.setattr(sys, "argv", ["validate", "workdir", "servable", str(tmp_path / "config.yaml"), "report"])
    with pytest.raises(SystemExit, match=r"^no test users: give the log more events per user$"):
        validate_process.main()


def test_a_validation_ends_with_the_process_that_waits_for_it(tmp_path):
    """However that one ends: what holds memory and a core would be in the way of the next run."""
    config = tmp_path / "config.yaml"
    os.mkfifo(config)  # whose reader waits for what is never written
    module = "serving.validation.validate_process"
    command = [sys.executable, "-m", module, "workdir", "servable", str(config), "report"]
    script = f"import subprocess; subprocess.run({command!r})"
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        writer = open_once_read(config)
        parent.kill()
        # The validation writes to the same pipe, which is at its end when both are.
        assert parent.communicate(timeout=60)[0] == b""
        assert parent.returncode == -signal.SIGKILL
        os.close(writer)


def open_once_read(fifo: Path) -> int:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # ENXIO: nobody reads it yet
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        time.sleep(0.1)
    raise TimeoutError(f"nobody reads {fifo}")


def test_more_exploration_than_places_is_a_list_of_cold_items():
    # Of serving.num_candidates below 3, which validation asks for, each servable was found unfit.
    corpus, _, requests, _, asked = perfect("score")
    asked = replace(asked, num_candidates=np.array([1, 2]), num_exploration=np.array([3, 3]))
    exact = exact_selection(corpus, requests.queries, requests.intent, requests.excluded, asked)
    np.testing.assert_array_equal(exact.explored.sum(axis=1), [1, 2])
    assert not exact.merged.any()


def test_low_recall_is_measured():
    corpus, index_of, requests, _, asked = perfect("score")
    asked = replace(asked, num_exploration=np.zeros(2, int))
    scores = exact_selection(corpus, requests.queries, requests.intent, requests.excluded, asked).scores
    # The right order, but starting from the 5th best: half of the 8 wanted are there.
    order = np.argsort(-np.where(requests.excluded, -np.inf, scores), axis=1)[:, 4:12]
    lists = Recommendations(
        np.array(list(index_of), object)[order], np.take_along_axis(scores, order, axis=1), corpus.group_ids[order]
    )
    verdict = check_lists(corpus, index_of, requests, lists, asked)
    assert verdict.failures == []
    assert verdict.recall == 0.5


@pytest.mark.parametrize(("found", "high"), [([1, 1, 0, 1], 1), ([1, 1, 0, 1] * 25, 0.75 + 0.0866), ([0.9] * 4, 0.9)])
def test_recall_is_below_its_target_where_more_than_chance_says_so(found, high):
    """Of .75 two standard errors over 4 requests are .43 (.5 * sqrt(.1875)), over 100 .087: .95 is out of reach."""
    batches = [ListsVerdict([], np.array(part, float), 0.0) for part in np.array_split(found, 2)]
    recalls, recall_high, failures = validate_process._over_all_batches({"quota": batches}, 0.95)
    assert recalls == {"quota": pytest.approx(np.mean(found))}
    assert recall_high == pytest.approx(high, abs=1e-4)
    assert bool(failures) == (high < 0.95)


@pytest.mark.parametrize(("others", "recall"), [([25, 20, 15], 1.0), ([25, 20, 10], (7 / 8 + 1) / 2)])
def test_cold_items_that_tie_may_stand_for_one_another(others, recall):
    """Most cold items without features have a vector of zeros: which of them are explored, no score decides."""
    corpus, index_of, requests, _, asked = perfect("score")
    corpus.embeddings[corpus.is_cold] = 0
    # The list may hold any other of those that tie, but not one that scores less.
    corpus.embeddings[10] = -requests.queries[0, 1]
    exact = exact_selection(corpus, requests.queries, requests.intent, requests.excluded, asked)
    assert np.flatnonzero(exact.explored[0]).tolist() == [5, 15, 20]
    chosen = [np.concatenate([np.flatnonzero(exact.merged[0]), others]), np.flatnonzero(exact.merged[1])]
    order = np.stack([items[np.argsort(-exact.scores[row, items])] for row, items in enumerate(chosen)])
    lists = Recommendations(
        np.array(list(index_of), object)[order],
        np.take_along_axis(exact.scores, order, axis=1),
        corpus.group_ids[order],
    )
    verdict = check_lists(corpus, index_of, requests, lists, asked)
    assert (verdict.failures, verdict.recall) == ([], recall)


def test_export_without_a_model_names_it(tmp_path, trained):
    with pytest.raises(ValueError, match="no artifact at"):
        export(trained.config, Workdir(tmp_path), MODEL, "fingerprint")
