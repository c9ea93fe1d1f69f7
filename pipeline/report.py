"""What a finished run prints: metrics, groups, sizes, times, and one user's candidates by group."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from contracts import artifact
from contracts.config import Config
from contracts.layout import Workdir
from pipeline.catalogue_titles import load_titles
from pipeline.histories import example_user, history_of
from pipeline.runner import StageResult
from pipeline.stages import STAGES, exported_servable

_SHOWN_CANDIDATES = 30
_SHOWN_HISTORY = 8


def print_report(config: Config, workdir: Workdir, results: list[StageResult], console: Console) -> None:
    """Prints what there is to see after the given stages."""
    if workdir.metrics.exists():
        console.print(metrics_table(workdir))
    if workdir.item_groups.report.exists():
        console.print(groups_table(workdir))
    console.print(stages_table(config, workdir, results))
    if artifact.find_manifest(workdir.validation):
        servable = exported_servable(workdir)
        console.print(example(config, workdir, servable))
        console.print(Text(f"servable: {servable}", style="bold"))
        console.print(f"ask it:   dnc query -w {workdir.path} --user {example_user(config, workdir)}")


def metrics_table(workdir: Workdir) -> Table:
    """Models by metrics, each value with its confidence interval."""
    metrics = json.loads(workdir.metrics.read_text(encoding="utf-8"))
    names = [name for name in next(iter(metrics.values())) if any(name in model for model in metrics.values())]
    table = Table(
        title="Test split, ranking the whole catalogue, seen items removed (95% interval)", title_justify="left"
    )
    table.add_column("metric")
    for model in metrics:
        table.add_column(model, justify="right")
    for name in names:
        table.add_row(name, *(_interval(metrics[model].get(name)) for model in metrics))
    return table


def _interval(cell: dict[str, float] | None) -> str:
    return "" if cell is None else f"{cell['value']:.4f} ({cell['low']:.3f}-{cell['high']:.3f})"


def groups_table(workdir: Workdir) -> Table:
    """Groups with size and label."""
    table = Table(title="Item groups", title_justify="left")
    for column in ("group", "items", "what it is about"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for group in json.loads(workdir.item_groups.report.read_text(encoding="utf-8")):
        table.add_row(str(group["group_id"]), f"{group['size']:,}", group["label"])
    return table


def stages_table(config: Config, workdir: Workdir, results: list[StageResult]) -> Table:
    """Stages with time (of the run that made the artifact), size on disk and counts."""
    table = Table(title="Stages", title_justify="left")
    for column in ("stage", "seconds", "MiB", "holds"):
        table.add_column(column, justify="left" if column in ("stage", "holds") else "right")
    stages = {stage.name: stage for stage in STAGES}
    for result in results:
        paths = stages[result.name].outputs(config, workdir)
        manifests = [artifact.read_manifest(path) for path in paths]
        seconds = result.seconds if result.ran else sum(manifest.seconds for manifest in manifests)
        size = sum(file.stat().st_size for path in paths for file in path.rglob("*") if file.is_file())
        holds = ", ".join(f"{value:,} {name}" for name, value in manifests[0].counts.items())
        note = "" if result.ran else " (kept)"
        table.add_row(result.name + note, f"{seconds:.1f}", f"{size / 2**20:.1f}", holds)
    return table


def example(config: Config, workdir: Workdir, servable: Path) -> Group:
    """One user's last items and the candidates that the servable returns, group by group."""
    from serving.local_client import ServableSession

    user = example_user(config, workdir)
    history = history_of(config, workdir, user)
    with ServableSession(servable) as session:
        answer = session.recommend([history], user_ids=[user], num_candidates=_SHOWN_CANDIDATES)
    return Group(
        Text(f"User {user}, last of {len(history)} items", style="bold"),
        *(Text(f"  {name}") for name in _names(config, history[-_SHOWN_HISTORY:])),
        Text(f"{_SHOWN_CANDIDATES} candidates, by group in order of their best score", style="bold"),
        candidates_table(config, workdir, answer.item_ids[0], answer.scores[0], answer.group_ids[0]),
    )


def candidates_table(
    config: Config, workdir: Workdir, item_ids: list[str], scores: list[float], groups: list[int]
) -> Table:
    """Candidates of one request under their groups, best group first."""
    labels = {
        row["group_id"]: row["label"] for row in json.loads(workdir.item_groups.report.read_text(encoding="utf-8"))
    }
    rows: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for name, score, group in zip(_names(config, item_ids), scores, groups, strict=True):
        if group >= 0:
            rows[int(group)].append((name, float(score)))
    table = Table(show_lines=True)
    table.add_column("group")
    table.add_column("candidates (score)")
    for group, members in rows.items():
        table.add_row(f"{group}: {labels[group]}", ", ".join(f"{name} ({score:.2f})" for name, score in members))
    return table


def _names(config: Config, item_ids: list[str]) -> list[str]:
    titles = load_titles(config)
    return [titles.get(item) or item for item in item_ids]
