"""The table and the plot of `retrain_days`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.retrain_replay import Day

_ARMS = ("warm", "scratch", "refitted")


def as_table(log: str, days: list[Day], result: dict[str, Any], history: dict[str, Any]) -> str:
    """Markdown: recall and seconds by day and arm, the ratios, and the stages' seconds."""
    lines = [
        f"## {log}",
        "",
        "| day | users | yesterday's model | as pushed | warm | scratch | refitted | s warm | s scratch "
        "| epochs warm / scratch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for day in days:
        recalls = [f"{day.runs[arm].recall.mean():.4f}" if arm in day.runs else "" for arm in _ARMS]
        seconds = [f"{day.runs[arm].seconds:.1f}" if arm in day.runs else "" for arm in _ARMS[:2]]
        epochs = " / ".join(str(day.runs[arm].epochs) for arm in _ARMS[:2] if arm in day.runs)
        cells = [
            day.key, f"{len(day.stale_recall):,}", f"{day.stale_recall.mean():.4f}",
            f"{day.served_recall.mean():.4f}", *recalls, *seconds, epochs,
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {value}" for name, value in result.items()), ""]
    columns = {"warm": [day.runs["warm"].stages for day in days if "scratch" in day.runs]}
    columns["scratch"] = [day.runs["scratch"].stages for day in days if "scratch" in day.runs]
    mean = {
        f"{arm}, mean of {len(runs)}": {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
        for arm, runs in columns.items()
        if runs
    }
    mean |= {f"window of {window} days": row["stages"] for window, row in history.get("windows", {}).items()}
    if mean:
        names = list(next(iter(mean.values())))
        lines += [f"| seconds of | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [
            f"| {arm} | " + " | ".join(f"{stages[name]:.1f}" for name in names) + " |" for arm, stages in mean.items()
        ]
    lines += [
        f"- window of {window} days: {row['seconds']} s, {row['epochs']} epochs"
        for window, row in history.get("windows", {}).items()
    ]
    return "\n".join(lines) + "\n"


def draw(days: list[Day], path: Path, log: str) -> None:
    """Recall by day above, seconds by day below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (recall, seconds) = pyplot.subplots(2, 1, sharex=True, figsize=(8, 6), height_ratios=[2, 1])
    names = [day.key[5:] for day in days]
    recall.plot(names, [day.stale_recall.mean() for day in days], color="0.6", label="yesterday's model")
    recall.plot(names, [day.served_recall.mean() for day in days], ":", color="0.3", label="as pushed")
    for arm, style in {"warm": "o-", "scratch": "s", "refitted": "x"}.items():
        shown = [(day.key[5:], day.runs[arm]) for day in days if arm in day.runs]
        places = [key for key, _ in shown]
        recall.plot(places, [run.recall.mean() for _, run in shown], style, label=arm)
        seconds.plot(places, [run.seconds for _, run in shown], style, label=arm)
    recall.set_ylabel("recall@100 on the day")
    recall.set_title(f"{log}: dnc retrain every day")
    recall.legend()
    seconds.set_ylabel("seconds, whole process")
    seconds.set_ylim(bottom=0)
    seconds.tick_params(axis="x", rotation=60)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
