"""`dnc query`: one user's candidates from the exported servable, with the controls that a request has."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console

from contracts import storage
from contracts.config import Config
from contracts.config.request_features import RequestFeature
from contracts.config_io import load_config
from contracts.layout import Workdir
from contracts.names import MERGES, Request, Signature
from pipeline.cli_options import LocalPath, Utf8Text, reports_user_errors
from pipeline.stages import exported_servable

if TYPE_CHECKING:
    from pipeline.histories import History
    from serving.servable_session import ServableSession

_POSITIVE = click.IntRange(1, 2**31 - 1)
"""Positive numbers that fit into the servable's int32."""


@click.command()
@click.option("--workdir", "-w", type=LocalPath(), required=True, help="Workdir of a finished run.")
@click.option("--user", type=Utf8Text(), help="Take this user's history from the run's events.")
@click.option(
    "--history", type=Utf8Text(), metavar="ID,ID,...", help="Item ids, oldest first; ids with commas as a JSON list."
)
@click.option(
    "--context",
    type=Utf8Text(),
    metavar="ID,ID,...",
    help="Items of --history that were shown, not taken (data.feedback.history_level); also as a JSON list.",
)
@click.option("--num-candidates", "-m", type=_POSITIVE, help="Length of the list; default: the servable's.")
@click.option(
    "--merge", type=click.Choice(MERGES), help="How the groups' results become one list; default: serving.merge."
)
@click.option(
    "--alpha",
    type=click.FloatRange(0),
    help="Exponent of p(group | user) for --merge quota; default: serving.alpha.",
)
@click.option("--groups", metavar="ID,ID,...", help="Groups that may answer; default: all.")
@click.option("--max-groups", type=_POSITIVE, help="Search only this many groups, the likeliest ones; default: all.")
@click.option(
    "--exclude",
    type=Utf8Text(),
    metavar="ID,ID,...",
    help="Items not to return, besides the history; also as a JSON list.",
)
@click.option(
    "--explore",
    type=click.IntRange(0, 2**31 - 1),
    help="Number of places for items without training events; default: the model's share.",
)
@click.option(
    "--request",
    "told",
    metavar="NAME=VALUE",
    multiple=True,
    help="Value of a request feature (data.request_features); repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, one object per candidate.")
@reports_user_errors
def query(
    workdir: Path,
    user: str | None,
    history: str | None,
    context: str | None,
    num_candidates: int | None,
    merge: str | None,
    alpha: float | None,
    groups: str | None,
    max_groups: int | None,
    exclude: str | None,
    explore: int | None,
    told: tuple[str, ...],
    as_json: bool,
) -> None:
    """Ask the exported servable for one user's candidates.

    \b
    Examples:
      dnc query -w runs/demo --user 42
      dnc query -w runs/demo --history 50,181,172 -m 20 --merge quota --alpha 0.5
    """
    from pipeline.histories import history_of
    from serving.export import read_servable_manifest
    from serving.servable_session import ServableSession

    if (user is None) == (history is None):
        raise ValueError("give exactly one of --user ID and --history ID,ID,...")
    if context is not None and history is None:
        raise ValueError(f"--context {context} marks items of --history: give --history instead of --user")
    run = Workdir(workdir)
    if not storage.exists(run.config):
        raise ValueError(f"-w {workdir} holds no finished run: name the workdir of a finished one, or finish it")
    config = load_config(run.config, is_runs=True)
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"--alpha {alpha:g} is no exponent: give a finite number, 0 or more")
    if alpha is not None and (merge or config.serving.merge) != "quota":
        raise ValueError(
            f"--alpha {alpha:g} applies only to the merge quota, not {merge or config.serving.merge}: add --merge quota"
        )
    servable = exported_servable(run)
    excluded = _ids("--exclude", exclude) or []
    controls: dict[str, Any] = {
        "num_candidates": num_candidates,
        "merge": merge,
        "alpha": alpha,
        "groups": _one_row(_group_ids(groups, read_servable_manifest(servable).counts["groups"])),
        "max_groups": max_groups,
        "exclude_item_ids": _one_row(excluded or None),
        "num_exploration": explore,
        **_told(told, config.data.request_features),
    }
    asked = _given(history, context) if user is None else history_of(config, run, user)
    with ServableSession(servable) as session:
        takes = session.specs[Signature.SERVING_DEFAULT].inputs
        if context is not None and Request.HISTORY_IS_CONTEXT not in takes:
            raise ValueError(
                f"--context {context}: the model of {run.path} reads only positives; omit --context, or train "
                "with a data.feedback.history_level below target_level"
            )
        _name_unknown(session, config, asked.items, excluded)
        answer = session.recommend([asked.items], user_id=user, history_is_context=[asked.is_context], **controls)
    is_there = answer.item_ids[0] != ""
    found = [of_row[0][is_there] for of_row in (answer.item_ids, answer.scores, answer.group_ids)]
    if not is_there.any():
        click.echo("no candidate is left: every item is in the history or excluded by the request", err=True)
    if as_json:
        _print_json(*found)
    else:
        _print_table(config, run, *found)


def _given(history: str | None, context: str | None) -> History:
    from pipeline.histories import History

    items = _ids("--history", history) or []
    return History(items, _marks(items, _ids("--context", context) or []))


def _print_table(config: Config, run: Workdir, item_ids: np.ndarray, scores: np.ndarray, group_ids: np.ndarray) -> None:
    """Prints candidates under their groups."""
    from pipeline.report import candidates_table, served_group_labels, titles_of

    labels = served_group_labels(run, item_ids.tolist(), group_ids.tolist())
    if not labels:
        click.echo(
            f"groups are shown without labels: {run.item_groups.path} was rebuilt after the servable was exported; "
            "let `dnc run` finish",
            err=True,
        )
    Console().print(candidates_table(titles_of(config), labels, item_ids.tolist(), scores.tolist(), group_ids.tolist()))


def _print_json(item_ids: np.ndarray, scores: np.ndarray, group_ids: np.ndarray) -> None:
    """Prints one line per candidate."""
    for item, score, group in zip(item_ids, scores, group_ids, strict=True):
        click.echo(json.dumps({"item_id": item, "score": float(score), "group_id": int(group)}, ensure_ascii=False))


def _told(assignments: Sequence[str], features: Sequence[RequestFeature]) -> dict[str, list[str]]:
    """Request feature -> its value, in a list of one, for one user."""
    listed = {feature.name: feature.values for feature in features}
    told = {}
    for assignment in assignments:
        name, _, value = assignment.partition("=")
        if value not in listed.get(name, ()):
            known = f"values of {name}: {', '.join(listed[name])}" if name in listed else ", ".join(listed) or "none"
            raise ValueError(f"--request {assignment!r}: give NAME=VALUE as in data.request_features ({known})")
        told[name] = [value]
    return told


def _ids(option: str, listed: str | None) -> list[str] | None:
    if listed is None or not listed.startswith("["):
        return None if listed is None else _words(listed)
    try:
        found = json.loads(listed)
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise ValueError(
            f'{option} {listed!r}: a value that begins with [ must be a JSON list of ids, such as ["a,b", "c"]'
        )
    return found


def _words(listed: str) -> list[str]:
    return [word for word in listed.split(",") if word]


def _marks(items: list[str], context: list[str]) -> list[bool]:
    if elsewhere := [item for item in context if item not in items]:
        raise ValueError(
            f"--context names {', '.join(elsewhere)}, not in --history: list them there, too, in chronological order"
        )
    return [item in context for item in items]


def _group_ids(listed: str | None, num_groups: int) -> list[int] | None:
    if listed is None:
        return None
    words = _words(listed)
    if not words or not all(word.isdecimal() and int(word) < num_groups for word in words):
        raise ValueError(
            f"--groups {listed!r}: give comma-separated numbers from 0 to {num_groups - 1}, e.g. --groups 0,3"
        )
    return [int(word) for word in words]


def _one_row(values: list[Any] | None) -> list[list[Any]] | None:
    return None if values is None else [values]


def _name_unknown(session: ServableSession, config: Config, history: list[str], excluded: list[str]) -> None:
    reading = "read by hash bucket (model.oov_buckets)" if config.model.oov_buckets else "treated as absent"
    for items, effect in ((history, reading), (excluded, "never returned anyway")):
        if said := unknown_items_note(session.candidate_embedding(items)[1], items, effect):
            click.echo(said, err=True)


def unknown_items_note(group_ids: np.ndarray, items: list[str], effect: str) -> str:
    """A line on the items that have no group, and what the servable makes of them; "" if there are none."""
    unknown = [item for item, group in zip(items, group_ids.tolist(), strict=True) if group < 0]
    if not unknown:
        return ""
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    # In "a, b", the second id is " b", which a log may hold, too.
    shown = [item if item == item.strip() else json.dumps(item, ensure_ascii=False) for item in unknown[:10]]
    return f"not in the servable's catalogue, so {effect}: {', '.join(shown)}{more}"
