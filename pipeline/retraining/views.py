"""Views for people: versions, lineage, and the difference between two versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow.parquet as pq
from rich.console import Group
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from contracts.artifact import find_manifest
from contracts.layout import Workdir
from contracts.names import ItemColumn, Split
from contracts.serving_labels import labels_or_none, versions_on_disk
from contracts.store_layout import RetrainRun, Store
from pipeline.retraining.base_paths import base_paths
from pipeline.retraining.catch_up import outcome_of, pushed_workdir
from pipeline.retraining.changes import changes
from pipeline.retraining.records import Record, all_records, files_of, record_of_version
from pipeline.stages import exported_servable
from trainer.evaluation.metric_names import recall_k

_DIFF_USERS = 5
_DIFF_LENGTH = 10
_OF_EACH_DAY = ("training.warm_start", "groups.previous", "groups.since", "windows.since")
"""Keys that a plan sets anew each day: they are no difference between two versions' settings."""


def record_or_error(store: Store, version: int) -> Record:
    """The record of a version.

    Raises:
        ValueError: the store has no such version.
    """
    record = record_of_version(store, version)
    if record is None:
        known = [record.version for record in all_records(store) if record.version]
        raise ValueError(f"{store.path} has no record of version {version}; it has {known or 'none yet'}")
    return record


def versions_table(store: Store) -> Table:
    """Every run: version, label, whether it is on disk, recall against its reference, spans, id; and other versions."""
    labels, on_disk = _labels(store)
    table = Table("version", "label", "on disk", "outcome", "trained", "spans", "recall", "reference", box=None)
    table.add_column("run", no_wrap=True)  # to be copied: its record is at runs/RUN
    for record in all_records(store):
        name = next(key for key in record.metrics["candidate"] if recall_k(key))
        table.add_row(
            str(record.version or "-"),
            ", ".join(_labels_of(record.version, labels)),
            "yes" if record.version in on_disk else "",
            record.outcome + ", caught up" * record.catch_up.get("is_pushed", False),
            record.created,
            f"{record.spans[0]['key']} .. {record.spans[-1]['key']}",
            f"{record.metrics['candidate'][name]:.4f}",
            f"{record.metrics['reference'][name]:.4f} ({record.gate['reference']})",
            Text(record.run_id),
        )
    for version in _without_record(store, on_disk):
        table.add_row(str(version), ", ".join(_labels_of(version, labels)), "yes", "no record")
    return table


def versions_json(store: Store) -> list[dict[str, Any]]:
    """The same as JSON, for programs."""
    labels, on_disk = _labels(store)
    made = [(record.version, record) for record in all_records(store)]
    return [
        {
            "version": version,
            "labels": _labels_of(version, labels),
            "on_disk": version in on_disk,
            "outcome": record and record.outcome,
            "caught_up": bool(record and record.catch_up.get("is_pushed")),
            "created": record and record.created,
            "run_id": record and record.run_id,
            "spans": [span["key"] for span in record.spans] if record else [],
            "metrics": record.metrics if record else {},
            "reasons": record.gate.get("reasons", []) if record else [],
        }
        for version, record in [*made, *((version, None) for version in _without_record(store, on_disk))]
    ]


def lineage_json(store: Store, record: Record) -> dict[str, Any]:
    """A record for programs, with the lists of its spans' files."""
    of_window = {"spans": record.spans, "unused": record.unused}
    with_files = {
        name: [{**span, "files": files_of(store, span)} for span in spans] for name, spans in of_window.items()
    }
    return {**asdict(record), **with_files}


def lineage_tree(store: Store, record: Record) -> Tree:
    """Where a version comes from, with its earliest ancestor at the bottom."""
    root = Tree(f"version {record.version} ({record.run_id}), {record.created}")
    _add_facts(root, record)
    of_run = {one.run_id: one for one in all_records(store) if one.version}
    child = record
    # All directly below the root: nested, a year of parents would leave no columns.
    while (parent := of_run.get(child.parents["run_id"])) is not None:
        name = f"parent of {child.version}: version {parent.version} ({parent.run_id}), {parent.created}"
        _add_facts(root.add(name), parent)
        child = parent
    return root


def _add_facts(tree: Tree, record: Record) -> None:
    for fact in _facts(record):
        tree.add(Text(fact))  # not as markup, in which log/[ab]*.csv would lose its brackets


def _facts(record: Record) -> Iterator[str]:
    """The facts in a record, as far as its code wrote them: a store has records by every code version it has seen."""
    events = sum(span["events"] for span in record.spans)
    yield f"spans: {record.spans[0]['key']} .. {record.spans[-1]['key']}, {len(record.spans)}, {events:,} events"
    for key, reason in record.left_out.items():
        yield f"left out: {key}: {reason}"
    warm = record.parents["warm_start"]
    start = f"{warm['kept_items']} items and {warm['kept_groups']} groups of the parent" if warm else "from scratch"
    fresh = warm.get("fresh") if warm else None
    start += f"; begun anew: {', '.join(fresh)}" if fresh else ""
    start += "; no step of training kept, since no epoch validated better" if record.parents.get("kept_start") else ""
    yield f"weights: {start}; seed {record.config['seed']}"
    groups = record.parents.get("groups")
    if groups:
        changed = ", ".join(groups.get("changed", ()))
        kept = "kept" if groups["kept"] else "fitted anew" + f", as {changed} changed" * bool(changed)
        fallen = "not measured" if groups["drift"] is None else f"fell by {groups['drift']:.1%}"
        yield f"groups: {kept}, co-occurrence within them {fallen}; {groups['new_items']} items new"
    yield "code: " + ", ".join(f"{name} {version}" for name, version in record.code.items())
    yield f"machine: {record.machine.get('host')}, {record.machine.get('platform')}, {record.machine.get('cpus')} CPUs"
    yield f"gate: against {record.gate['reference']}, {len(record.gate['checks'])} checks, {record.outcome}"
    if record.catch_up:  # older code had none
        yield f"catching up: {outcome_of(record.catch_up)}"
    yield "stages: " + ", ".join(f"{name} {stage['seconds']} s" for name, stage in record.stages.items())


def difference(store: Store, first: Record, second: Record) -> Group:
    """Two versions side by side: metrics, config, groups, and the lists of the same users."""
    return Group(
        _metrics_difference(first, second),
        _config_difference(first, second),
        *_artifact_difference(store, first, second),
    )


def _metrics_difference(first: Record, second: Record) -> Table:
    table = Table("metric", f"version {first.version}", f"version {second.version}", "change", box=None)
    for name, value in first.metrics["candidate"].items():
        other = second.metrics["candidate"].get(name)
        if value is not None and other is not None:
            table.add_row(name, f"{value:,}", f"{other:,}", f"{other / value - 1:+.1%}" if value else "")
    spans = [f"{record.spans[0]['key']} .. {record.spans[-1]['key']}" for record in (first, second)]
    table.add_row("spans (last: holdout)", *spans, "")
    return table


def _config_difference(first: Record, second: Record) -> Text:
    changed = [
        f"  {key}: {change}" for key, change in changes(first.config, second.config).items() if key not in _OF_EACH_DAY
    ]
    return Text("config: " + ("\n" + "\n".join(changed) if changed else "the same"))


def _artifact_difference(store: Store, first: Record, second: Record) -> list[Table | Text]:
    runs = [_pushed(store, record) for record in (first, second)]
    gone = [record.version for record in (first, second) if not RetrainRun(store.run(record.run_id)).plan.exists()]
    if gone:
        return [
            Text(f"groups and lists: versions {gone} are past retrain.keep_versions, so only their records are left")
        ]
    asked = store.run(second.run_id)  # for users and their histories
    read = [path for run in runs for path in (run.export, run.item_groups.path)]
    read += [asked.item_statistics.path, asked.transform.path, asked.windows.path]
    if lost := [str(path) for path in read if find_manifest(path) is None]:
        return [Text(f"groups and lists: without {', '.join(lost)}, they cannot be compared; restore it, if you can")]
    return [_groups_difference(store, first, second), _lists_difference(store, first, second)]


def _pushed(store: Store, record: Record) -> Workdir:
    return pushed_workdir(RetrainRun(store.run(record.run_id)), record.catch_up)


def _groups_difference(store: Store, first: Record, second: Record) -> Text:
    tables = [pq.read_table(_pushed(store, record).item_groups.groups) for record in (first, second)]
    before, after = (
        dict(zip(table[ItemColumn.ITEM_ID].to_pylist(), table[ItemColumn.GROUP_ID].to_pylist(), strict=True))
        for table in tables
    )
    common = before.keys() & after.keys()
    moved = sum(before[item] != after[item] for item in common)
    return Text(
        f"groups: {len(common):,} items in both, {moved:,} in another group; "
        f"{len(after.keys() - common):,} new items, {len(before.keys() - common):,} gone"
    )


def _lists_difference(store: Store, first: Record, second: Record) -> Table:
    """The first items that both versions give to the same users of the second's holdout."""
    from serving.servable_session import ServableSession
    from serving.user_requests import user_requests
    from trainer.catalogue import Catalogue
    from trainer.input.evaluation_users import EvaluationUsers

    workdir = store.run(second.run_id)
    users = EvaluationUsers.load(workdir, Split.TEST, _DIFF_USERS)
    requests = user_requests(workdir, Catalogue.load(workdir), users)
    lists = []
    for record in (first, second):
        with ServableSession(exported_servable(_pushed(store, record))) as session:
            found = requests.ask(session, slice(None), num_candidates=_DIFF_LENGTH)
            lists.append(found.item_ids)
    table = Table("user", f"version {first.version}", f"version {second.version}", "in both", box=None)
    for user, mine, theirs in zip(requests.user_ids, *lists, strict=True):
        both = len({*mine} & {*theirs} - {""})  # "" is a place without an item
        table.add_row(Text(user), Text(" ".join(mine)), Text(" ".join(theirs)), f"{both} of {_DIFF_LENGTH}")
    return table


def _labels(store: Store) -> tuple[dict[str, int], list[int]]:
    """Label -> version, and the versions on disk, of the store's main servable; both empty before it has one."""
    for main in base_paths(store)[:1]:
        labels = labels_or_none(main)
        return labels.by_label() if labels else {}, versions_on_disk(main)
    return {}, []


def _labels_of(version: int | None, labels: dict[str, int]) -> list[str]:
    return [label for label, labelled in labels.items() if labelled == version]


def _without_record(store: Store, on_disk: list[int]) -> list[int]:
    """Versions that somebody put there, e.g. from `dnc index`, whose push died, or whose record was lost."""
    known = {record.version for record in all_records(store)}
    return [version for version in on_disk if version not in known]
