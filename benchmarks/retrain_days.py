"""Replays days of a log: a warm-started retrain every day against one from scratch.

    python -m benchmarks.retrain_days [--days N] [--users N] [--log drifting|kuairand] [--path DIR] [--json PATH]

All arms begin as copies of one store with one model, and retrain on every one of the last N days:
- warm: from the last version's weights, groups continued;
- scratch: fresh weights, the config's own budget of epochs and early stopping;
- refitted (--refitted): as warm, but groups are fitted anew every day.
Recall@100 is that of the exported servable on the users of the newest day, which no arm has trained on; the
ratio's interval is a paired bootstrap over the users of all days. Times are wall seconds of `dnc retrain`'s work in
this process, from finding the spans to the push. On the drifting log, the last day is retrained once more with ten
times as many days of log before it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from contracts import artifact
from contracts.config import Config
from contracts.config_io import load_config
from contracts.layout import MAIN_MODEL, Store
from pipeline.datasets import drifting
from pipeline.retraining.evidence import measure
from pipeline.retraining.holdout import HoldoutUsers
from pipeline.retraining.retrain import Result, retrain
from pipeline.retraining.spans import find_spans
from pipeline.stages import exported_servable

K = 100
LENIENT = [
    "retrain.gate.max_drop=0.9",
    "retrain.gate.max_group_drop=0.99",
    "retrain.gate.max_latency_ratio=100",
    "retrain.gate.max_latency_ms=10000",
]
"""What is compared is training: the gate lets through what a busy machine or a small log would have it refuse."""
HISTORY_WINDOW = 4
_COLUMNS = ["user_id", "video_id", "time_ms", "is_click", "long_view"]


@dataclass
class Arm:
    """One way to retrain, with what it did each day."""

    name: str
    config: Config
    store: Store
    seconds: list[float] = field(default_factory=list)
    training_seconds: list[float] = field(default_factory=list)
    epochs: list[int] = field(default_factory=list)
    recall: list[np.ndarray] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    def run(self, day: str) -> None:
        result = retrain(self.config, self.store, until=day)
        if result.run_id is None or result.outcome == "nothing_new":
            raise ValueError(f"{self.name}, {day}: {result.outcome} {result.reasons}")
        workdir = self.store.run(result.run_id)
        model = artifact.read_manifest(workdir.model(MAIN_MODEL).path)
        users = HoldoutUsers(workdir)
        [answers] = users.ask([exported_servable(workdir)], K)
        self.seconds.append(result.seconds)
        self.training_seconds.append(model.seconds)
        self.epochs.append(model.counts["epochs"])
        self.recall.append(measure(users.holdout(), answers).recall)
        self.outcomes.append(result.outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=1, help="days to replay at the log's end (default 1)")
    parser.add_argument("--users", type=int, default=8_000, help="of the drifting log (default 8000)")
    parser.add_argument("--repeats", type=int, default=1, help="of each history length (default 1)")
    parser.add_argument("--log", choices=["drifting", "kuairand"], default="drifting")
    parser.add_argument("--path", type=Path, help="of kuairand: directory of log_standard_*.parquet and the tables")
    parser.add_argument("--refitted", action="store_true", help="also the arm whose groups are fitted anew")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--json", type=Path, help="also write the result here, and the table beside it as .md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = prepare(
            arguments.log, arguments.path, folder / "log", arguments.users, [*LENIENT, *arguments.overrides]
        )
        arms = replay(config, folder, arguments.days, refitted=arguments.refitted)
        result = compare(arms, config.seed)
        if arguments.log == "drifting":
            result["time_at_10x_history"] = time_at_10x_history(
                config, Store(folder / "first"), folder, arguments.repeats
            )
    table = as_table(arms, result)
    print(table)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        days = {arm.name: {"seconds": arm.seconds, "epochs": arm.epochs, "outcomes": arm.outcomes} for arm in arms}
        details = {"log": arguments.log, "result": result, "arms": days}
        arguments.json.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
        arguments.json.with_suffix(".md").write_text(table, encoding="utf-8")
    print(json.dumps(result))


def prepare(log: str, source: Path | None, folder: Path, users: int, overrides: list[str]) -> Config:
    """Lays the log out by days below `folder`; returns the config that reads it."""
    events = f"data.events='{folder}/{{date}}/events.parquet'"
    if log == "drifting":
        drifting.generate(
            drifting.DriftingLog(num_days=10 * HISTORY_WINDOW, num_users=users, num_items=users // 4), folder
        )
        own = [events, f"data.item_features.path={folder}/items.csv"]
        return load_config(Path("configs/retrain.yaml"), [*own, *overrides])
    if source is None:
        raise SystemExit("--log kuairand needs --path, the directory of the data set")
    table = pa.concat_tables([pq.read_table(path) for path in sorted(source.glob("log_standard_*.parquet"))])
    for day in pc.unique(table["date"]).to_pylist():
        (folder / str(day)).mkdir(parents=True)
        rows = table.filter(pc.equal(table["date"], day)).select(_COLUMNS)
        pq.write_table(rows, folder / str(day) / "events.parquet")
    tables = [
        f"data.item_features.path={next(source.glob('video_features_basic_pure.csv*'))}",
        f"data.user_features.path={next(source.glob('user_features_pure.csv*'))}",
    ]
    small = ["serving.indexes=[scann]", "evaluation.ks=[100]", "retrain.window_spans=10", "data.num_buckets=4"]
    return load_config(Path("configs/kuairand.yaml"), [events, *tables, *small, *overrides])


def replay(config: Config, folder: Path, days: int, *, refitted: bool) -> list[Arm]:
    """Runs every arm on the last `days` days, arms in turn within a day."""
    spans = find_spans(config)
    first = Store(folder / "first")
    begun = retrain(config, first, until=spans[-days - 1].key)
    if begun.outcome != "pushed":
        raise ValueError(f"the first model was not pushed: {begun.reasons}")
    changes = {"warm": {}, "scratch": {"warm_start": False}}
    if refitted:
        changes["refitted"] = {"stable_groups": False}
    arms = []
    for name, change in changes.items():
        store = Store(folder / name)
        shutil.copytree(first.path, store.path)
        arms.append(Arm(name, config.model_copy(update={"retrain": config.retrain.model_copy(update=change)}), store))
    for span in spans[-days:]:
        for arm in arms:
            arm.run(span.key)
    return arms


def compare(arms: list[Arm], seed: int) -> dict[str, float | list[float]]:
    """Ratios of warm (and refitted) to scratch over all days."""
    by_name = {arm.name: arm for arm in arms}
    scratch = by_name["scratch"]
    result: dict[str, float | list[float]] = {}
    for name in [name for name in by_name if name != "scratch"]:
        pairs = np.stack([np.concatenate(by_name[name].recall), np.concatenate(scratch.recall)], axis=1)
        low, high = interval(pairs, seed)
        result[f"{name}_vs_scratch_recall"] = round(float(pairs[:, 0].mean() / pairs[:, 1].mean()), 4)
        result[f"{name}_vs_scratch_recall_95"] = [round(low, 4), round(high, 4)]
        result[f"{name}_vs_scratch_time"] = round(sum(by_name[name].seconds) / sum(scratch.seconds), 4)
        result[f"{name}_vs_scratch_training_time"] = round(
            sum(by_name[name].training_seconds) / sum(scratch.training_seconds), 4
        )
    return result


def interval(pairs: np.ndarray, seed: int) -> tuple[float, float]:
    """95% of the ratio of the columns' means, users drawn with replacement."""
    rng, count = np.random.default_rng(seed), len(pairs)
    means = np.stack([rng.multinomial(count, np.full(count, 1 / count)) @ pairs for _ in range(1000)])
    low, high = np.quantile(means[:, 0] / means[:, 1], [0.025, 0.975])
    return float(low), float(high)


def time_at_10x_history(config: Config, first: Store, folder: Path, repeats: int) -> float:
    """Wall time of the last day's warm retrain with 40 days of log over that with 4; the least of `repeats` each.

    The window is the same 4 days: what lies before it is neither read nor kept. Both begin with `first`, the
    store with one version, and have one day to ingest.
    """
    config = config.model_copy(update={"retrain": config.retrain.model_copy(update={"window_spans": HISTORY_WINDOW})})
    spans = find_spans(config)
    seconds: dict[str, list[float]] = {"long": [], "short": []}
    for repeat in range(repeats):
        for name in ("long", "short"):
            store = Store(folder / f"history-{name}-{repeat}")
            shutil.copytree(first.path, store.path)
            hidden = hide_days(spans[:-HISTORY_WINDOW]) if name == "short" else []
            try:
                seconds[name].append(timed(retrain(config, store)))
            finally:
                for path in hidden:
                    path.with_name(f"hidden-{path.name}").rename(path)
    return round(min(seconds["long"]) / min(seconds["short"]), 4)


def hide_days(spans: list) -> list[Path]:
    """Renames the spans' directories, so that the log has fewer days."""
    folders = [Path(span.files[0]).parent for span in spans]
    for path in folders:
        path.rename(path.with_name(f"hidden-{path.name}"))
    return folders


def timed(result: Result) -> float:
    if result.outcome not in ("pushed", "not_blessed"):
        raise ValueError(f"{result.outcome}: {result.reasons}")
    return result.seconds


def as_table(arms: list[Arm], result: dict[str, float | list[float]]) -> str:
    lines = [
        "| arm | day | recall@100 | users | seconds | of it training | epochs | outcome |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        for day, recall in enumerate(arm.recall):
            lines.append(
                f"| {arm.name} | {day + 1} | {recall.mean():.4f} | {len(recall):,} | {arm.seconds[day]:.1f} "
                f"| {arm.training_seconds[day]:.1f} | {arm.epochs[day]} | {arm.outcomes[day]} |"
            )
    facts = [f"- {name}: {value}" for name, value in result.items()]
    return "\n".join([*lines, "", *facts]) + "\n"


if __name__ == "__main__":
    main()
