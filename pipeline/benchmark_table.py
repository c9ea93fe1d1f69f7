"""A benchmark's results as JSON and Markdown."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contracts
from contracts import artifact, storage
from pipeline.benchmark_config import BenchmarkConfig
from pipeline.paired_changes import CONFIDENCE, Change, Lists
from trainer.evaluation.metric_names import heading

Cell = dict[str, float]


def json_file(name: str | Path) -> Path:
    """The path of a JSON file; the Markdown table beside it differs only in the suffix.

    Raises:
        ValueError: the name does not end in .json.
    """
    if Path(name).suffix != ".json":
        raise ValueError(f"--json {name} must end in .json: the Markdown table beside it ends in .md")
    return Path(name)


def write_tables(
    benchmark: BenchmarkConfig,
    results: list[dict[str, Any]],
    changes: Mapping[Lists, Any],
    json_path: Path,
    command: str,
) -> Path:
    """Writes `json_path` and the Markdown file beside it, whose path is returned.

    Args:
        results: of `run_benchmark`.
        changes: of `paired_changes`, against `benchmark.reference`; empty without one.
    """
    rows = summarise(benchmark, results)
    for row in rows:
        row["changes"] = changes.get((row["dataset"], row["model"], row["lists"]), {})
    about = {
        "title": benchmark.title,
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "command": command,
        "seeds": list(benchmark.seeds),
        "machine": machine(),
        "code_version": contracts.__version__,
    }
    json_path.parent.mkdir(parents=True, exist_ok=True)
    artifact.write_json(
        json_path, {**about, "benchmark": benchmark.model_dump(mode="json"), "rows": rows, "runs": results}
    )
    markdown = json_path.with_suffix(".md")
    storage.write_text(markdown, _markdown(benchmark, rows, about))
    return markdown


def machine() -> dict[str, Any]:
    """The machine that the numbers were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": version("tensorflow"),
    }


def summarise(benchmark: BenchmarkConfig, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per data set, model and merge: means over seeds.

    A metric's cell holds the mean over seeds of its value and of the bootstrap interval over users
    ("low", "high"), and the standard deviation between seeds ("sd", 0 for a single seed).
    """
    runs: dict[tuple[str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        for label in result["lists"]:
            runs[result["dataset"], result["model"], label].append(result)
    order = {name: place for place, name in enumerate(benchmark.all_models())}
    rows = []
    for (dataset, model, label), group in sorted(runs.items(), key=lambda item: (item[0][0], order[item[0][1]])):
        tables = [result["lists"][label] for result in group]
        rows.append(
            {
                "dataset": dataset,
                "model": model,
                "lists": label,
                "epochs": statistics.mean(result["best_epoch"] for result in group),
                "seconds": statistics.mean(result["seconds"] for result in group),
                "metrics": {name: _cell([table[name] for table in tables]) for name in tables[0]},
            }
        )
    return rows


def _cell(cells: list[Cell]) -> Cell:
    values = [cell["value"] for cell in cells]
    return {
        "value": statistics.mean(values),
        "low": statistics.mean(cell["low"] for cell in cells),
        "high": statistics.mean(cell["high"] for cell in cells),
        "sd": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def _markdown(benchmark: BenchmarkConfig, rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    shown = [name for name in benchmark.metrics if any(name in row["metrics"] for row in rows)]
    machine_text = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    parts = [
        f"# {benchmark.title}\n",
        f"`{about['command']}`, {about['date']}, seeds {about['seeds']}. {machine_text}.\n",
        "Protocol: docs/evaluation.md, test users. A cell is the mean over seeds, ± half the bootstrap interval over "
        "users, and in brackets the standard deviation between seeds. Epochs and seconds are those to the best "
        "validation.\n",
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        header = ["model", "lists", *(heading(name) for name in shown), "epochs", "seconds"]
        parts += [f"\n## {dataset}\n", _line(header), _line(["---"] * len(header))]
        for row in rows:
            if row["dataset"] == dataset:
                cells = [_show(row["metrics"][name]) if name in row["metrics"] else "" for name in shown]
                spent = [f"{row['epochs']:.0f}", f"{row['seconds']:.0f}"]
                parts.append(_line([row["model"], row["lists"], *cells, *spent]))
        parts += _changes_table(benchmark, [row for row in rows if row["dataset"] == dataset and row["changes"]], shown)
    return "\n".join(parts) + "\n"


def _changes_table(benchmark: BenchmarkConfig, rows: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    if not rows:
        return []
    shown = [name for name in metrics if any(name in row["changes"] for row in rows)]
    header = ["model", "lists", *(heading(name) for name in shown)]
    text = (
        f"\nChange against *{benchmark.reference}*, the mean of seeds of both, with its {CONFIDENCE:.0%} interval "
        "(paired bootstrap over users; seeds vary beside it):\n"
    )
    lines = [
        _line([row["model"], row["lists"], *(_show_change(row["changes"].get(name)) for name in shown)]) for row in rows
    ]
    return [text, _line(header), _line(["---"] * len(header)), *lines]


def _show_change(change: Change | None) -> str:
    return "" if change is None else f"{change['value']:+.1%} [{change['low']:+.1%}, {change['high']:+.1%}]"


def _show(cell: Cell) -> str:
    half, short = (cell["high"] - cell["low"]) / 2, f"{cell['value']:.4f}".removeprefix("0")
    interval = f" ±{half:.4f}".replace("±0.", "±.") if half else ""
    return short + interval + (f" ({cell['sd']:.4f})".replace("(0.", "(.") if cell["sd"] else "")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
