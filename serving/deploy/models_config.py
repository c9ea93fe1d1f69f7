"""TF Serving's models.config, from the versions and labels that are on disk.

    python -m serving.deploy.models_config dnc=runs/mine/servable/dnc --root /models > models.config

TF Serving reads it again every `--model_config_file_poll_wait_seconds`: written anew after a push or a
rollback, which `--out FILE --every SECONDS` does, it follows `serving.json` as `dnc serve` does by itself.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import click
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from contracts import storage
from contracts.serving_labels import effective_labels, versions_on_disk


def models_config(bases: Mapping[str, Path], root: PurePosixPath) -> str:
    """A ModelServerConfig as text: each model's labelled versions, and no other.

    Args:
        bases: model name -> directory that holds its versions, here.
        root: where the server sees them, each below its name.

    Raises:
        ValueError: a base path has no version, or its `serving.json` is not well formed or labels what is not there.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name, base in bases.items():
        labels, versions = effective_labels(base), versions_on_disk(base)
        if labels is None:
            raise ValueError(f"no version of {name} below {base}: it must hold numbered directories")
        missing = {label: version for label, version in labels.by_label().items() if version not in versions}
        if missing:
            raise ValueError(
                f"{base} holds versions {versions}; its serving.json labels {missing}: roll back to one of these"
            )
        one = config.model_config_list.config.add(name=name, base_path=str(root / name), model_platform="tensorflow")
        one.model_version_policy.specific.versions.extend(labels.by_label().values())
        one.version_labels.update(labels.by_label())
    return text_format.MessageToString(config)


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="NAME=PATH...")
@click.option("--root", default="/models", show_default=True, help="Where the server sees the models.")
@click.option("--out", type=click.Path(path_type=Path), help="Write here, whole or not at all, instead of printing.")
@click.option(
    "--every", type=click.FloatRange(0, min_open=True), metavar="SECONDS", help="Look again so often; needs --out."
)
def main(models: tuple[str, ...], root: str, out: Path | None, every: float | None) -> None:
    """Print the models.config of the servables at PATH, or keep a file at it.

    With --every, what is wrong is said, and the file stays as it was until it is right again.
    """
    if every and out is None:
        raise click.UsageError("--every needs --out FILE: where to keep the models.config")
    bases = _bases(models)
    if every:  # the first process of a container gets no signal that it does not ask for
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        try:
            _write(models_config(bases, PurePosixPath(root)), out)
        except (ValueError, OSError) as error:
            click.echo(f"models_config: {error}", err=True)
            if not every:
                sys.exit(2)
        if not every:
            return
        time.sleep(every)


def _bases(models: Sequence[str]) -> dict[str, Path]:
    bases = {}
    for model in models:
        name, separator, path = model.partition("=")
        if not (name and separator and path):
            raise click.UsageError(f"{model!r} must have the form NAME=PATH, e.g. dnc=runs/mine/servable/dnc")
        bases[name] = Path(path)
    return bases


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
    elif not out.exists() or out.read_text(encoding="utf-8") != text:
        storage.write_text(out, text)


if __name__ == "__main__":
    main()
