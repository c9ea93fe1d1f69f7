"""The picture of a run: recall against the number of candidates, and the catalogue's coverage."""

from __future__ import annotations

import logging
from pathlib import Path

from contracts.config import COVERAGE_K
from contracts.storage import write_whole
from trainer.evaluation.metric_names import COVERAGE, recall_k, recall_name
from trainer.evaluation.metrics import MetricTable

Metrics = dict[str, MetricTable]
"""Model -> its metrics."""


def plot_metrics(metrics: Metrics, confidence: float, path: Path) -> None:
    """Draws a run's metrics, with intervals of the given confidence, into a PNG file."""
    # If matplotlib cannot write to HOME, it says so on import, and uses a temporary directory.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), width_ratios=[3, 2], layout="constrained")
    for model, values in metrics.items():
        ks = sorted(k for name in values if (k := recall_k(name)))
        cells = [values[recall_name(k)] for k in ks]
        line = left.plot(ks, [cell["value"] for cell in cells], marker="o", markersize=3, label=model)[0]
        left.fill_between(
            ks, [cell["low"] for cell in cells], [cell["high"] for cell in cells], alpha=0.12, color=line.get_color()
        )
        right.barh(model, values[COVERAGE]["value"], color=line.get_color())
    title = f"Recall ({100 * confidence:g}% interval)"
    left.set(xscale="log", xlabel="candidates k", ylabel="recall@k, test users", title=title)
    left.legend(frameon=False)
    right.set(xlabel=f"share of the catalogue in any user's first {COVERAGE_K}", xlim=(0, 1), title="Coverage")
    right.invert_yaxis()
    write_whole(path, lambda staging: figure.savefig(staging, dpi=110, format="png"))
    pyplot.close(figure)
