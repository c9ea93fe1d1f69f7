"""Writes a trained model's item embeddings, from which the next run can mine hard negatives (`windows.mined_from`)."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.artifact import require_this_version
from contracts.config_io import read_stored_config
from contracts.layout import MAIN_MODEL, Workdir
from contracts.names import EmbeddingColumn, ItemColumn
from contracts.storage import make_directory, write_whole
from trainer.models.model_files import load_model


def write_item_embeddings(workdir: Workdir, name: str, path: Path) -> int:
    """Writes Parquet of `EmbeddingColumn` to `path`, creating its directory; returns the number of items.

    Raises:
        ArtifactError: there is no such model, or another version of the project trained it.
        ValueError: the directory cannot be created.
    """
    trained = workdir.model(name)
    require_this_version(trained.path)
    make_directory(path.parent, "--out")
    config = read_stored_config(trained.config)
    model = load_model(config, workdir, name)
    ids = pq.read_table(workdir.item_statistics.items, columns=[ItemColumn.ITEM_ID])[ItemColumn.ITEM_ID]
    rows = model.catalogue_embeddings()[1:]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])
    table = pa.table({EmbeddingColumn.ITEM_ID: ids, EmbeddingColumn.EMBEDDING: vectors})
    write_whole(path, lambda staged: pq.write_table(table, staged))
    return len(ids)


@click.command(help=__doc__)
@click.option("--workdir", required=True, type=click.Path(path_type=Path), help="a run whose train stage is done")
@click.option("--model", default=MAIN_MODEL, show_default=True, help="one of the run's models, as below models/")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="Parquet file to write; a name gets .parquet",
)
def main(workdir: Path, model: str, out: Path) -> None:
    """The command; `help` is the module's docstring."""
    path = out if out.suffix == ".parquet" else out.with_name(f"{out.name}.parquet")
    try:
        number = write_item_embeddings(Workdir(workdir.absolute()), model, path)
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    click.echo(f"{path}: {number:,} items")


if __name__ == "__main__":
    main()
