"""`dnc tune`: a search over the tower, K, L, alpha, loss weights, rates and draws, judged on validation users only.

optuna chooses (tree-structured Parzen estimator) and remembers: a study that was interrupted, or that
gets more trials, continues under the same config and code. The merge and the quotas' alpha cost no training, so each
trial takes the best ones.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from pydantic import ValidationError

from beam_jobs.common.files import read_parquet
from contracts import artifact, storage
from contracts.config import Config, LossConfig
from contracts.config_io import dump_config, load_config
from contracts.errors import Diverged
from contracts.layout import Workdir
from contracts.lock import holding
from contracts.names import ScoredMerge, Split, UserColumn
from pipeline.runner import run_stages
from pipeline.shared_data import data_workdir
from pipeline.stage import fingerprints
from pipeline.stages import STAGES
from pipeline.training_processes import training_processes
from trainer.evaluation.metric_names import recall_name

log = logging.getLogger(__name__)

_ALPHAS = (0.0, 0.5, 1.0, 1.5, 2.0)
_MERGES: tuple[tuple[ScoredMerge, float], ...] = (("score", 1.0), *(("quota", alpha) for alpha in _ALPHAS))
"""A merge by score has no alpha."""
_FINISHED, _DIVERGED = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL
_MOST_IN_VAIN = 5
"""Number of trials that diverge in a row; then it is the data, not what was tried."""
_GROUPS = (5, 10, 20, 40, 80)
_LENGTHS = (50, 100, 200)
"""Windows of logs whose users have as many events: some gain from long ones, some lose."""
_LONG_USERS = 0.9
"""The quantile of users whose number of events counts as long."""
_TOWERS = ("transformer", "mean")
"""If the order of events says little, as with loans known only to the day, a mean learns more from a small log."""
_IN_GROUP_SHARE, _LEAST_SHARE, _GREATEST_SHARE = "in_group_share", 0.1, 0.9
"""The trial's parameter for the in-group part of a step's draws, and its range."""


@dataclass(frozen=True)
class _Number:
    """A setting that is searched from `low` to `high`, or as far as the config's own value.

    Attributes:
        key: its key in the config.
        low: least value.
        high: greatest value.
        is_scale: whether it is drawn by its logarithm.
    """

    key: str
    low: float
    high: float
    is_scale: bool = True

    @property
    def name(self) -> str:
        """The trial's parameter."""
        return self.key.rpartition(".")[2]

    def of(self, config: Config) -> float:
        """The config's own value."""
        value: float = attrgetter(self.key)(config)
        return value


_NUMBERS = (
    _Number("training.loss.in_group_weight", 0.1, 3.0),
    _Number("training.loss.global_weight", 0.1, 3.0),
    _Number("training.loss.intent_weight", 0.1, 3.0),
    _Number("training.learning_rate", 2e-4, 5e-3),
    _Number("model.dropout", 0.1, 0.6, is_scale=False),
    _Number("model.conditioning_dropout", 0.0, 0.8, is_scale=False),
)


@dataclass(frozen=True)
class LogSize:
    """What of a log bounds the search.

    Attributes:
        num_items: items of the catalogue.
        long_history: training positives of a user with many of them.
    """

    num_items: int
    long_history: float


@dataclass(frozen=True)
class Tuned:
    """What was found.

    Attributes:
        config: the best trial's, whole.
        recall: its validation recall at `trainer.evaluation.metrics.monitored_k`.
        trials: finished trials of the study.
        path: YAML file that holds `config`.
    """

    config: Config
    recall: float
    trials: int
    path: Path


def tune(config: Config, workdir: Path, num_trials: int) -> Tuned:
    """Searches until the study in `workdir` has `num_trials` finished trials; each renews best.yaml and trials.json.

    Raises:
        ValueError: another search holds the workdir, the data cannot be prepared, trial after trial diverges, or the
            config warm-starts, which trials of other shapes cannot.
    """
    if config.training.warm_start is not None:
        raise ValueError("training.warm_start: dnc tune trains its trials from scratch, so omit it")
    with holding(Workdir(workdir)):
        size = _log_size(config, workdir)
        study = _open_study(config, workdir / "study.log")
        if not study.get_trials(states=[_FINISHED, _DIVERGED]):
            study.enqueue_trial(starting_point(config, size))  # the search must not end below where it began
        in_vain = 0
        while (done := len(study.get_trials(states=[_FINISHED]))) < num_trials:
            trial = study.ask()
            try:
                study.tell(trial, _objective(trial, config, workdir, size))
            except Diverged as error:
                study.tell(trial, state=_DIVERGED)
                log.warning("tune: trial %d is not counted: %s", trial.number, error)
                in_vain += 1
                if in_vain == _MOST_IN_VAIN:
                    raise
                continue
            in_vain = 0
            _write(study, config, workdir)  # whoever stops the search has what it found
            log.info("tune: %d of %d trials, best recall %.4f", done + 1, num_trials, study.best_value)
        return _write(study, config, workdir)


def _log_size(config: Config, workdir: Path) -> LogSize:
    data = data_workdir(config, workdir / "data")
    run_stages(STAGES, config, data, last="statistics")
    statistics = data.item_statistics
    events = read_parquet(statistics.users, columns=[UserColumn.TRAIN_COUNT])[UserColumn.TRAIN_COUNT].to_numpy()
    long_history = float(np.quantile(events, _LONG_USERS)) if len(events) else 0.0
    return LogSize(artifact.read_manifest(statistics.path).counts["items"], long_history)


def _open_study(config: Config, path: Path) -> optuna.Study:
    if path.exists():
        # A killed session may leave half a line, after which nothing could be read.
        whole, newline, _ = path.read_bytes().rpartition(b"\n")
        os.truncate(path, len(whole + newline))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        study_name=_fingerprint(config),
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize",
        load_if_exists=True,
    )
    # Each session has its own seed: a resumed one would otherwise draw the first session's trials again.
    study.sampler = optuna.samplers.TPESampler(seed=config.seed + len(study.trials))
    return study


def _fingerprint(config: Config) -> str:
    """Names the study by all that a trial's recall depends on, including code and data files: only such compare."""
    measured = config.evaluation.max_users, config.serving.exploration_share
    return artifact.fingerprint(fingerprints(STAGES, config)["train"], measured)


def suggest(trial: optuna.trial.BaseTrial, config: Config, size: LogSize) -> dict[str, Any]:
    """A trial's config keys; the search's ranges are here. There are at most as many groups as items."""
    found: dict[str, Any] = {
        number.key: trial.suggest_float(number.name, min(number.low, own), max(number.high, own), log=number.is_scale)
        for number, own in _numbers(config)
    }
    if _tower_is_free(config):
        found["model.user_tower"] = trial.suggest_categorical("user_tower", _TOWERS)
    if _draws_in_groups(config.training.loss, size.num_items):
        own = _in_group_share(config.training.loss)
        low, high = min(_LEAST_SHARE, own), max(_GREATEST_SHARE, own)
        found |= _pools(config.training.loss, trial.suggest_float(_IN_GROUP_SHARE, low, high))
    if _number_of_groups_is_free(config):
        choices = sorted({*_GROUPS, config.groups.num_groups})
        found["groups.num_groups"] = min(trial.suggest_categorical("num_groups", choices), size.num_items)
    if len(lengths := _lengths(config, size)) > 1:
        found |= _windows(config, trial.suggest_categorical("length", lengths))
    return found


def _numbers(config: Config) -> list[tuple[_Number, float]]:
    """The numbers to search, with the config's own values, except for the weights of loss terms that it leaves out."""
    own = [(number, number.of(config)) for number in _NUMBERS]
    return [(number, value) for number, value in own if value or not number.is_scale]


def _tower_is_free(config: Config) -> bool:
    """Whether the search may choose the tower: not if the config has one outside `_TOWERS`, or mixed precision."""
    is_tried = config.model.user_tower in _TOWERS and not config.training.mixed_precision
    return is_tried and all(_is_valid(config, {"model.user_tower": tower}) for tower in _TOWERS)


def _number_of_groups_is_free(config: Config) -> bool:
    """Whether the search may choose K: not if groups are categories."""
    is_tried = config.groups.method == "kmeans"
    return is_tried and all(_is_valid(config, {"groups.num_groups": number}) for number in _GROUPS)


def _lengths(config: Config, size: LogSize) -> list[int]:
    """The lengths of windows to search: the config's own, and those that long histories fill by more than half."""
    own = config.windows.length
    filled = [length for length in _LENGTHS if length < 2 * size.long_history]
    return sorted({own, *(length for length in filled if _is_valid(config, _windows(config, length)))})


def _windows(config: Config, length: int) -> dict[str, int]:
    """The keys of windows of that length, with as many events in a step as in `config`."""
    events = config.training.batch_size * config.windows.length
    return {"windows.length": length, "training.batch_size": max(round(events / length), 1)}


def _is_valid(config: Config, keys: dict[str, Any]) -> bool:
    """Whether the config may have those values, too: a search that met a refusal would end after hours."""
    try:
        with_keys(config, keys)
    except ValidationError:
        return False
    return True


def _draws_in_groups(loss: LossConfig, num_items: int) -> bool:
    """Whether a model of so many items is trained on in-group draws and others."""
    return not loss.is_exact(num_items) and loss.negatives == "windows" and loss.easy_pool + loss.fresh_pool > 0


def _in_group_share(loss: LossConfig) -> float:
    return loss.in_group_pool / (loss.in_group_pool + loss.easy_pool + loss.fresh_pool)


def _pools(loss: LossConfig, in_group_share: float) -> dict[str, int]:
    """The keys of as many draws as in `loss`, of which that share is in-group; easy and fresh ones keep their ratio."""
    others = loss.easy_pool + loss.fresh_pool
    total = loss.in_group_pool + others
    in_group = min(max(round(in_group_share * total), 1), total)
    easy = round((total - in_group) * loss.easy_pool / others)
    pools = {"in_group_pool": in_group, "easy_pool": easy, "fresh_pool": total - in_group - easy}
    return {f"training.loss.{name}": size for name, size in pools.items()}


def starting_point(config: Config, size: LogSize) -> dict[str, Any]:
    """The config's own values of what `suggest` asks for."""
    found: dict[str, Any] = {number.name: own for number, own in _numbers(config)}
    if _tower_is_free(config):
        found["user_tower"] = config.model.user_tower
    if _draws_in_groups(config.training.loss, size.num_items):
        found[_IN_GROUP_SHARE] = _in_group_share(config.training.loss)
    if _number_of_groups_is_free(config):
        found["num_groups"] = config.groups.num_groups
    return found | ({"length": config.windows.length} if len(_lengths(config, size)) > 1 else {})


def with_keys(config: Config, keys: dict[str, Any]) -> Config:
    """`config` with `section.key` values replaced, validated anew."""
    tree = config.model_dump(mode="json")
    for key, value in keys.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[leaf] = value
    return Config.model_validate(tree)


def _objective(trial: optuna.Trial, config: Config, workdir: Path, size: LogSize) -> float:
    keys = suggest(trial, config, size)
    trial.set_user_attr("keys", keys)
    chosen = with_keys(config, keys)
    data = data_workdir(chosen, workdir / "data")
    run_stages(STAGES, chosen, data, last="windows")
    with training_processes(1) as submit:
        recalls: list[float] = submit(train_and_validate, chosen, data, f"trial-{trial.number}").result()
    trial.set_user_attr("keys", {**keys, **best_merge(recalls)})
    return max(recalls)


def best_merge(recalls: list[float]) -> dict[str, Any]:
    """The config keys of the best of `_MERGES`; alpha is the best for requests by quota, whichever merge is best."""
    by_score, *by_quota = recalls
    best = max(by_quota)
    return {
        "serving.merge": "score" if by_score >= best else "quota",
        "serving.alpha": _ALPHAS[by_quota.index(best)],
    }


def train_and_validate(config: Config, workdir: Workdir, name: str) -> list[float]:
    """Validation recall at `monitored_k` under each merge and alpha that is tried."""
    from trainer.evaluate import evaluate_lists
    from trainer.evaluation.metrics import monitored_k
    from trainer.train import train

    items = artifact.read_manifest(workdir.item_statistics.path).counts["items"]
    k = monitored_k(config.training.monitor_k, items)
    evaluation = config.evaluation.model_copy(update={"ks": (k,), "bootstrap_samples": 0})
    config = config.model_copy(update={"evaluation": evaluation})
    train(config, workdir, name, _fingerprint(config))
    measured = evaluate_lists(config, workdir, name, Split.VALIDATION, _MERGES)
    return [metrics.table[recall_name(k)]["value"] for metrics in measured]


def _write(study: optuna.Study, config: Config, workdir: Path) -> Tuned:
    finished, diverged = study.get_trials(states=[_FINISHED]), study.get_trials(states=[_DIVERGED])
    ranked = sorted(finished, key=lambda trial: -(trial.value or 0.0)) + diverged
    rows = [{"trial": trial.number, "recall": trial.value, **trial.user_attrs["keys"]} for trial in ranked]
    artifact.write_json(workdir / "trials.json", rows)
    path = workdir / "best.yaml"
    storage.write_text(path, dump_config(with_keys(config, study.best_trial.user_attrs["keys"])))
    return Tuned(load_config(path), study.best_value, len(finished), path)
