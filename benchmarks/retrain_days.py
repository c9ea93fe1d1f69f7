"""Replays a log day by day: a warm-started `dnc retrain` every day, and on some days one from scratch beside it.

    python -m benchmarks.retrain_days [--log drifting|kuairand] [--path DIR] [--days N] [--replay N] [--compare N]
                                      [--work DIR [--stop-after N]]

The first model is trained from scratch on `retrain.window_spans` days, or on half of a log that has no more. Then every
day is one call of `dnc retrain`, in its own process, from yesterday's store. On `--compare` days, spread evenly, the
day is also retrained in copies of that morning's store
- from scratch (retrain.warm_start=false): fresh weights, the config's own budget of epochs and early stopping;
- with groups fitted anew (groups.refit_drift=0) instead of kept.
Recall@100 is that of the exported servable on the test users of the newest day, whom no arm has seen; the ratio's
interval is a paired bootstrap over the users of all compared days. Times are the wall seconds of whole processes,
including start and imports; those of training alone are given beside them. Model, budget of epochs and window are the
product's defaults. At the end, one day of a longer drifting log is retrained with a window of 7 days and with one of
70, with the small model of configs/retrain.yaml, which looks back on 20 events. With --work, logs and stores stay in
DIR, and the same command resumes a replay that was killed or that --stop-after ended. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from benchmarks.outputs import json_output
from benchmarks.retrain_replay import (
    HISTORY_WINDOW,
    PRODUCT_MODEL,
    Day,
    Parts,
    Run,
    Stopped,
    compare,
    daily_retrain,
    dump,
    lay_out_drifting,
    lay_out_kuairand,
    models_on_same_users,
    recall_of,
    time_by_window,
)
from benchmarks.retrain_tables import as_table, draw
from contracts.artifact import write_json
from contracts.config import Config
from contracts.storage import write_text
from contracts.store_layout import Store
from pipeline.datasets.drifting import DriftingLog
from pipeline.retraining.spans import find_spans

DAYS = {"drifting": 30, "kuairand": 14}
"""Days of each log by default."""
FEWEST_DAYS = 3
ARMS = {"scratch": ["retrain.warm_start=false"], "refitted": ["groups.refit_drift=0"]}
"""The settings that the arms beside the warm one change."""


def main() -> None:
    arguments = parse_arguments()
    if arguments.work is not None:
        arguments.work.mkdir(parents=True, exist_ok=True)
        measure(arguments, arguments.work.absolute())
        return
    with tempfile.TemporaryDirectory() as scratch:
        measure(arguments, Path(scratch))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--log",
        choices=["drifting", "kuairand"],
        default="drifting",
        help="whose days are replayed (default: %(default)s)",
    )
    parser.add_argument("--path", type=Path, help="of kuairand: directory of log_standard_*.parquet and the tables")
    parser.add_argument("--days", type=int, help="of the log (default: 30 drifting, 14 kuairand)")
    parser.add_argument("--replay", type=int, help="of these, retrain on the last so many (default: all that can be)")
    parser.add_argument("--users", type=int, default=32_000, help="of the drifting log (default: %(default)s)")
    parser.add_argument("--compare", type=int, default=3, help="days with the other arms beside (default: %(default)s)")
    parser.add_argument("--no-history", action="store_true", help="leave out the window of ten times the days")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        help="override a key of the config; repeatable",
    )
    parser.add_argument("--work", type=Path, help="keep everything here; the same command goes on where it stopped")
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after N more parts (a run of a day each)")
    parser.add_argument(
        "--json", type=json_output, help="also write the result here, a table as .md and a plot as .png"
    )
    arguments = parser.parse_args()
    if arguments.log == "kuairand" and arguments.path is None:
        parser.error("--log kuairand needs --path, the directory of the data set")
    if arguments.stop_after is not None and arguments.work is None:
        parser.error("--stop-after needs --work, where the next call finds what this one left")
    if arguments.path is not None and not arguments.path.is_dir():
        parser.error(f"--path {arguments.path} is no directory")
    arguments.days = DAYS[arguments.log] if arguments.days is None else arguments.days
    if arguments.days < FEWEST_DAYS:
        parser.error(f"--days {arguments.days} must be {FEWEST_DAYS} or more: two for the first model, one to retrain")
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    """Lays out the log and measures; writes the results so far after every part."""
    parts = Parts(folder, arguments.stop_after)
    parts.require_same({k: str(v) for k, v in vars(arguments).items() if k not in ("work", "stop_after", "json")})
    history: dict[str, Any] = {}
    days: list[Day] = []
    if arguments.log == "kuairand":
        config = lay_out_kuairand(arguments.path, folder / "log", arguments.days, arguments.overrides)
    else:
        log = DriftingLog(arguments.days, arguments.users, arguments.users // 4)
        config = lay_out_drifting(folder / "log", log, [*PRODUCT_MODEL, *arguments.overrides])

    def write() -> None:
        if arguments.json and days:
            save(arguments.json, arguments.log, days, compare(days, config.seed, history), history)

    try:
        for day in replay(config, folder, parts, arguments.replay, arguments.compare):
            days.append(day)
            write()
        if arguments.log == "drifting" and not arguments.no_history:
            history = parts.done(
                "history", partial(history_grows, folder / "history", arguments.users, arguments.overrides)
            )
            write()
    except Stopped:
        print(f"stopped after {arguments.stop_after} parts, as asked: the same command goes on", flush=True)
    if days:
        result = compare(days, config.seed, history)
        print(as_table(arguments.log, days, result, history))
        print(json.dumps(result))


def history_grows(folder: Path, users: int, overrides: list[str]) -> dict[str, Any]:
    """See `time_by_window`."""
    log = DriftingLog(10 * HISTORY_WINDOW + 1, users, users // 4)
    return time_by_window(lay_out_drifting(folder / "long-log", log, overrides), folder)


def save(path: Path, log: str, days: list[Day], result: dict[str, Any], history: dict[str, Any]) -> None:
    """Writes the results so far: JSON, and beside it a table and a plot."""
    details = {"log": log, "result": result, "history": history, "days": [day.as_json() for day in days]}
    write_json(path, details)
    write_text(path.with_suffix(".md"), as_table(log, days, result, history))
    draw(days, path.with_suffix(".png"), log)


def replay(config: Config, folder: Path, parts: Parts, num_days: int | None, num_compared: int) -> Iterator[Day]:
    """Retrains the last `num_days` days warm, and `num_compared` of them with the other arms, too."""
    spans, window = find_spans(config), config.retrain.window_spans
    if len(spans) <= window:
        window = max(2, len(spans) // 2)
        print(f"the first model takes retrain.window_spans={window} of the log's {len(spans)} days", flush=True)
        config = config.model_copy(update={"retrain": config.retrain.model_copy(update={"window_spans": window})})
    store, path = Store(folder / "warm"), dump(config, folder)
    first = max(window - 1, len(spans) - num_days - 1 if num_days else 0)
    begun = parts.done("first", lambda: begin(path, store, spans[first].key))
    print(f"first model: {begun['seconds']:.1f} s", flush=True)
    rest = spans[first + 1 :]
    every = max(len(rest) // num_compared, 1) if num_compared else len(rest) + 1
    for place, span in enumerate(rest):
        compared = (len(rest) - 1 - place) % every == 0 and (len(rest) - 1 - place) // every < num_compared
        day = Day(span.key)
        for name in ARMS if compared else ():
            day.runs[name] = Run.of_json(
                parts.done(f"{span.key}-{name}", partial(one_arm, path, store, span.key, name))
            )
        warm = parts.done(span.key, partial(one_day, path, store, span.key))
        shutil.rmtree(morning_of(store, span.key), ignore_errors=True)
        day.runs["warm"] = Run.of_json(warm["run"])
        day.stale_recall, day.served_recall = np.array(warm["yesterdays_model"]), np.array(warm["yesterdays_version"])
        print(day.line(), flush=True)
        yield day


def begin(path: Path, store: Store, key: str) -> dict[str, Any]:
    """Trains the first model, from scratch."""
    shutil.rmtree(store.path, ignore_errors=True)  # left by a replay that was killed here
    begun = daily_retrain(path, store, key)
    if begun.outcome != "pushed":
        raise SystemExit("the first model was not pushed: there is nothing to start from")
    return {"seconds": begun.seconds}


def one_arm(path: Path, store: Store, key: str, name: str) -> dict[str, Any]:
    """Runs another arm in a copy of the morning's store."""
    copy = Store(store.path.parent / name)
    shutil.rmtree(copy.path, ignore_errors=True)
    shutil.copytree(store.path, copy.path)
    run = daily_retrain(path, copy, key, ARMS[name])
    run.recall = recall_of(copy, run.run_id)
    shutil.rmtree(copy.path)
    return run.as_json()


def one_day(path: Path, store: Store, key: str) -> dict[str, Any]:
    """The warm run, from which the store continues, and the recall of yesterday's model, as judged and as pushed."""
    morning = morning_of(store, key)
    if morning.exists():  # this day was begun before, and killed
        shutil.rmtree(store.path)
        shutil.copytree(morning, store.path)
    else:
        shutil.copytree(store.path, morning.with_suffix(".part"), dirs_exist_ok=True).rename(morning)
    run = daily_retrain(path, store, key)
    run.recall, stale, served = models_on_same_users(store, run.run_id)
    return {"run": run.as_json(), "yesterdays_model": stale.tolist(), "yesterdays_version": served.tolist()}


def morning_of(store: Store, key: str) -> Path:
    """The store as it was before the day, kept until the day is done."""
    return store.path.with_name(f"morning-{key}")


if __name__ == "__main__":
    main()
