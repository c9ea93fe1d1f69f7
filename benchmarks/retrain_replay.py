"""The parts of `retrain_days`: logs laid out by days, runs of `dnc retrain`, and what is compared."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from contracts.config import Config
from contracts.config_io import dump_config, load_config
from contracts.layout import MAIN_MODEL
from contracts.store_layout import RetrainRun, Store
from pipeline.datasets.drifting import DriftingLog, generate
from pipeline.retraining.catch_up import pushed_workdir
from pipeline.retraining.evidence import measure
from pipeline.retraining.holdout import HoldoutUsers
from pipeline.retraining.records import read_record
from pipeline.retraining.spans import find_spans
from pipeline.stages import exported_servable
from trainer.evaluation.metrics import bootstrap_changes

K = 100
HISTORY_WINDOW = 7
"""The window of configs/retrain.yaml: a user's days in it nearly fill what its model looks back on."""
ROOT = Path(__file__).parents[1]
LENIENT = [
    "retrain.gate.max_recall=1",
    "retrain.gate.max_drop=0.9",
    "retrain.gate.max_group_drop=0.99",
    "retrain.gate.min_group_presence=0",
    "retrain.gate.min_coverage=0",
    "retrain.gate.max_coverage_drop=0.99",
    "retrain.gate.max_cold_share=1",
    "retrain.gate.max_latency_ratio=100",
    "retrain.gate.max_latency_ms=10000",
]
"""Training is what is compared: the gate passes models that it would refuse for a busy machine or a small log."""
PRODUCT_MODEL = [
    f"{section}.{name}={getattr(getattr(Config(), section), name)}"
    for section, name in (
        ("model", "embedding_dim"),
        ("model", "num_layers"),
        ("model", "expert_hidden_dim"),
        ("windows", "length"),
        ("training", "epochs"),
        ("retrain", "window_spans"),
    )
]
"""The product's defaults for settings that are smaller in retrain.yaml, so that its example is quick."""
_COLUMNS = ["user_id", "video_id", "time_ms", "is_click", "long_view"]


@dataclass
class Run:
    """One call of `dnc retrain`.

    Attributes:
        seconds: time of the process.
        stages: name -> seconds of each stage.
        epochs: number of epochs trained.
        recall: [num_users] recall of the servable on the newest day.
    """

    run_id: str
    outcome: str
    seconds: float
    stages: dict[str, float]
    epochs: int
    best_epoch: int
    groups: dict[str, Any]
    recall: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def as_json(self) -> dict[str, Any]:
        """All fields, with every user's recall."""
        return {**vars(self), "recall": self.recall.tolist()}

    @classmethod
    def of_json(cls, tree: dict[str, Any]) -> Run:
        return cls(**{**tree, "recall": np.array(tree["recall"])})


@dataclass
class Day:
    """The runs of a day, and the recall of yesterday's model on it.

    Attributes:
        stale_recall: [num_users] recall of yesterday's model as it passed the gate, on the same users.
        served_recall: [num_users] recall of yesterday's version, which also learnt yesterday's span if it caught up.
    """

    key: str
    runs: dict[str, Run] = field(default_factory=dict)
    stale_recall: np.ndarray = field(default_factory=lambda: np.zeros(0))
    served_recall: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def line(self) -> str:
        shown = [f"{name} {run.recall.mean():.4f} in {run.seconds:.1f} s ({run.epochs} epochs, best {run.best_epoch}, "
                 f"training {run.stages['train']:.1f} s) {run.outcome}" for name, run in self.runs.items()]  # fmt: skip
        before = f"yesterday's model {self.stale_recall.mean():.4f}, as pushed {self.served_recall.mean():.4f}"
        return f"{self.key}: {before}; " + "; ".join(shown)

    def as_json(self) -> dict[str, Any]:
        """The day's numbers."""
        runs = {name: run.as_json() | {"recall": round(float(run.recall.mean()), 5)} for name, run in self.runs.items()}
        stale, served = (round(float(recall.mean()), 5) for recall in (self.stale_recall, self.served_recall))
        before = {"yesterdays_model": stale, "yesterdays_version": served}
        return {"day": self.key, "users": len(self.stale_recall), **before, "runs": runs}


class Stopped(Exception):
    """The requested number of parts is done."""


class Parts:
    """The parts of a long measurement, each kept as JSON, so that none is measured twice."""

    def __init__(self, folder: Path, at_most: int | None):
        """Keeps parts in `folder`; after measuring `at_most` new ones, `done` raises `Stopped`."""
        self._folder, self._left = folder, at_most

    def require_same(self, arguments: dict[str, Any]) -> None:
        """Raises SystemExit if the existing parts were measured with other arguments."""
        before = self._read("arguments")
        if before is not None and before != arguments:
            raise SystemExit(f"{self._folder} holds parts of another replay, {before}: give this one its own --work")
        artifact.write_json(self._folder / "arguments.json", arguments)

    def done(self, name: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The part as it was measured, now or earlier."""
        found = self._read(name)
        if found is not None:
            return found
        if self._left == 0:
            raise Stopped
        found = measure()
        artifact.write_json(self._folder / f"{name}.json", found)
        self._left = None if self._left is None else self._left - 1
        return found

    def _read(self, name: str) -> Any:
        path = self._folder / f"{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def dump(config: Config, folder: Path) -> Path:
    """The config as a file."""
    path = folder / "retrain.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path


def lay_out_drifting(folder: Path, log: DriftingLog, overrides: list[str]) -> Config:
    """Generates the log below `folder`, unless it is there; returns the config that reads it."""
    generate(log, folder)
    own = [f"data.events='{folder}/{{date}}/events.parquet'", f"data.item_features.path={folder}/items.csv"]
    return load_config(ROOT / "configs" / "retrain.yaml", [*own, *LENIENT, *overrides])


def lay_out_kuairand(source: Path, folder: Path, days: int, overrides: list[str]) -> Config:
    """The last `days` days of KuaiRand's standard log, a file per day; its dates are China's, the times UTC."""
    table = pa.concat_tables([pq.read_table(path) for path in sorted(source.glob("log_standard_*.parquet"))])
    for day in sorted(pc.unique(table["date"]).to_pylist())[-days:]:
        path = folder / str(day) / "events.parquet"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = table.filter(pc.equal(table["date"], day)).select(_COLUMNS)
            pq.write_table(rows, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
    own = [
        f"data.events='{folder}/{{date}}/events.parquet'",
        f"data.item_features.path={next(source.glob('video_features_basic_pure.csv*'))}",
        f"data.user_features.path={next(source.glob('user_features_pure.csv*'))}",
        "data.num_buckets=4",
        "data.feedback.history_level=click",
        "data.request_features=[]",
        "serving.indexes=[scann]",
        "serving.validation_requests=64",
        "evaluation.ks=[100]",
        "evaluation.bootstrap_samples=0",
        "retrain.window_spans=7",
    ]
    return load_config(ROOT / "configs" / "kuairand.yaml", [*own, *LENIENT, *overrides])


def daily_retrain(config: Path, store: Store, day: str, overrides: list[str] | None = None) -> Run:
    """Runs `dnc retrain --span DAY` in its own process.

    Raises:
        RuntimeError: it ended without a new model.
    """
    words = [sys.executable, "-m", "pipeline.cli", "retrain", "-c", str(config), "-s", str(store.path), "--span", day]
    words += [word for override in overrides or [] for word in ("--set", override)]
    started = time.monotonic()
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    outcome = json.loads(done.stdout) if done.stdout else {"outcome": "died", "reasons": done.stderr[-2000:]}
    if outcome["outcome"] not in ("pushed", "not_blessed"):
        raise RuntimeError(f"{day}: {outcome['outcome']}: {outcome['reasons']}")
    model = artifact.read_manifest(store.run(outcome["run_id"]).model(MAIN_MODEL).path)
    groups = artifact.read_manifest(store.run(outcome["run_id"]).item_groups.path).details.get("drift", {})
    epoch = (model.details["best"] or {"epoch": 0})["epoch"]
    if outcome["reasons"]:
        print(f"{day}: {outcome['outcome']}: {outcome['reasons']}", flush=True)
    return Run(
        outcome["run_id"],
        outcome["outcome"],
        seconds,
        outcome["details"]["stages"],
        model.counts["epochs"],
        epoch,
        groups,
    )


def recall_of(store: Store, run_id: str) -> np.ndarray:
    """[num_users] recall@K of a run's servable on its own newest day."""
    workdir = store.run(run_id)
    users = HoldoutUsers(workdir)
    [answers] = users.ask([exported_servable(workdir)], K)
    return measure(users.holdout(), answers).recall


def models_on_same_users(store: Store, run_id: str) -> list[np.ndarray]:
    """[num_users] recall@K on a run's newest day: of its model, and of its parent's as judged and as pushed."""
    workdir, record = store.run(run_id), read_record(store, run_id)
    assert record is not None
    parent = read_record(store, record.parents["run_id"])
    assert parent is not None
    users, run = HoldoutUsers(workdir), RetrainRun(store.run(parent.run_id))
    asked = [workdir, run.workdir, pushed_workdir(run, parent.catch_up)]
    answers = users.ask([exported_servable(one) for one in asked], K)
    return [measure(users.holdout(), answer).recall for answer in answers]


def compare(days: list[Day], seed: int, history: dict[str, Any]) -> dict[str, Any]:
    """Ratios over the compared days, of the warm model to yesterday's over all days, and of `time_by_window`."""
    compared = [day for day in days if "scratch" in day.runs]
    result: dict[str, Any] = {"compared_days": [day.key for day in compared]}
    for name, one, other in (("warm_vs_scratch", "warm", "scratch"), ("kept_vs_refitted_groups", "warm", "refitted")):
        if not compared:
            continue
        pairs = [np.stack([day.runs[one].recall, day.runs[other].recall], axis=1) for day in compared]
        result |= ratios(name, pairs, seed)
        runs = [(day.runs[one], day.runs[other]) for day in compared]
        result[f"{name}_time"] = round(sum(a.seconds for a, _ in runs) / sum(b.seconds for _, b in runs), 4)
        spent = [(a.stages["train"], b.stages["train"]) for a, b in runs]
        result[f"{name}_training_time"] = round(sum(a for a, _ in spent) / sum(b for _, b in spent), 4)
    pairs = [np.stack([day.runs["warm"].recall, day.stale_recall], axis=1) for day in days]
    result |= ratios("warm_vs_yesterdays_model", pairs, seed)
    pairs = [np.stack([day.served_recall, day.stale_recall], axis=1) for day in days]
    result |= ratios("caught_up_vs_yesterdays_model", pairs, seed)
    return result | ({"time_at_10x_history": history["ratio"]} if history else {})


def ratios(name: str, pairs: list[np.ndarray], seed: int) -> dict[str, Any]:
    """Ratio of the columns' means over all users of all days, with its 95% interval (users drawn with replacement)."""
    every = np.concatenate(pairs)
    low, high = 1 + np.quantile(bootstrap_changes(every[:, :1], every[:, 1:], 1000, seed), [0.025, 0.975])
    ratio = every[:, 0].mean() / every[:, 1].mean()
    return {
        f"{name}_recall": round(float(ratio), 4),
        f"{name}_recall_95": [round(float(low), 4), round(float(high), 4)],
    }


def time_by_window(config: Config, folder: Path, repeats: int = 2) -> dict[str, Any]:
    """Seconds of one more warm day with a window of 7 days and with one of 70, each the least of `repeats`.

    Each window has its own store, whose first model is trained on the day before with the same window, for only a few
    epochs, since only the day after is timed.
    """
    spans = find_spans(config)
    stores: dict[int, tuple[Path, Store]] = {}
    found: dict[int, list[Run]] = {}
    for window in (HISTORY_WINDOW, 10 * HISTORY_WINDOW):
        store = Store(folder / f"window-{window}")
        shutil.rmtree(store.path, ignore_errors=True)  # left by a measurement that was killed here
        own = config.model_copy(
            update={"retrain": config.retrain.model_copy(update={"window_spans": window, "epochs": 4})}
        )
        path = dump(own, store.path.parent).rename(folder / f"window-{window}.yaml")
        short = own.model_copy(update={"training": own.training.model_copy(update={"epochs": 2})})
        daily_retrain(dump(short, folder), store, spans[-2].key)
        stores[window], found[window] = (path, store), []
    for repeat in range(repeats):
        for window, (path, store) in stores.items():
            copy = Store(folder / f"copy-{window}-{repeat}")
            shutil.rmtree(copy.path, ignore_errors=True)
            shutil.copytree(store.path, copy.path)
            # The same number of epochs in both, so that only the history differs.
            found[window].append(daily_retrain(path, copy, spans[-1].key, ["retrain.patience=99"]))
            shutil.rmtree(copy.path)
    best = {window: min(runs, key=lambda run: run.seconds) for window, runs in found.items()}
    short, long = (best[window] for window in sorted(best))
    rows = {
        str(window): {"seconds": round(run.seconds, 2), "stages": run.stages, "epochs": run.epochs}
        for window, run in best.items()
    }
    return {"ratio": round(long.seconds / short.seconds, 4), "windows": rows}
