from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np
import pytest
import tensorflow as tf

import contracts
from contracts.artifact import MANIFEST_NAME, ArtifactError
from contracts.config import Config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.names import Split
from tests.trainer.artifacts import Log, cyclic_log, write_artifacts
from tests.trainer.conftest import small_config
from tests.trainer.model_test import HISTORY, embeddings
from trainer.catalogue import Catalogue
from trainer.evaluate import evaluate, warn_of_popularity, write_evaluation
from trainer.evaluation.baselines import baseline_config
from trainer.evaluation.metrics import hits, recall_at_k
from trainer.evaluation.ranking import ExactRanking
from trainer.input.evaluation_users import EvaluationUsers
from trainer.input.training_windows import TrainingWindows
from trainer.losses.negative_samplers import negative_sampler
from trainer.models.model_files import load_model, save_weights
from trainer.models.two_tower_model import TwoTowerModel
from trainer.train import train
from trainer.training.lazy_adam import LazyAdam
from trainer.training.training_state import TrainingState

MIXED = {"loss": {"global_weight": 1.0}}
SAMPLED = {
    "loss": {"global_weight": 1.0, "exact_softmax_max_items": 0, "in_group_pool": 16, "easy_pool": 32, "fresh_pool": 0}
}


def test_longer_neighbours_in_a_batch_do_not_change_a_users_vectors(workdir: Workdir) -> None:
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    alone, _ = model.query_embeddings(HISTORY[1:2, :1], {})
    together, _ = model.query_embeddings(HISTORY, {})
    np.testing.assert_allclose(alone[0], together[1], atol=1e-5)


def test_learns_the_structure_and_evaluates_it(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(training={"epochs": 16, **MIXED})
    train(config, workdir, "dnc", "a")
    train(baseline_config(config, "single_vector"), workdir, "single_vector", "a")
    loads, load = [], Catalogue.load
    monkeypatch.setattr(Catalogue, "load", lambda path: loads.append(path) or load(path))
    result = evaluate(config, workdir, Split.TEST, ["popularity", "single_vector", "dnc"])
    assert len(loads) == 1, "of a million items, each takes hundreds of MB"
    recall = {name: table["recall_at_5"]["value"] for name, table in result.metrics.items()}
    assert list(recall) == ["popularity", "single_vector", "dnc", "dnc_quota"]
    # The next item is one or three steps on, which the last two events tell.
    assert recall["popularity"] < 0.35
    assert recall["dnc"] > 0.8
    assert recall["single_vector"] > 0.8
    for table in result.metrics.values():
        assert {"ndcg_at_10", "catalog_coverage_at_100", "gini_at_100", "groups_per_list_at_100"} <= set(table)
        assert all(cell["low"] <= cell["value"] <= cell["high"] for cell in table.values())
    assert set(result.breakdowns["dnc_quota"]) == {"group", "user_activity"}


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_result(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every validation is a plateau but the best: the weights that a run goes back to are part of what is resumed."""
    config = small_config(training={"epochs": 4, "early_stopping_patience": 1, "learning_rate_drops": 9, **SAMPLED})
    asked, epoch_of = [], TrainingWindows.epoch
    monkeypatch.setattr(TrainingWindows, "epoch", lambda self, epoch: asked.append(epoch) or epoch_of(self, epoch))
    whole = train(config, workdir, "whole", "run")
    save = TrainingState.epoch_done

    def killed(self: TrainingState, entry: dict, patience: int) -> None:
        save(self, entry, patience)
        if self.epoch == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(TrainingState, "epoch_done", killed)
        train(config, workdir, "resumed", "run")
    manifest = train(config, workdir, "resumed", "run")
    assert manifest.counts["epochs"] == 4
    assert manifest.counts == whole.counts
    assert asked == [0, 1, 2, 3, 0, 1, 2, 3]  # each shuffles and shares out its draws anew
    for left, right in zip(
        embeddings(load_model(config, workdir, "whole")),
        embeddings(load_model(config, workdir, "resumed")),
        strict=True,
    ):
        np.testing.assert_allclose(left, right, atol=1e-4)
    assert not workdir.checkpoints("resumed").exists()


def test_tensorboard_shows_the_last_training_alone(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    writers, create = [], tf.summary.create_file_writer
    monkeypatch.setattr(tf.summary, "create_file_writer", lambda path: writers.append(create(path)) or writers[-1])
    for fingerprint in ("a", "b"):
        train(small_config(training={"epochs": 1}), workdir, "curves", fingerprint)
    assert len(list((workdir.tensorboard / "curves").glob("events.*"))) == 1
    for writer in writers:
        with pytest.raises(RuntimeError, match="closed"), writer.as_default():
            pass


def test_in_batch_negatives_are_corrected_by_how_often_they_are_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 training events, windows hold 1 to 11, and 11 and 12, all targets: the 11th is one twice."""
    workdir = write_artifacts(Log([np.arange(14) + 1] * 2, np.zeros(14, np.int64)), tmp_path)
    config, seen = small_config(training={"loss": {**SAMPLED["loss"], "negatives": "in_batch"}}), []

    def build(config: Config, catalogue: Catalogue) -> None:
        seen.append(negative_sampler(catalogue, config.training.loss).probability)
        raise Killed

    monkeypatch.setattr("trainer.train.build_model", build)
    with pytest.raises(Killed):
        train(config, workdir, "dnc", "a")
    np.testing.assert_allclose(seen[0] * 13, [0, *[1] * 10, 2, 1, 0, 0])


def test_without_a_terminal_progress_is_lines_of_the_log(
    workdir: Workdir,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("trainer.progress.SECONDS_BETWEEN_LINES", -1.0)
    with caplog.at_level("INFO"):
        train(small_config(training={"epochs": 2}), workdir, "lines", "a")
    said = [record for record in caplog.records if record.message.startswith("train lines: ")]
    assert "an epoch has only 6 step(s), too few" in next(one.message for one in said if one.name == "trainer.train")
    lines = [one.message for one in said if one.name == "trainer.progress"]
    [first, _] = json.loads(workdir.model("lines").history.read_text())
    assert f"epoch 1 of 2, 100%  loss {first['loss']:.4f}  " in lines[len(lines) // 2 - 1]  # the epoch's, not a step's
    assert "epoch 2 of 2, 100%  recall@" in lines[-2]
    assert "ended after epoch 2 of 2  recall@" in lines[-1]
    # No bar's last state, cut at 80 columns; a log's lines begin with their time.
    assert not any(line.startswith("train") for line in capfd.readouterr().err.splitlines())


def test_of_more_users_than_the_limit_evenly_spaced_ones_are_measured(workdir: Workdir) -> None:
    everybody, few = EvaluationUsers.load(workdir, Split.TEST), EvaluationUsers.load(workdir, Split.TEST, 5)
    spaced = [(len(everybody) - 1) * part // 4 for part in range(5)]
    assert few.user_index.tolist() == everybody.user_index[spaced].tolist()
    assert few.targets.values.tolist() == everybody.targets.take(np.array(spaced)).values.tolist()
    catalogue = Catalogue.load(workdir)
    config = small_config(evaluation={"max_users": 5, "ks": [3]})
    measured = evaluate(config, workdir, Split.TEST, ["popularity"]).metrics["popularity"]
    # By brute force: each user's three most trained-on items that are new to them.
    tie_break = np.random.default_rng(0).permutation(catalogue.num_items)
    ranked = np.lexsort([tie_break, -catalogue.train_count[1:]]) + 1
    lists = [ranked[~np.isin(ranked, few.seen.take(np.array([row])).values)][:3] for row in range(5)]
    found = [np.isin(few.targets.take(np.array([row])).values, top).mean() for row, top in enumerate(lists)]
    assert measured["recall_at_3"]["value"] == pytest.approx(np.mean(found))


def test_a_plateau_goes_back_to_the_best_weights_at_a_lower_rate(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch
) -> None:
    optimizers: list[LazyAdam] = []
    monkeypatch.setattr("trainer.train.LazyAdam", lambda *of: optimizers.append(LazyAdam(*of)) or optimizers[-1])
    settings = {"epochs": 40, "early_stopping_patience": 2, "monitor_k": 3}
    rates = {"learning_rate": 1.0, "learning_rate_drop": 0.1, "learning_rate_drops": 2}
    config = small_config(training={**settings, **rates})
    train(config, workdir, "model", "a")
    history = json.loads(workdir.model("model").history.read_text())
    best, best_ndcg, waited, plateaus = -1.0, -1.0, 0, 0
    for entry in history:
        assert entry["learning_rate"] == pytest.approx(0.1**plateaus)
        waited = 0 if entry["validation_recall"] > best or entry["validation_ndcg"] > best_ndcg else waited + 1
        best, best_ndcg = max(best, entry["validation_recall"]), max(best_ndcg, entry["validation_ndcg"])
        assert entry.get("plateau", False) == (waited == 2)
        if waited == 2:
            waited, plateaus = 0, plateaus + 1
    assert plateaus == 3
    assert history[-1]["plateau"]
    assert float(optimizers[0].learning_rate) == pytest.approx(0.01)
    users = EvaluationUsers.load(workdir, Split.VALIDATION)
    lists = ExactRanking(load_model(config, workdir, "model"), Catalogue.load(workdir), users).lists("score", 0.0, 3)
    found = recall_at_k(hits(lists, users.targets), users.targets.lengths, 3)
    assert float(found.mean()) == pytest.approx(best)


def test_no_epoch_begins_once_the_seconds_are_spent(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is asked at an epoch's start, its one step and its end, so that by this one it takes ten seconds."""
    clock = itertools.count(step=5)
    monkeypatch.setattr("trainer.train.time", SimpleNamespace(monotonic=lambda: next(clock)))
    settings = {"epochs": 9, "max_seconds": 25, "early_stopping_patience": 9, "batch_size": 100_000}
    train(small_config(training=settings), workdir, "short", "a")
    history = json.loads(workdir.model("short").history.read_text())
    assert [(entry["epoch"], entry["seconds"]) for entry in history] == [(1, 10), (2, 10), (3, 10)]


def test_an_epochs_loss_is_the_mean_over_its_positives(workdir: Workdir) -> None:
    """Batches differ in their numbers of positives; at no learning rate, their mean is that of one batch of all."""
    settings = {"epochs": 1, "learning_rate": 1e-12, "batch_size": 8}
    config = small_config(model={"dropout": 0.0, "conditioning_dropout": 0.0}, training=settings)
    train(config, workdir, "model", "mean")
    [entry] = json.loads(workdir.model("model").history.read_text())
    [everything] = TrainingWindows(workdir, 10**6, 0).epoch(0)
    terms = load_model(config, workdir, "model").loss_terms(everything, training=False)
    assert set(terms) == {"loss", "in_group", "global", "intent", "z"}
    for name, value in terms.items():
        assert entry[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


def test_weight_decay_shrinks_the_weights(workdir: Workdir) -> None:
    """A tenth a step, by a learning rate of .01; what a step learns is at most a hundredth of each weight or so."""
    sums = {}
    for decay in (0.0, 10.0):
        config = small_config(training={"epochs": 1, "averaged_epochs": 0, "weight_decay": decay})
        steps = train(config, workdir, "model", f"{decay}").counts["steps"]
        weights = load_model(config, workdir, "model").trainable_variables
        sums[decay] = sum(float(tf.reduce_sum(tf.abs(weight))) for weight in weights)
    assert 0.9**steps < sums[10.0] / sums[0.0] < 0.9 ** (steps / 2)


def diverging(path: Path) -> Workdir:
    log = cyclic_log(num_users=30)
    spec = {"name": "price", "kind": "numeric", "vocabulary_size": 0, "width": 1}
    log.item_features = {"price": (spec, np.full(60, np.nan, np.float32))}
    return write_artifacts(log, path)


def test_a_loss_that_is_not_finite_stops_and_saves_the_batch(tmp_path: Path) -> None:
    workdir = diverging(tmp_path)
    with pytest.raises(ValueError, match=r"loss of step 1 is not finite.*failed_batch\.npz"):
        train(small_config(), workdir, "model", "x")
    saved = np.load(workdir.checkpoints("model") / "failed_batch.npz")
    assert saved["item_index"].shape == saved["is_target"].shape
    assert not workdir.model("model").path.exists()


def test_a_batch_that_the_disk_has_no_room_for_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of one, under the name of a whole one, would be taken for it."""

    def fill(stream: BinaryIO, **_: np.ndarray) -> None:
        stream.write(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(np, "savez_compressed", fill)
    workdir = diverging(tmp_path)
    with pytest.raises(OSError, match=r"No space left on device: .*failed_batch\.npz"):
        train(small_config(), workdir, "model", "x")
    assert not list(workdir.checkpoints("model").glob("failed_batch*"))


def odd_log(kind: str) -> tuple[Log, Config]:
    rng = np.random.default_rng(0)
    sequences = [rng.permutation(20)[:6] + 1 for _ in range(12)]
    if kind == "one group":
        return Log(sequences, np.zeros(20, int)), small_config(groups={"num_groups": 1})
    if kind == "a group without events":
        # Items 21..24 are group 1: in the catalogue, never in a sequence.
        return Log(sequences, np.repeat([0, 1], [20, 4])), small_config()
    if kind == "users of one group each":
        return Log([np.sort(row) % 10 + 1 + 10 * (n % 2) for n, row in enumerate(sequences)], np.repeat([0, 1], 10)), (
            small_config()
        )
    return Log(sequences[:1], np.arange(20) % 3), small_config()


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "drawn"])
@pytest.mark.parametrize("kind", ["one group", "a group without events", "users of one group each", "a batch of one"])
def test_odd_logs_train_and_evaluate(kind: str, sampled: bool, tmp_path: Path) -> None:
    log, config = odd_log(kind)
    if kind == "users of one group each":
        log.sequences = [np.unique(row) for row in log.sequences]
    workdir = write_artifacts(log, tmp_path)
    training = SAMPLED if sampled else MIXED
    config = Config.model_validate(
        {**config.model_dump(), "training": {**config.training.model_dump(), "epochs": 2, **training}}
    )
    train(config, workdir, "model", "x")
    table = evaluate(config, workdir, Split.TEST, ["model"]).metrics["model_quota"]
    assert 0 <= table["recall_at_10"]["value"] <= 1


def test_weights_are_written_and_read_without_a_warning(workdir: Workdir, caplog: pytest.LogCaptureFixture) -> None:
    """`dnc` hides TensorFlow's; the processes of `dnc benchmark` and `dnc tune` do not."""
    config = small_config(training={"epochs": 1})
    train(config, workdir, "quiet", "x")
    load_model(config, workdir, "quiet")
    assert not [record.getMessage() for record in caplog.records if "get_config" in record.getMessage()]


def test_weights_that_do_not_fit_are_refused(workdir: Workdir) -> None:
    train(small_config(training={"epochs": 1}), workdir, "fits", "x")
    with pytest.raises(ValueError, match=r"model.weights.h5 do not fit"):
        load_model(small_config(model={"embedding_dim": 8}), workdir, "fits")
    with pytest.raises(ArtifactError, match="no artifact"):
        load_model(small_config(), workdir, "never trained")


def test_weights_that_a_disk_has_damaged_are_named_with_what_to_do(workdir: Workdir) -> None:
    config = small_config(training={"epochs": 1})
    train(config, workdir, "cut", "x")
    weights = workdir.model("cut").weights
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{weights} cannot be read \(.*retrain.warm_start=false, or roll back"):
        load_model(config, workdir, "cut")


def test_weights_of_another_version_of_the_project_are_refused(workdir: Workdir) -> None:
    """They fit, and mean something else."""
    train(small_config(training={"epochs": 1}), workdir, "older", "f")
    manifest = workdir.model("older").path / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace(f'"{contracts.__version__}"', '"0.1.0"'))
    with pytest.raises(ArtifactError, match=r"models/older was trained by code version 0\.1\.0"):
        load_model(small_config(), workdir, "older")


def test_weights_for_which_there_is_no_room_are_told(
    workdir: Workdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 would bring the process down."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    model = TwoTowerModel(small_config(), Catalogue.load(workdir))
    model.query_embeddings(HISTORY, {})
    save_weights(model, tmp_path / "a.weights.h5")
    size = (tmp_path / "a.weights.h5").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(OSError, match=r"No space left on device for .* MiB of weights") as raised:
        save_weights(model, tmp_path / "b.weights.h5")
    with pytest.raises(OSError, match="No space left on device for"):  # before an epoch, not after it
        TrainingState(tmp_path / "state", "a", model, tf.keras.optimizers.Adam(), averaged_epochs=1.0)
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == str(tmp_path / "tmp")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.weights.h5", "tmp"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_stray_shard_is_not_read(workdir: Workdir, tmp_path: Path) -> None:
    copy = Workdir(tmp_path / "copy")
    shutil.copytree(workdir.path, copy.path)
    count = sum(len(batch.user_index) for batch in TrainingWindows(copy, 1000, 0).epoch(0))
    shutil.copy(copy.windows.shard(Split.TRAIN, 0, 1), copy.windows.shard(Split.TRAIN, 1, 2))
    assert sum(len(batch.user_index) for batch in TrainingWindows(copy, 1000, 0).epoch(0)) == count


def test_write_evaluation_leaves_one_artifact(workdir: Workdir) -> None:
    config = small_config(training={"epochs": 1}, evaluation={"baselines": ["popularity"]})
    train(config, workdir, MAIN_MODEL, "x")
    manifest = write_evaluation(config, workdir, "y")
    assert (manifest.fingerprint, manifest.files) == ("y", ["breakdowns.json", "metrics.json"])
    metrics = json.loads(workdir.metrics.read_text())
    assert list(metrics) == ["popularity", "dnc", "dnc_quota"]


@pytest.mark.parametrize(
    ("popularity", "warned"),
    [([0.1, 0.2, 0.4], None), ([0.1, 0.2, 0.6], None), ([0.1, 0.4, 0.6], "at k = 50, 500."), (None, None)],
    ids=["nowhere better", "at one k of three", "at two", "not measured"],
)
def test_a_model_that_finds_less_than_popularity_is_warned_of(
    popularity: list[float] | None, warned: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    found = {"dnc": [0.2, 0.3, 0.5], "single_vector": [0.0, 0.0, 0.0], "popularity": popularity}
    metrics = {
        name: {f"recall_at_{k}": {"value": value} for k, value in zip((10, 50, 500), values, strict=True)}
        for name, values in found.items()
        if values
    }
    warn_of_popularity(metrics, [10, 50, 500])
    assert (warned in caplog.text) if warned else not caplog.records


def test_exposed_negatives_lie_at_their_targets(tmp_path: Path) -> None:
    workdir = write_artifacts(cyclic_log(num_users=20, exposed_negatives=2), tmp_path)
    batch = next(TrainingWindows(workdir, 100, 0).epoch(0))
    predicted = batch.is_target.copy()
    predicted[:, 0] = False
    assert batch.exposed_negatives.shape == (*batch.item_index.shape, 2)
    np.testing.assert_array_equal(
        batch.exposed_negatives, np.where(predicted, batch.item_index, 0)[:, :, None].repeat(2, 2)
    )
