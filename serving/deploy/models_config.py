"""TF Serving's models.config, from the versions and labels that are on disk.

    python -m serving.deploy.models_config dnc=runs/mine/servable/dnc --root /models > models.config

TF Serving reads it again every `--model_config_file_poll_wait_seconds`: run this after a push or a
rollback, and it follows `serving.json` as `dnc serve` does by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import click
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from contracts.serving_labels import effective_labels


def models_config(bases: Mapping[str, Path], root: PurePosixPath) -> str:
    """A ModelServerConfig as text: each model's labelled versions, and no other.

    Args:
        bases: model name -> directory that holds its versions, here.
        root: where the server sees them, each below its name.

    Raises:
        ValueError: a base path has no version, or its `serving.json` is not well formed.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name, base in bases.items():
        labels = effective_labels(base)
        if labels is None:
            raise ValueError(f"no version of {name} below {base}: it must hold numbered directories")
        one = config.model_config_list.config.add(name=name, base_path=str(root / name), model_platform="tensorflow")
        one.model_version_policy.specific.versions.extend(labels.by_label().values())
        one.version_labels.update(labels.by_label())
    return text_format.MessageToString(config)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="NAME=PATH...")
@click.option("--root", default="/models", show_default=True, help="Where the server sees the models.")
def main(models: tuple[str, ...], root: str) -> None:
    """Print the models.config of the servables at PATH."""
    try:
        bases = dict(model.split("=", 1) for model in models)
        click.echo(models_config({name: Path(path) for name, path in bases.items()}, PurePosixPath(root)), nl=False)
    except ValueError as error:
        click.echo(f"models_config: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
