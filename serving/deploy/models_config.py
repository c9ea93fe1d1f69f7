"""TF Serving's models.config, made from the versions and labels on disk.

    python -m serving.deploy.models_config dnc=runs/mine/servable/dnc --root /models > models.config

TF Serving rereads it every `--model_config_file_poll_wait_seconds`. If it is rewritten after a push or a rollback,
which `--out FILE --every SECONDS --server URL` does, TF Serving follows `serving.json` as `dnc serve` does by itself.

TF Serving refuses a config that moves a label in use to a version that is not loaded, and then loads none of it. So a
label moves in two steps: its version is listed while the label stays, and is labelled once the server has loaded it.
A new label may start at a version that is not loaded; if it cannot be loaded, the label stays there until it moves on.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import click
import requests
from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from contracts import storage
from contracts.serving_labels import VERSIONS, effective_labels, versions_on_disk

_SECONDS_TO_ANSWER = 5.0
_NOT_LOADED = re.compile(r"Servable not found for request: Specific\(.+, (\d+)\)")
"""TF Serving's error (core/basic_manager.cc) at a label whose version is not loaded: nothing else names the version."""
_Found = TypeVar("_Found")


def models_config(bases: Mapping[str, Path], root: PurePosixPath, server: str | None = None) -> str:
    """A ModelServerConfig as text: each model's labelled versions, and no others.

    Args:
        bases: model name -> local directory that holds its versions.
        root: where the server sees the models, each below its name.
        server: REST API of a TF Serving that runs with an earlier config: the new one is what it can take in its
            current state. Without it, or while it does not answer, the config is for a server that starts.

    Raises:
        ValueError: a base path has no version, or its `serving.json` is malformed or labels a missing version.
    """
    config = model_server_config_pb2.ModelServerConfig()
    for name, base in bases.items():
        labels, versions = effective_labels(base), versions_on_disk(base)
        if labels is None:
            raise ValueError(f"no version of {name} under {base}: it must hold {VERSIONS}")
        missing = {label: version for label, version in labels.by_label().items() if version not in versions}
        if missing:
            raise ValueError(
                f"{base} holds versions {versions}, but its serving.json labels {missing}: "
                "roll back to a version that it holds"
            )
        one = config.model_config_list.config.add(name=name, base_path=str(root / name), model_platform="tensorflow")
        wanted = labels.by_label()
        model = f"{server.rstrip('/')}/v1/models/{name}" if server else None
        one.version_labels.update(_movable(wanted, model) if model else wanted)
        listed = {*wanted.values(), *one.version_labels.values()}
        one.model_version_policy.specific.versions.extend(sorted(listed))
    return text_format.MessageToString(config)


def _movable(wanted: Mapping[str, int], model: str) -> dict[str, int]:
    """`wanted`, as far as the server can take it now: a label in use waits for its version. `model` is a URL."""
    loaded = _asked(model, _available, set[int]())
    return {
        label: version if version in loaded else _held(f"{model}/labels/{label}", version)
        for label, version in wanted.items()
    }


def _available(answer: Any) -> set[int]:
    return {int(one["version"]) for one in answer["model_version_status"] if one["state"] == "AVAILABLE"}


def _held(label: str, wanted: int) -> int:
    """The version that a label's URL leads to, loaded or not; `wanted` if it leads to none: the label is not in use.

    Read from the metadata: TF Serving's model status API lists all versions, whichever label it is asked for.
    """
    return _asked(f"{label}/metadata", _labelled, wanted)


def _labelled(answer: Any) -> int:
    if "error" in answer:
        return int(_NOT_LOADED.findall(answer["error"])[0])
    return int(answer["model_spec"]["version"])


def _asked(url: str, read: Callable[[Any], _Found], otherwise: _Found) -> _Found:
    """What `read` finds in TF Serving's REST answer at a URL; `otherwise` if there is none or it has another form."""
    try:
        return read(requests.get(url, timeout=_SECONDS_TO_ANSWER).json())
    # The server is starting or stopping, the answer is not JSON or an error, or it is from another kind of server.
    except (requests.RequestException, LookupError, TypeError, ValueError, OverflowError):
        return otherwise


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="NAME=PATH...")
@click.option("--root", default="/models", show_default=True, help="Where the server sees the models.")
@click.option("--out", type=click.Path(path_type=Path), help="Write here, whole or not at all, instead of printing.")
@click.option(
    "--every",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="Check again this often; needs --out and --server.",
)
@click.option("--server", metavar="URL", help="REST API of the server that reads the file: labels wait for its loads.")
def main(models: tuple[str, ...], root: str, out: Path | None, every: float | None, server: str | None) -> None:
    """Print the models.config of the servables at PATH, or keep a file at it.

    With --every, what is wrong is said, and the file stays as it was until it is right again.
    """
    if every and not (out and server):
        raise click.UsageError(
            "--every needs --out FILE, the models.config to keep up to date, and --server URL, "
            "whose loads labels wait for"
        )
    if server and not server.startswith(("http://", "https://")):
        raise click.UsageError(f"--server {server!r} must be a URL, e.g. http://localhost:8501")
    bases = _bases(models)
    if every:  # a container's first process gets only signals that it handles
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        try:
            _write(models_config(bases, PurePosixPath(root), server), out)
        except (ValueError, OSError) as error:
            click.echo(f"models_config: {error}", err=True)
            if not every:
                sys.exit(2)
        if not every:
            return
        time.sleep(every)


def _bases(models: Sequence[str]) -> dict[str, Path]:
    bases: dict[str, Path] = {}
    for model in models:
        name, separator, path = model.partition("=")
        if not (name and separator and path):
            raise click.UsageError(f"{model!r} must have the form NAME=PATH, e.g. dnc=runs/mine/servable/dnc")
        if name in bases:
            raise click.UsageError(f"{model!r}: the name {name} is already taken; give each model its own")
        bases[name] = Path(path)
    return bases


def _write(text: str, out: Path | None) -> None:
    if out is None:
        click.echo(text, nl=False)
        return
    storage.make_directory(out.parent, "--out")
    if not out.exists() or out.read_text(encoding="utf-8") != text:
        storage.write_text(out, text)


if __name__ == "__main__":
    main()
