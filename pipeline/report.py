"""The report of a finished run: metrics, groups, sizes, times, and one user's candidates by group."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from beam_jobs.features.feature_tables import read_feature_table
from contracts import artifact, storage
from contracts.config import Config
from contracts.layout import SERVED_MODEL, Workdir
from contracts.names import ItemColumn
from pipeline.histories import example_user, history_of
from pipeline.plots import Metrics, plot_metrics
from pipeline.runner import StageResult
from pipeline.stages import STAGES, exported_servable
from serving.versions import exported_versions
from trainer.evaluation.metric_names import COVERAGE, NDCG, heading, recall_k, recall_name

log = logging.getLogger(__name__)

_LEAST_SHOWN = 0.0005
_SHOWN_CANDIDATES = 30
_SHOWN_HISTORY = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def print_report(config: Config, workdir: Workdir, results: list[StageResult], console: Console) -> None:
    """Prints what there is to see after the given stages."""
    if storage.is_remote(workdir.path):
        console.print(stages_table(config, workdir, results))
        console.print(f"go on:    dnc fetch {workdir.path} -w DIR")
        return
    # What later stages left here is from an earlier run.
    shown = {result.name for result in results}
    if "evaluate" in shown:
        metrics = join_metrics(workdir, served="validate" in shown)
        plot_metrics(metrics, config.evaluation.confidence, workdir.plot)
        console.print(metrics_table(metrics, artifact.read_manifest(workdir.evaluation).counts["test_users"]))
    if "groups" in shown:
        console.print(groups_table(workdir))
    console.print(stages_table(config, workdir, results))
    if "validate" in shown:
        servable = exported_servable(workdir)
        console.print(example(config, workdir, servable))
        query = shlex.join(["dnc", "query", "-w", str(workdir.path), "--user", example_user(config, workdir)])
        for line in (f"plot:     {workdir.plot}", f"servable: {servable}", f"ask it:   {query}"):
            console.print(Text(line), soft_wrap=True)


def join_metrics(workdir: Workdir, *, served: bool) -> Metrics:
    """What the evaluation measured and, with `served`, the validation; from then on, `workdir.metrics` holds it all.

    The row is the validation's, so a new evaluation keeps it, although that writes its own models alone.
    """
    metrics: Metrics = json.loads(workdir.metrics.read_text(encoding="utf-8"))
    metrics.pop(SERVED_MODEL, None)
    if served:
        metrics |= json.loads(workdir.served_metrics.read_text(encoding="utf-8"))
    artifact.write_json(workdir.metrics, metrics)
    return metrics


def metrics_table(metrics: Metrics, num_users: int) -> Table:
    """Models by metrics; ± is half the confidence interval's width."""
    measured = {name for values in metrics.values() for name in values}
    ks = sorted(k for name in measured if (k := recall_k(name)))
    shown = [name for name in (*map(recall_name, ks), NDCG, COVERAGE) if name in measured]
    table = _table(f"{num_users:,} test users, whole catalogue ranked, seen items removed")
    table.add_column("model", no_wrap=True)
    for name in shown:
        table.add_column(heading(name), no_wrap=True)
    for model, values in metrics.items():
        table.add_row(model, *(_interval(values[name]) if name in values else "" for name in shown))
    return table


def _interval(cell: dict[str, float]) -> str:
    half = (cell["high"] - cell["low"]) / 2
    return _short(cell["value"]) + (f"\n±{_short(half)}" if half >= _LEAST_SHOWN else "")


def _short(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=0)


def groups_table(workdir: Workdir) -> Table:
    """Groups with size and label."""
    table = _table("Item groups")
    for column in ("group", "items", "what it is about"):
        table.add_column(column, justify="left" if column.startswith("what") else "right")
    for group in json.loads(workdir.item_groups.report.read_text(encoding="utf-8")):
        table.add_row(str(group["group_id"]), f"{group['size']:,}", _text(group["label"]))
    return table


def stages_table(config: Config, workdir: Workdir, results: list[StageResult]) -> Table:
    """Stages with time (of the run that made the artifact), size and counts."""
    table = _table("Stages")
    for column in ("stage", "seconds", "MiB", "holds"):
        table.add_column(column, justify="left" if column in ("stage", "holds") else "right")
    stages = {stage.name: stage for stage in STAGES}
    for result in results:
        paths = stages[result.name].outputs(config, workdir)
        manifests = [artifact.read_manifest(path) for path in paths]
        seconds = result.seconds if result.ran else sum(manifest.seconds for manifest in manifests)
        size = sum(map(storage.tree_bytes, (*paths, *(_servables(config, workdir) if result.name == "export" else ()))))
        holds = ", ".join(f"{value:,} {name}" for name, value in manifests[0].counts.items() if value)
        note = "" if result.ran else " (kept)"
        table.add_row(result.name + note, f"{seconds:.1f}", f"{size / 2**20:.1f}", holds)
    return table


def _servables(config: Config, workdir: Workdir) -> list[Path]:
    """The servables that the export wrote, besides the artifact that names them."""
    found = exported_versions(config, workdir, exported_servable(workdir)).values()
    return [path for path in found if path.exists()]


def example(config: Config, workdir: Workdir, servable: Path) -> Group:
    """One user's last items and the candidates that the servable returns, group by group."""
    from serving.servable_session import ServableSession

    user, titles = example_user(config, workdir), titles_of(config)
    history = history_of(config, workdir, user)
    with ServableSession(servable) as session:
        marks = [history.is_context]
        answer = session.recommend(
            [history.items], user_id=user, history_is_context=marks, num_candidates=_SHOWN_CANDIDATES
        )
    return Group(
        _text(f"User {user}, last of {len(history.positives)} items", style="bold"),
        *(_text(f"  {name}") for name in _names(titles, history.positives[-_SHOWN_HISTORY:])),
        Text(f"{sum(answer.item_ids[0] != '')} candidates, by group in order of their best score", style="bold"),
        candidates_table(titles, group_labels(workdir), answer.item_ids[0], answer.scores[0], answer.group_ids[0]),
    )


def group_labels(workdir: Workdir) -> dict[int, str]:
    """Group -> what it is about."""
    return {row["group_id"]: row["label"] for row in json.loads(workdir.item_groups.report.read_text(encoding="utf-8"))}


def served_group_labels(workdir: Workdir, item_ids: list[str], group_ids: list[int]) -> dict[int, str]:
    """Like `group_labels`, for a servable's candidates; empty if the run's groups are not those of its servable.

    This happens, for example, if only its first stages have run since, to look at another K.

    Raises:
        ArtifactError: the run has lost its groups.
    """
    artifact.read_manifest(workdir.item_groups.path)
    table = pq.read_table(workdir.item_groups.groups, columns=[ItemColumn.ITEM_ID, ItemColumn.GROUP_ID])
    rows = table.filter(pc.is_in(table[ItemColumn.ITEM_ID], pa.array(item_ids, pa.string())))
    today = dict(zip(*(column.to_pylist() for column in rows.columns), strict=True))
    return group_labels(workdir) if [today.get(item) for item in item_ids] == group_ids else {}


def candidates_table(
    titles: dict[str, str], labels: dict[int, str], item_ids: list[str], scores: list[float], groups: list[int]
) -> Table:
    """Candidates of one request under their groups, best group first; a group without a label is just a number."""
    rows: dict[int, list[tuple[str, float]]] = defaultdict(list)
    for name, score, group in zip(_names(titles, item_ids), scores, groups, strict=True):
        if group >= 0:
            rows[int(group)].append((name, float(score)))
    table = Table(show_lines=True, box=box.SIMPLE, pad_edge=False)
    # Without features, a label consists of ids: UUIDs or hashes would leave the candidates only half of the width.
    table.add_column("group", max_width=30, overflow="ellipsis")
    table.add_column("candidates (score)")
    for group, members in rows.items():
        listed = ", ".join(f"{name} ({score:.2f})" for name, score in members)
        table.add_row(_text(f"{group}: {labels.get(group, '')}"), _text(listed))
    return table


def _text(shown: str, style: str = "") -> Text:
    """Text free of markup and terminal controls: titles and labels come from anyone who may name an item."""
    return Text(_CONTROL.sub(" ", shown), style=style)


def _names(titles: dict[str, str], item_ids: list[str]) -> list[str]:
    return [titles.get(item) or item for item in item_ids]


def titles_of(config: Config) -> dict[str, str]:
    """Item id -> title; empty if no item table with a `title` column is configured, or the table is gone."""
    table = config.data.item_features
    if table is None or table.title is None:
        return {}
    try:
        rows = read_feature_table(table.model_copy(update={"features": ()}), "data.item_features")
    except ValueError as error:
        log.warning("items are shown by id: %s", error)
        return {}
    titles = rows.columns[table.title].to_pylist()
    return {
        item: (title or b"").decode(errors="replace") for item, title in zip(rows.ids.to_pylist(), titles, strict=True)
    }
