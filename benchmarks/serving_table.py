"""The serving benchmark over sizes and numbers of groups: one command, one table.

    python -m benchmarks.serving_table --out benchmarks/results

Runs `benchmarks.serving` for every N of --items and K of --groups, each in its own process, and writes serving.json (a
list of what each run says), serving.md and serving.png (recall against latency, a panel per run) to --out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if not __package__:  # run as a file, beside which Python would find serving.py in place of the package
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from contracts.artifact import write_json
from contracts.storage import write_text

_ROOT = Path(__file__).parent.parent
_CONTENDERS = ("global", "all", "top", "exact", "tfrs", "faiss", "hnswlib")
_RATIOS = ("all_groups", "top_groups", "exact", "tfrs", "faiss", "hnswlib")
_TICKS = (0.5, 1, 2, 4, 8, 16)
Line = dict[str, Any]


def run(num_items: int, num_groups: int, arguments: argparse.Namespace) -> Line:
    """Runs the benchmark once and returns its line."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "line.json"
        command = [sys.executable, "-m", "benchmarks.serving", "--items", str(num_items), "--groups", str(num_groups)]
        command += ["--seconds", str(arguments.seconds), "--json", str(path)]
        done = subprocess.run(command, cwd=_ROOT, check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-3000:]}")
        line: Line = json.loads(path.read_text(encoding="utf-8"))
        return line


def table(lines: list[Line]) -> str:
    """Markdown, a row per run."""
    sizes = [1, 8, 64]
    head = ["items", "K", "µs, batch 1"]
    head += [f"{name} b{size}" for name in ("all", "top K/4", "exact", "TFRS", "faiss", "hnswlib") for size in sizes]
    head += [
        "recall all",
        "all, b1",
        "top",
        "global",
        "TFRS",
        "faiss",
        "hnswlib",
        "exact / bandwidth",
        "load s",
        "memory / embeddings",
    ]
    rows = []
    for line in lines:
        cells = [f"{line['items']:,}", line["groups"], line["all_groups_b1_us"]]
        cells += [_number(line.get(f"{name}_b{size}_vs_global")) for name in _RATIOS for size in sizes]
        recalls = ("all", "all_b1", "top", "global", "tfrs", "faiss", "hnswlib")
        cells += [_number(line.get(f"recall_{name}"), 3) for name in recalls]
        cells += [_number(line[name]) for name in ("exact_b1_vs_bandwidth", "load_s", "memory_vs_embeddings")]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *rows])


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def plot(lines: list[Line], path: Path) -> None:
    """Recall against latency, relative to the global index, a panel per run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    items, groups = (sorted({line[name] for line in lines}) for name in ("items", "groups"))
    figure, panels = pyplot.subplots(
        len(items), len(groups), figsize=(3.4 * len(groups), 2.8 * len(items)), sharey=True, squeeze=False
    )
    ratios = dict(zip(_CONTENDERS, (None, *_RATIOS), strict=True))
    for line in lines:
        panel = panels[items.index(line["items"])][groups.index(line["groups"])]
        for name, key in ratios.items():
            if f"recall_{name}" not in line:
                continue
            for size, marker in ((1, "o"), (64, "s")):
                ratio = line[f"{key}_b{size}_vs_global"] if key else 1.0
                color = f"C{_CONTENDERS.index(name)}"
                panel.scatter(
                    ratio, line[f"recall_{name}"], s=18, c=color, marker=marker, label=f"{name}, batch {size}"
                )
        panel.set_xscale("log")
        panel.set_xticks(_TICKS, map(str, _TICKS))
        panel.set_xticks([], minor=True)
        panel.set_title(f"{line['items']:,} items, {line['groups']} groups", fontsize=8)
        panel.set_xlabel("time / global index", fontsize=7)
        panel.set_ylabel("recall", fontsize=7)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, ncols=7, fontsize=6, loc="lower center")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--items",
        type=int,
        nargs="+",
        default=[20_000, 100_000, 1_000_000],
        help="sizes of the catalogue (default: %(default)s)",
    )
    parser.add_argument(
        "--groups",
        type=int,
        nargs="+",
        default=[10, 32, 100],
        help="numbers of groups, each with each of --items (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="of timing for each batch size of a run (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="directory to write to (default: %(default)s)"
    )
    arguments = parser.parse_args()
    started, lines = time.perf_counter(), []
    for num_items in arguments.items:
        for num_groups in arguments.groups:
            lines.append(run(num_items, num_groups, arguments))
            print(json.dumps(lines[-1]), flush=True)
    shown = table(lines)
    command = f"`python -m benchmarks.serving_table {' '.join(sys.argv[1:])}`".replace(" `", "`")
    title = "# Serving: times against one global index, M = 640, d = 64, one thread\n\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out / "serving.json", lines)
    note = (
        f"{command}, {time.perf_counter() - started:.0f} s. Columns b1, b8, b64: time / global index at that batch. "
        "Read times beside recall, each contender's by its own rule: TFRS' layers are asked for M / K a group and find "
        "little of the best M by score.\n"
    )
    write_text(arguments.out / "serving.md", f"{title}{note}\n{shown}\n")
    plot(lines, arguments.out / "serving.png")
    print(shown)


if __name__ == "__main__":
    main()
