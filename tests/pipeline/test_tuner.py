import json
from pathlib import Path

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.errors import Diverged
from pipeline import tuner
from pipeline.tuner import (
    LogSize,
    _fingerprint,
    _lengths,
    _log_size,
    best_merge,
    starting_point,
    suggest,
    tune,
    with_keys,
)


def test_a_config_takes_every_key_that_is_tried() -> None:
    trial = optuna.trial.FixedTrial(
        {
            "in_group_weight": 0.5,
            "global_weight": 2.0,
            "intent_weight": 1.5,
            "learning_rate": 2e-3,
            "dropout": 0.3,
            "conditioning_dropout": 0.1,
            "user_tower": "mean",
            "num_groups": 20,
        }
    )
    config = with_keys(Config(), suggest(trial, Config(), LogSize(1000, 9)))
    assert (config.training.loss.in_group_weight, config.training.loss.global_weight) == (0.5, 2.0)
    assert (config.model.dropout, config.training.learning_rate, config.groups.num_groups) == (0.3, 2e-3, 20)
    assert config.model.user_tower == "mean"
    for asked_for in ({"model.user_tower": "gru"}, {"training.mixed_precision": True}):
        assert "model.user_tower" not in suggest(trial, with_keys(Config(), asked_for), LogSize(1000, 9))
    few = suggest(trial, Config(), LogSize(12, 9))
    assert few["groups.num_groups"] == 12  # a catalogue has no more groups than items


CATEGORY = [
    "data.item_features={path: items.csv, id: item_id, features: [{name: topic, kind: categorical}]}",
    "groups.method=category",
    "groups.category=topic",
]


PAPER = ["training.loss.global_weight=0", "training.loss.intent_weight=9"]
PAPER_DRAWS = ["training.loss.in_group_pool=1900", "training.loss.easy_pool=70", "training.loss.fresh_pool=30"]
OUT_OF_RANGE = ["training.learning_rate=0.05", "model.dropout=0"]


ONE_GROUP = ["groups.num_groups=1", "training.loss.in_group_weight=0"]
ODD = ["model.user_tower=mean", "model.embedding_dim=33"]
LONG = ["windows.length=300", "training.batch_size=3"]
STARTS = [
    ["groups.num_groups=7"],
    ["model.user_tower=gru"],
    CATEGORY,
    PAPER,
    PAPER_DRAWS,
    OUT_OF_RANGE,
    ONE_GROUP,
    ODD,
    LONG,
]


@pytest.mark.parametrize(("num_items", "long_history"), [(1_000, 9), (100_000, 9), (1_000, 300)])
@pytest.mark.parametrize("keys", STARTS)
def test_the_search_begins_at_the_config(keys: list[str], num_items: int, long_history: int) -> None:
    config, size = load_config(None, keys), LogSize(num_items, long_history)
    trial = optuna.trial.FixedTrial(starting_point(config, size))
    assert with_keys(config, suggest(trial, config, size)) == config


@pytest.mark.parametrize("keys", STARTS)
def test_every_config_that_is_tried_is_valid(keys: list[str]) -> None:
    config, sampler = load_config(None, keys), optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    for _ in range(30):
        chosen = with_keys(config, suggest(study.ask(), config, LogSize(100_000, 300)))
        assert chosen.model.embedding_dim == config.model.embedding_dim  # what is not searched stays


def test_the_share_of_in_group_draws_is_searched_where_there_are_draws() -> None:
    """2,560 draws by default: 1,024 in-group, 512 easy and 1,024 fresh. Of 80%, 2,048 are in-group, 512 shared 1:2."""
    loss, large, small = "training.loss.", LogSize(100_000, 9), LogSize(20_000, 9)
    trial = optuna.trial.FixedTrial({**starting_point(Config(), large), "in_group_share": 0.8})
    found = suggest(trial, Config(), large)
    assert [found[f"{loss}{name}_pool"] for name in ("in_group", "easy", "fresh")] == [2048, 171, 341]
    exact = suggest(optuna.trial.FixedTrial(starting_point(Config(), small)), Config(), small)
    uniform = load_config(None, [f"{loss}negatives=uniform"])
    nothing_else = load_config(None, [f"{loss}easy_pool=0", f"{loss}fresh_pool=0"])
    others = [
        suggest(optuna.trial.FixedTrial(starting_point(config, large)), config, large)
        for config in (uniform, nothing_else)
    ]
    for keys in (exact, *others):
        assert not any(key.endswith("_pool") for key in keys)


@pytest.mark.parametrize(
    ("own", "long_history", "lengths"),
    [
        (50, 9, [50]),  # nobody has more events: all lengths would be one
        (50, 51, [50, 100]),
        (50, 101, [50, 100, 200]),
        (20, 25, [20]),
        (20, 26, [20, 50]),
        (400, 500, [50, 100, 200, 400]),
    ],
)
def test_windows_are_tried_that_long_histories_fill_by_more_than_half(
    own: int, long_history: float, lengths: list[int]
) -> None:
    config = load_config(None, [f"windows.length={own}", "training.batch_size=40"])
    size = LogSize(1_000, long_history)
    assert _lengths(config, size) == lengths
    start = starting_point(config, size)
    assert ("length" in start) == (len(lengths) > 1)
    for length in lengths if "length" in start else []:
        found = suggest(optuna.trial.FixedTrial({**start, "length": length}), config, size)
        assert found["windows.length"] == length
        # A step has as many events as before, up to half a window.
        assert abs(found["training.batch_size"] * length - 40 * own) <= length / 2


def test_a_long_history_is_that_of_a_tenth_of_the_users(tmp_path: Path) -> None:
    """54 users of 4 events and 6 of 30, and each user's last two are held out: the 54th of 60 has 2, the 55th 28."""
    sizes = np.repeat([4, 30], [54, 6])
    users = np.repeat(np.arange(60), sizes)
    steps = np.concatenate([np.arange(size) for size in sizes])
    table = {"user_id": users.astype(str), "item_id": steps.astype(str), "timestamp": 10**9 + steps}
    pq.write_table(pa.table(table), tmp_path / "events.parquet")
    config = load_config(None, [f"data.events={tmp_path / 'events.parquet'}", "data.num_buckets=1"])
    # numpy's quantile: .9 of the way from the first to the last is place 53.1 of 0 to 59.
    assert _log_size(config, tmp_path) == LogSize(30, pytest.approx(2 + 0.1 * 26))


@pytest.mark.parametrize(
    ("recalls", "merge", "alpha"),
    [
        ([0.3, 0.1, 0.1, 0.2, 0.1, 0.1], "score", 1.0),
        ([0.3, 0.1, 0.4, 0.2, 0.1, 0.1], "quota", 0.5),
        ([0.4, 0.1, 0.1, 0.1, 0.4, 0.1], "score", 1.5),  # of equal recall, the merge that needs no alpha
    ],
)
def test_the_best_alpha_is_that_of_quotas(recalls: list[float], merge: str, alpha: float) -> None:
    assert best_merge(recalls) == {"serving.merge": merge, "serving.alpha": alpha}


@pytest.mark.parametrize("keys", [PAPER, OUT_OF_RANGE])
def test_a_search_from_any_start_draws_around_it(
    keys: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More trials than the ten that are drawn at random; a term that the config leaves out stays out."""
    config, seen = load_config(None, keys), []

    def objective(trial: optuna.Trial, config: Config, workdir: Path, size: LogSize) -> float:
        seen.append(with_keys(config, suggest(trial, config, size)))
        trial.set_user_attr("keys", {})
        return seen[-1].model.dropout

    monkeypatch.setattr(tuner, "_log_size", lambda *_: LogSize(1000, 9))
    monkeypatch.setattr(tuner, "_objective", objective)
    assert tune(config, tmp_path, 15).trials == 15
    assert seen[0] == config and len({each.training.learning_rate for each in seen}) == 15
    weights = {each.training.loss.global_weight for each in seen}
    assert weights == {0.0} if keys == PAPER else 0.0 not in weights


def test_a_trial_that_diverges_is_recorded_and_the_search_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first one, which is the config itself, too; five in a row are too many."""
    diverging = {0, 2, 3}

    def objective(trial: optuna.Trial, config: Config, workdir: Path, size: LogSize) -> float:
        trial.set_user_attr("keys", suggest(trial, config, size))
        if trial.number in diverging:
            raise Diverged("the loss of step 1 is not finite")
        return 0.1

    monkeypatch.setattr(tuner, "_log_size", lambda *_: LogSize(1000, 9))
    monkeypatch.setattr(tuner, "_objective", objective)
    assert tune(Config(), tmp_path, 3).trials == 3
    trials = {trial["trial"]: trial["recall"] for trial in json.loads((tmp_path / "trials.json").read_text())}
    assert trials == {0: None, 1: 0.1, 2: None, 3: None, 4: 0.1, 5: 0.1}
    assert "trial 2 is not counted: the loss of step 1 is not finite" in caplog.text
    diverging.update(range(7, 100))
    with pytest.raises(Diverged):
        tune(Config(), tmp_path, 5)
    assert "trial 11 is not counted" in caplog.text and "trial 12 " not in caplog.text
    # A search that ends early leaves what its trials found.
    assert {row["trial"] for row in json.loads((tmp_path / "trials.json").read_text())} >= {1, 4, 5, 6}


def test_a_study_goes_on_and_its_best_config_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training stubbed by a formula: recall grows with dropout, and quota at alpha 0.5 is best."""
    seen = []

    def objective(trial: optuna.Trial, config: Config, workdir: Path, size: LogSize) -> float:
        keys = suggest(trial, config, size)
        seen.append(keys)
        trial.set_user_attr("keys", {**keys, "serving.merge": "quota", "serving.alpha": 0.5})
        return float(keys["model.dropout"])

    monkeypatch.setattr(tuner, "_log_size", lambda *_: LogSize(1000, 9))
    monkeypatch.setattr(tuner, "_objective", objective)
    tune(Config(), tmp_path, 3)
    with (tmp_path / "study.log").open("a") as log:
        log.write('{"op_code": 4, "wor')  # what a killed session leaves
    found = tune(Config(), tmp_path, 5)
    assert (found.trials, len(seen)) == (5, 5)
    assert with_keys(Config(), seen[0]) == Config()  # the search begins where it is asked to
    recalls = [trial["recall"] for trial in json.loads((tmp_path / "trials.json").read_text())]
    assert recalls == sorted((keys["model.dropout"] for keys in seen), reverse=True)
    assert len({tuple(keys.values()) for keys in seen}) == 5  # the second session does not repeat the first
    assert found.recall == max(keys["model.dropout"] for keys in seen)
    best = load_config(found.path)
    assert (best.serving.merge, best.serving.alpha, best.model.dropout) == ("quota", 0.5, found.recall)
    monkeypatch.setattr(artifact, "code_of", lambda *rooms: "other code")
    assert tune(Config(), tmp_path, 1).trials == 1  # a study of its own


@pytest.mark.slow
def test_one_trial_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more groups tried than there are items."""
    monkeypatch.setattr(tuner, "_GROUPS", (80,))
    steps = np.arange(8)
    users, items = np.repeat(np.arange(60), 8), (np.repeat(np.arange(60), 8) + np.tile(steps, 60)) % 30
    table = {"user_id": users.astype(str), "item_id": items.astype(str), "timestamp": 10**9 + np.tile(steps, 60)}
    pq.write_table(pa.table(table), tmp_path / "events.parquet")
    keys = ["data.num_buckets=1", "training.epochs=1", "model.num_layers=1", "groups.num_groups=80"]
    config = load_config(None, [f"data.events={tmp_path / 'events.parquet'}", *keys])
    found = tune(config, tmp_path / "study", 1)
    assert 0 <= found.recall <= 1
    assert found.config.groups.num_groups == 30
    assert (tmp_path / "study" / "trials.json").exists()


def test_a_study_is_of_its_data_and_of_what_a_trial_depends_on(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("1")
    of_log, of_server = (
        _fingerprint(load_config(None, [f"data.events={log}", *keys])) for keys in ([], ["server.grpc_port=9"])
    )
    assert of_log == of_server
    for key in ("evaluation.max_users=9", "serving.exploration_share=0.5"):
        assert _fingerprint(load_config(None, [f"data.events={log}", key])) != of_log, key
    log.write_text("12")
    assert _fingerprint(load_config(None, [f"data.events={log}"])) != of_log


def test_a_warm_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.warm_start: dnc tune trains its trials from scratch"):
        tune(load_config(None, ["training.warm_start=runs/mine"]), tmp_path, 1)
