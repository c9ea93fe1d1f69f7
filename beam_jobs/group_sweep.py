"""Choice of K: fits k-means to a run's co-occurrence for several K, and prints the cost and benefit of each.

It always fits k-means without a cap on sizes, whatever the run's method and cap.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from sklearn.metrics import silhouette_score

from beam_jobs.common.arrays import Float32
from beam_jobs.common.files import read_array, read_parquet
from beam_jobs.grouping.kmeans import fit_centroids, group_centroids, nearest_centroid, squared_distances
from contracts.artifact import current, read_manifest, write_json
from contracts.config import GroupsConfig
from contracts.config_io import load_config
from contracts.layout import ItemGroups, Workdir
from contracts.names import ItemColumn
from contracts.storage import as_path, make_directory, reading

_SILHOUETTE_ITEMS = 5_000


@dataclass(frozen=True)
class SweepRow:
    """One K.

    Attributes:
        num_groups: K.
        inertia: mean squared distance of an item to its centroid.
        explained: 1 - inertia / inertia of one group; 1 if all items are the same.
        largest, smallest: sizes, in units of the mean size.
        silhouette: of a sample, -1..1; the higher, the better items fit their own group.
        seconds: of the fit and the assignment.
    """

    num_groups: int
    inertia: float
    explained: float
    largest: float
    smallest: float
    silhouette: float
    seconds: float


def sweep_row(rows: Float32, num_groups: int, settings: GroupsConfig, seed: int) -> SweepRow:
    """Fits and measures one K on embeddings [num_items, dim]."""
    started = time.monotonic()
    centroids = fit_centroids(rows, num_groups, settings.restarts, settings.fit_sample, seed)
    groups = nearest_centroid(rows, centroids)
    distances = squared_distances(rows, centroids, groups)
    seconds = time.monotonic() - started
    sizes = np.bincount(groups, minlength=num_groups) * num_groups / len(rows)
    alone = np.zeros(len(rows), np.int64)  # the variance of float32 columns is off by .5% for five million items
    spread = float(squared_distances(rows, group_centroids(rows, alone, 1), alone).mean())
    sample = np.random.default_rng(seed).permutation(len(rows))[:_SILHOUETTE_ITEMS]
    distinct = len(np.unique(groups[sample]))
    silhouette = silhouette_score(rows[sample], groups[sample]) if 1 < distinct < len(sample) else 0.0
    return SweepRow(
        num_groups=num_groups,
        inertia=round(float(distances.mean()), 5),
        explained=round(1 - float(distances.mean()) / spread, 4) if spread else 1.0,
        largest=round(float(sizes.max()), 3),
        smallest=round(float(sizes.min()), 3),
        silhouette=round(float(silhouette), 4),
        seconds=round(seconds, 2),
    )


@click.command(help=__doc__)
@click.option(
    "--config",
    "config_path",
    type=as_path,
    metavar="PATH OR URL",
    help="YAML file; default: the run's own, WORKDIR/run_config.yaml, which `dnc run` writes",
)
@click.option("--workdir", required=True, type=as_path, metavar="PATH OR URL", help="a run whose groups stage is done")
@click.option("--k", "ks", default="5,10,20,50,100", show_default=True, help="values of K, comma-separated")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="also write the rows here")
def main(config_path: Path | None, workdir: Path, ks: str, json_path: Path | None) -> None:
    """The command; `help` is the module's docstring."""
    try:
        run = Workdir(workdir)
        artifact = ItemGroups(current(run.item_groups.path))
        read_manifest(artifact.path)  # first, so that a missing run is not reported as an unreadable config
        with reading(config_path or run.config) as path:
            config = load_config(path)
        rows = read_array(artifact.embeddings)
        rows = rows[read_parquet(artifact.groups, columns=[ItemColumn.SETTLED])[ItemColumn.SETTLED].to_numpy()]
        words = [word.strip() for word in ks.split(",")]
        numbers = sorted({int(word) for word in words if word.isdecimal()})
        if not all(map(str.isdecimal, words)) or not 1 <= numbers[0] <= numbers[-1] <= len(rows):
            raise ValueError(f"--k {ks}: give numbers from 1 to {len(rows)}, the number of items that co-occur")
        if json_path is not None:
            make_directory(json_path.parent, "--json")  # now, and not after the fits
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo("     K   inertia  explained  largest  smallest  silhouette  seconds")
    result = []
    for number in numbers:
        row = sweep_row(rows, number, config.groups, config.seed)
        click.echo(
            f"{row.num_groups:6d}  {row.inertia:8.4f}  {row.explained:9.3f}  {row.largest:7.2f}  {row.smallest:8.2f}"
            f"  {row.silhouette:10.3f}  {row.seconds:7.2f}"
        )
        result.append(vars(row))
    if json_path is not None:
        write_json(json_path, result)


if __name__ == "__main__":
    main()
