"""Replays a log day by day: a warm-started `dnc retrain` every day, and on some days one from scratch beside it.

    python -m benchmarks.retrain_days [--log drifting|kuairand] [--path DIR] [--days N] [--replay N] [--compare N]

The first model is trained from scratch on `retrain.window_spans` days. Then every day is one call of
`dnc retrain`, in a process of its own, from yesterday's store. On `--compare` days, spread evenly, the same morning's
store is copied, and the day is retrained there once more
- from scratch (retrain.warm_start=false): fresh weights, the config's own budget of epochs and early stopping;
- with groups fitted anew (groups.refit_drift=0) instead of kept.
Recall@100 is that of the exported servable on the test users of the newest day, whom no arm has seen; the ratio's
interval is a paired bootstrap over the users of all compared days. Times are the wall seconds of whole processes,
start and imports included; those of training alone are given beside them. On the drifting log, one day more is
retrained with a window of 3 days and with one of 30, by the small model of configs/retrain.yaml, which looks back on 20
events; the replay's is the product's default. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.retrain_replay import (
    HISTORY_WINDOW,
    PRODUCT_MODEL,
    Day,
    compare,
    daily_retrain,
    dump,
    lay_out_drifting,
    lay_out_kuairand,
    recall_of,
    time_by_window,
    versions_on_same_users,
)
from benchmarks.retrain_tables import as_table, draw
from contracts.config import Config
from contracts.layout import Store
from pipeline.retraining.spans import find_spans

ARMS = {"scratch": ["retrain.warm_start=false"], "refitted": ["groups.refit_drift=0"]}
"""What the arms beside the warm one change."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log", choices=["drifting", "kuairand"], default="drifting")
    parser.add_argument("--path", type=Path, help="of kuairand: directory of log_standard_*.parquet and the tables")
    parser.add_argument("--days", type=int, help="of the log (default: 30 drifting, 14 kuairand)")
    parser.add_argument("--replay", type=int, help="of these, retrain on the last so many (default: all that can be)")
    parser.add_argument("--users", type=int, default=16_000, help="of the drifting log (default 16000)")
    parser.add_argument("--compare", type=int, default=3, help="days with the other arms beside (default 3)")
    parser.add_argument("--no-history", action="store_true", help="leave out the window of ten times the days")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--json", type=Path, help="also write the result here, a table as .md and a plot as .png")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.log == "kuairand":
            if arguments.path is None:
                parser.error("--log kuairand needs --path, the directory of the data set")
            config = lay_out_kuairand(arguments.path, folder / "log", arguments.days or 14, arguments.overrides)
        else:
            least = 0 if arguments.no_history else 10 * HISTORY_WINDOW + 1
            num_days = max(arguments.days or 30, least)
            small = lay_out_drifting(folder / "log", num_days, arguments.users, arguments.overrides)
            config = lay_out_drifting(folder / "log", num_days, arguments.users, [*PRODUCT_MODEL, *arguments.overrides])
        # The short part first: a long one that is cut off leaves what it has.
        history = {}
        if arguments.log == "drifting" and not arguments.no_history:
            history = time_by_window(small, folder)
        days: list[Day] = []
        for day in replay(config, folder, arguments.replay, arguments.compare):
            days.append(day)
            result = compare(days, config.seed) | ({"time_at_10x_history": history["ratio"]} if history else {})
            if arguments.json:
                write(arguments.json, arguments.log, days, result, history)
    print(as_table(arguments.log, days, result, history))
    print(json.dumps(result))


def write(path: Path, log: str, days: list[Day], result: dict[str, Any], history: dict[str, Any]) -> None:
    """What is known so far: JSON, and beside it a table and a plot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    details = {"log": log, "result": result, "history": history, "days": [day.as_json() for day in days]}
    path.write_text(json.dumps(details, indent=2) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_table(log, days, result, history), encoding="utf-8")
    draw(days, path.with_suffix(".png"), log)


def replay(config: Config, folder: Path, num_days: int | None, num_compared: int) -> Iterator[Day]:
    """The last `num_days` days warm; on `num_compared` of them the other arms, too."""
    spans = find_spans(config)
    store, path = Store(folder / "warm"), dump(config, folder)
    first = max(config.retrain.window_spans - 1, len(spans) - num_days - 1 if num_days else 0)
    begun = daily_retrain(path, store, spans[first].key)
    print(f"first model: {begun.wall:.1f} s, {begun.outcome}", flush=True)
    if begun.outcome != "pushed":
        raise SystemExit("the first model was not pushed: there is nothing to start from")
    rest = spans[first + 1 :]
    every = max(len(rest) // num_compared, 1) if num_compared else len(rest) + 1
    for place, span in enumerate(rest):
        day = Day(span.key)
        compared = (len(rest) - 1 - place) % every == 0 and (len(rest) - 1 - place) // every < num_compared
        for name, overrides in ARMS.items() if compared else ():
            copy = Store(folder / name)
            shutil.copytree(store.path, copy.path)
            day.runs[name] = daily_retrain(path, copy, span.key, overrides)
            day.runs[name].recall = recall_of(copy, day.runs[name].run_id)
            shutil.rmtree(copy.path)
        day.runs["warm"] = daily_retrain(path, store, span.key)
        day.runs["warm"].recall, day.stale_recall = versions_on_same_users(store, day.runs["warm"].run_id)
        print(day.line(), flush=True)
        yield day


if __name__ == "__main__":
    main()
