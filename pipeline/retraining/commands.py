"""The commands of retraining: retrain, versions, rollback, diff, lineage, schedule."""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from contracts.config import Config
from contracts.config_io import load_config
from contracts.lock import holding_directory
from contracts.storage import make_directory, require_literal
from contracts.store_layout import Store
from pipeline.cli_options import LocalPath, echo_or_error, error_message, reports_user_errors, with_config
from pipeline.retraining.plan import STEP_NAMES
from pipeline.runner import require_beam_options

EXIT_CODES = {"pushed": 0, "stopped": 0, "failed": 1, "not_blessed": 3, "nothing_new": 4}
"""Outcome -> exit code; 2 means that the config or the command line cannot be used."""

log = logging.getLogger(__name__)

_store_option = click.option(
    "--store",
    "-s",
    "store_path",
    type=LocalPath(),
    required=True,
    help="Store: the directory that keeps runs and served versions.",
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command()
@with_config
@_store_option
@click.option("--span", "until", help="Newest span to consider, e.g. 2024-05-31, for a backfill; default: the newest.")
@click.option(
    "--to",
    "last",
    type=click.Choice(STEP_NAMES),
    help="Stop after this stage, before the push; the next call continues.",
)
@reports_user_errors
def retrain(
    config: Path | None, overrides: tuple[str, ...], store_path: Path, until: str | None, last: str | None
) -> None:
    """Train on the newest spans, and push what passes the gate.

    One idempotent step for a scheduler: a killed run resumes where it was. Prints one line of JSON; retrain.webhook
    receives the same, however the run ends, except after --to.

    \b
    Exit codes:
      0  pushed       or stopped by --to
      1  failed       what is served stays; the message says what to do
      2  bad config   or a bad command line
      3  not blessed  the gate refused the model; the reasons are in the JSON
      4  nothing new  the newest span was trained on already, is older than one that was, has nothing to learn, has too
                      few users to judge a model by, or is the only one

    \b
    Examples:
      dnc retrain -c configs/retrain.yaml -s store
      dnc retrain -c configs/retrain.yaml -s store --set data.events='log/{date}/*.parquet' --span 2024-05-31
    """
    from pipeline.retraining.notify import notify

    resolved, store = _usable(config, overrides, store_path, until)
    outcome = _retrain(resolved, store, until, last)
    text = json.dumps(outcome, ensure_ascii=False, default=str)
    if outcome["outcome"] != "stopped":
        notify(resolved.retrain.webhook, text)
    if error := echo_or_error(text):  # a push is not undone, so the exit code is the outcome's
        click.echo(f"dnc: cannot write to standard output ({error.strerror}); the outcome is: {text}", err=True)
    click.echo(_summary(outcome), err=True)
    sys.exit(EXIT_CODES[outcome["outcome"]])


def _usable(
    config: Path | None, overrides: tuple[str, ...], store_path: Path, until: str | None = None
) -> tuple[Config, Store]:
    """Config and store; raises ValueError if no retrain could use them, whatever the log holds."""
    from pipeline.retraining.spans import require_spans

    resolved, store = load_config(config, overrides), Store(store_path.absolute())
    require_literal(store.path)
    require_spans(resolved, until)
    require_beam_options(resolved)
    asked, least = resolved.evaluation.max_users, resolved.retrain.gate.min_users
    if asked < least:
        raise ValueError(
            f"evaluation.max_users={asked:,} is less than retrain.gate.min_users={least:,}: the gate would have too "
            "few users for a verdict and refuse every model; raise the first or lower the second"
        )
    make_directory(store.path, "-s")
    return resolved, store


def _existing(store_path: Path) -> Store:
    """A store to read; raises ValueError if there is none."""
    if not store_path.is_dir():
        raise ValueError(f"-s {store_path} is not a directory: name a store made by `dnc retrain -s`")
    return Store(store_path)


def _retrain(config: Config, store: Store, until: str | None, last: str | None) -> dict[str, Any]:
    """Retrains and returns the outcome, which may be an error."""
    from pipeline.retraining.retrain import Result, find_window
    from pipeline.retraining.retrain import retrain as run

    started = time.monotonic()
    span: str | None = None
    try:
        with holding_directory(store.lock, "-s"):
            window = find_window(config, until)
            span = window[-1].key
            result = run(config, store, window, last)
    except Exception as error:  # every error must be reported
        reason = error_message(error)
        if reason is None:
            log.exception("retrain failed")
            reason = f"{type(error).__name__}: {error}"
        result = Result("failed", reasons=[reason])
    return asdict(replace(result, span=span, seconds=round(time.monotonic() - started, 1)))


def _summary(outcome: dict[str, Any]) -> str:
    from pipeline.retraining.catch_up import outcome_of

    span = f", span {outcome['span']}" if outcome["span"] else ""
    lines = [f"{outcome['outcome'].replace('_', ' ')}{span}, {outcome['seconds']} s"]
    if outcome["version"]:
        lines[0] += f": version {outcome['version']} is {outcome['label']}"
        lines += [f"  {outcome_of(outcome['details']['catch_up'])}"] if outcome["details"]["catch_up"] else []
    lines += [f"  {reason}" for reason in outcome["reasons"]]
    metrics = outcome["details"].get("metrics")
    for model, values in (metrics or {}).items():
        shown = ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)
        lines.append(f"  {model}: {shown}")
    return "\n".join(lines)


@click.command()
@_store_option
@_json_option
@reports_user_errors
def versions(store_path: Path, as_json: bool) -> None:
    """List what was trained, what is on disk, and what serves."""
    from pipeline.retraining.base_paths import no_longer_exported
    from pipeline.retraining.views import versions_json, versions_table

    store = _existing(store_path)
    if as_json:
        click.echo(json.dumps(versions_json(store), ensure_ascii=False))
    else:
        Console(width=160).print(versions_table(store))
    for note in no_longer_exported(store):
        click.echo(f"dnc: {note}", err=True)


@click.command()
@_store_option
@click.argument("version", type=click.IntRange(1), required=False)
@reports_user_errors
def rollback(store_path: Path, version: int | None) -> None:
    """Make VERSION, or the one before, the one that serves.

    Takes effect on a running server at its next poll, also while a retrain is going on. While an older version is
    stable, the next retrain compares with it and labels its own version canary; going "back" to the newest version
    lets retrains serve again.
    """
    from pipeline.retraining.publish import set_stable, version_before

    store = _existing(store_path)
    version = version or version_before(store)
    without = set_stable(store, version)
    click.echo(f"version {version} is stable")
    for name in without:
        click.echo(f"dnc: {name} has no version {version}, so it keeps serving what it did", err=True)


@click.command()
@_store_option
@click.argument("first", type=click.IntRange(1))
@click.argument("second", type=click.IntRange(1))
@reports_user_errors
def diff(store_path: Path, first: int, second: int) -> None:
    """Compare two versions: metrics, config, groups and lists.

    Lists are compared for the same users.
    """
    from pipeline.retraining.views import difference, record_or_error

    store = _existing(store_path)
    Console(width=160).print(difference(store, record_or_error(store, first), record_or_error(store, second)))


@click.command()
@_store_option
@click.argument("version", type=click.IntRange(1))
@_json_option
@reports_user_errors
def lineage(store_path: Path, version: int, as_json: bool) -> None:
    """Show what a version was made of.

    Prints spans, weights, groups, code, machine, gate and parents; with --json also the config and the spans' files.
    """
    from pipeline.retraining.views import lineage_json, lineage_tree, record_or_error

    store = _existing(store_path)
    record = record_or_error(store, version)
    if as_json:
        click.echo(json.dumps(lineage_json(store, record), ensure_ascii=False))
    else:
        Console(width=160).print(lineage_tree(store, record))


@click.command()
@with_config
@_store_option
@click.option("--cron", required=True, help="Cron expression of five fields, in UTC, e.g. '0 4 * * *'.")
@reports_user_errors
def schedule(config: Path | None, overrides: tuple[str, ...], store_path: Path, cron: str) -> None:
    """Retrain by a cron expression, on this machine, until stopped.

    SIGTERM and SIGINT (Ctrl-C) also stop a retrain in progress; the next one resumes it.
    """
    from pipeline.retraining.schedule import RetrainProcess, run_until_stopped, scheduler

    _usable(config, overrides, store_path)
    arguments = ["-s", str(store_path)]
    arguments += ["-c", str(config)] if config else []
    arguments += [word for override in overrides for word in ("--set", override)]
    verbose = ["--verbose"] * click.get_current_context().find_root().params["verbose"]
    process = RetrainProcess([sys.executable, *_this_program(), *verbose, "retrain", *arguments])
    made = scheduler(cron, process.run)
    click.echo(f"next: {made.get_jobs()[0].trigger.get_next_fire_time(None, datetime.now(timezone.utc))}", err=True)
    run_until_stopped(made, process)


def _this_program() -> list[str]:
    """The program as it was called: `-m` alone would prefer a package `pipeline` in the working directory."""
    return sys.argv[:1] if Path(sys.argv[0]).name == "dnc" else ["-m", "pipeline.cli"]


COMMANDS = (retrain, versions, rollback, diff, lineage, schedule)
